"""Read state dicts from any source: memory, safetensors, weights-only pickles, the Hub."""

import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import ModelInfo
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_sane.core._adapters import ADAPTER_CONFIG
from hf_sane.core._types import StateDict
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.tokenization._formats import WHOLE, file_format, weights_reader
from hf_sane.tokenization._pickles import unpickle
from hf_sane.tokenization._safetensors_header import read_header
from hf_sane.tokenization._state_dicts import choose_state_dict, choose_tensors
from hf_sane.tokenization._weight_files import SHARD, choose_weights, is_index

AGAIN = "download or save it again"
NOT_AS_PROMISED = (
    "do not trust this folder; if it is yours, rename the index to pytorch_model.bin.index.json and pass its path"
)
OF_OTHER_READERS: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
    SafetensorError,
)
MAX_DOWNLOAD_BYTES = 50 * 2**30


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A network in a file, folder or repository, with details that select its weights.

    Attributes:
        source: Path or Hub repo, `owner/name` or `owner/name@revision`.
        revision: Branch, tag or commit of a repo.
        subfolder: Subfolder with the weights.
        variant: Which of several precisions to read, as in Transformers: `"fp16"` reads `model.fp16.safetensors`.
        key: Which of several state dicts in a file to read; see `choose_state_dict`.
    """

    source: str | Path
    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return str(self.source)


Source = Mapping[str, Tensor] | nn.Module | str | Path | CheckpointSource


def load_state_dict(
    source: Source, *, revision: str | None = None, key: str | None = None, max_bytes: int = MAX_DOWNLOAD_BYTES
) -> StateDict:
    """Read a network's tensors.

    Args:
        source: A state dict or module (tensors are shared, not copied); a path to a file of safetensors or
            `torch.save`, whatever its name, or to a folder or index of shards; a Hub repo, `owner/name` or
            `owner/name@revision`, of which only safetensors are downloaded; or a [`CheckpointSource`] of those. Files
            of `torch.save` are opened with `weights_only=True`; a state dict nested inside a dictionary is found.
            Prefixes that *all* names share (`module.`, `_orig_mod.`; `model.` inside a training checkpoint) are
            removed, for every source.
        revision: Branch, tag or commit of a Hub repo.
        key: Which state dict to read if there are several, such as a network and its moving average.
        max_bytes: Larger weights of a Hub repo are not downloaded.

    Raises:
        FileNotFoundError: If a path or shard is missing, or a folder or repo holds no safetensors.
        ValueError: If a file is truncated, has an unsupported format, or holds no network or several; if an index
            points outside its folder, a pickle holds more than weights, or a repo is too large.
        TypeError: If `source` is none of the above.
    """
    if isinstance(source, nn.Module):
        tensors = {name: value for name, value in source.state_dict().items() if isinstance(value, Tensor)}
        return choose_tensors(tensors, type(source).__name__, is_module=True)
    if isinstance(source, Mapping):
        return choose_state_dict(source, "the state dict", key=key)
    checkpoint = as_checkpoint(source, revision=revision, key=key)
    return read_weights(weights_path(checkpoint, max_bytes=max_bytes), key=checkpoint.key)


def as_checkpoint(
    source: str | Path | CheckpointSource, *, revision: str | None = None, key: str | None = None
) -> CheckpointSource:
    """Convert a source to a [`CheckpointSource`].

    Raises:
        TypeError: If `source` is neither a string or path nor a `CheckpointSource`.
    """
    if isinstance(source, CheckpointSource):
        return replace(source, revision=source.revision or revision, key=source.key or key)
    if not isinstance(source, str | Path):
        raise TypeError(f"expected a state dict, module, path or Hub repo id, got {type(source).__name__}")
    return CheckpointSource(source, revision=revision, key=key)


def local_path(checkpoint: CheckpointSource, *, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Path:
    """Local path of a checkpoint; a Hub repo is downloaded first, see [`download_checkpoint`].

    Raises:
        FileNotFoundError: If there is no such path or repository, or the repository holds no weights.
        InvalidFileError: If it is a folder of this library that is incomplete, or in which files were removed or
            changed.
        ValueError: If the weights are too large, or an index names files outside its folder.
    """
    place = find_source(checkpoint.source, revision=checkpoint.revision)
    if isinstance(place, HubRepo):
        return download_checkpoint(place, checkpoint, max_bytes=max_bytes)
    check_finished(place)
    return place


def weights_path(checkpoint: CheckpointSource, *, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Path:
    """Local path of the file with a checkpoint's weights, or of their index.

    Raises:
        FileNotFoundError, InvalidFileError, ValueError: As in [`local_path`]; also if a folder holds no weights.
    """
    path = local_path(checkpoint, max_bytes=max_bytes)
    if not path.is_dir():
        return path
    return path / choose_weights(
        str(path), _files_below(path), subfolder=checkpoint.subfolder, variant=checkpoint.variant, local=True
    )


def _files_below(folder: Path) -> list[str]:
    """Files of a folder, down to its subfolders' subfolders."""
    os.scandir(folder).close()  # `glob` silently finds nothing in an unreadable folder
    found = (path.relative_to(folder) for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern))
    visible = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return [path.as_posix() for path in visible if (folder / path).is_file()]


def read_weights(path: Path, *, key: str | None = None) -> StateDict:
    """Read the network in a file, whose format is detected from its first bytes.

    Args:
        path: Safetensors, an index of shards, or a file of `torch.save`.
        key: Name of the state dict, if there are several.

    Raises:
        FileNotFoundError: If a shard is missing.
        InvalidFileError: If the file is damaged, has an unsupported format, or holds no network or several.
    """
    reader = weights_reader(path)
    if reader in WHOLE:
        return choose_state_dict(load_whole(path), path, key=key)
    tensors = read_shards(path, read_shard) if reader == "index" else read_safetensors(path)
    return choose_tensors(tensors, path, key=key)


def load_whole(path: Path) -> Any:
    """Read a file without a header: a pickle of weights, or a file of a registered format.

    Raises:
        InvalidFileError: If it is damaged, or a pickle holds more than weights.
    """
    read = file_format(path).read
    if read is None:
        return unpickle(path)
    with reading(path, expected=f"a whole file: {file_format(path).name}", remedy=AGAIN, also=OF_OTHER_READERS):
        return read(path)


def read_safetensors(path: Path) -> StateDict:
    """Read all tensors of a safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, or holds tensors of a dtype that torch lacks.
    """
    read_header(path)  # explains what is wrong with a file, which safetensors does not
    with reading(path, expected="a whole safetensors file", remedy=AGAIN, also=(SafetensorError,)):
        return load_file(path)


def read_shard(path: Path) -> StateDict:
    """Read all tensors of a shard, which is a file of safetensors or `torch.save`.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, or is a pickle that holds more than named tensors.
    """
    if weights_reader(path) not in WHOLE:
        return read_safetensors(path)
    content = load_whole(path)
    if not isinstance(content, Mapping) or any(
        not (isinstance(name, str) and isinstance(value, Tensor)) for name, value in content.items()
    ):
        got = f"an object of the type {type(content).__name__} with something else in it"
        raise InvalidFileError(path, expected="a shard: tensors by name", got=got, remedy=AGAIN)
    return dict(content)


def is_lazy(path: Path) -> bool:
    """Whether the tensors of a file, or of an index's shards, can be read one by one."""
    reader = weights_reader(path)
    if reader == "index":
        return all(weights_reader(path.parent / file) == "safetensors" for file in index_shards(path))
    return reader == "safetensors"


def index_shards(index: Path) -> dict[str, list[str]]:
    """Read a shard index and check that all shards exist; return the tensor names of each file.

    Raises:
        InvalidFileError: If it is not an index, names a file outside its folder, or a shard has an unexpected format
            (`torch.save` is allowed unless the index is named as one of safetensors).
        FileNotFoundError: If a shard is missing.
    """
    shards = parse_index(index)
    for file in shards:
        if not (index.parent / file).exists():
            raise FileNotFoundError(f"{index} names the shard {file}, which is missing; download the folder again")
        is_open = not is_index(index.name)  # shards must have the format that the index is named after
        if weights_reader(index.parent / file) not in ("safetensors", *(WHOLE if is_open else ())):
            expected = "a safetensors file" + (" or one of torch.save" if is_open else "")
            got = file_format(index.parent / file).name
            raise InvalidFileError(index.parent / file, expected=expected, got=got, remedy=AGAIN)
    return shards


def parse_index(index: Path) -> dict[str, list[str]]:
    """Read a shard index, whose shards need not exist; return the tensor names of each file.

    Raises:
        InvalidFileError: If it is not an index, names a file outside its folder, or is named as an index of
            safetensors but lists other files.
    """
    document = read_document(index, expected="a shard index, with a 'weight_map'", remedy=AGAIN)
    shards: dict[str, list[str]] = {}
    for name, entry in document["weight_map"].items():
        file = entry.text()
        if Path(file).name != file or file in ("", ".", "..") or not file.isprintable() or "\\" in file:
            entry.fail("the name of a file next to the index", remedy="do not trust this folder")
        if is_index(index.name) and not file.endswith(".safetensors"):
            entry.fail("a safetensors file, as the name of the index says", remedy=NOT_AS_PROMISED)
        shards.setdefault(file, []).append(name)
    if not shards:
        document["weight_map"].fail("a file name for every tensor")
    counts = {int(found[1]) for file in shards if (found := SHARD.search(file))}
    if len(counts) == 1 and len(shards) != (count := counts.pop()):
        document["weight_map"].fail(f"tensors of all {count:,} shards", got=f"tensors of {len(shards)}")
    return shards


def read_shards(index: Path, read: Callable[[Path], StateDict]) -> StateDict:
    """Read every shard of an index, with the tensors that the index lists for it.

    Args:
        index: The shard index.
        read: Function that reads one shard, or its header.

    Raises:
        FileNotFoundError: If a shard is missing.
        InvalidFileError: As in [`join_shards`].
    """
    return join_shards(index, index_shards(index), lambda file: read(index.parent / file))


def join_shards(index: Path, shards: Mapping[str, list[str]], read: Callable[[str], StateDict]) -> StateDict:
    """Join the tensors of all shards.

    Args:
        index: The shard index, for messages.
        shards: Shards from [`parse_index`].
        read: Function that reads a shard, or its header, by its name in the index.

    Raises:
        InvalidFileError: If a shard lacks a tensor, or holds one that the index does not list.
    """
    tensors: StateDict = {}
    known = {name for names in shards.values() for name in names}
    for file, names in shards.items():
        shard = read(file)
        if missing := sorted(set(names) - shard.keys()):
            raise InvalidFileError(
                index,
                field="weight_map",
                expected=f"tensors that {file} holds",
                got=f"{missing}, which it lacks",
                remedy=AGAIN,
            )
        if unknown := sorted(shard.keys() - known):
            raise InvalidFileError(
                index, field="weight_map", expected=f"every tensor of {file}", got=f"none of {unknown}", remedy=AGAIN
            )
        tensors |= {name: shard[name] for name in names}
    return tensors


def find_remote_weights(repo: HubRepo, checkpoint: CheckpointSource, info: ModelInfo) -> str:
    """Name of the file in a Hub repo that holds the weights, or of their index.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = [file.rfilename for file in info.siblings or ()]
    options = {"subfolder": checkpoint.subfolder, "variant": checkpoint.variant}
    return choose_weights(str(repo), files, **options, local=False)


def download_checkpoint(repo: HubRepo, checkpoint: CheckpointSource, *, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Path:
    """Download the weights of a Hub repo to the local cache: safetensors only, all files from one commit.

    An adapter's configuration is downloaded, too.

    Args:
        repo: The repository.
        checkpoint: Selects the files.
        max_bytes: Larger weights are not downloaded.

    Returns:
        Path of the safetensors file, or of the shard index with its shards next to it.

    Raises:
        FileNotFoundError: If the repo holds no safetensors file with a known name.
        ValueError: If the weights are too large, or the index names files outside its folder.
    """
    info = patiently(HfApi().model_info, repo.repo_id, revision=repo.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    download = partial(patiently, hf_hub_download, repo.repo_id, revision=info.sha)
    name = find_remote_weights(repo, checkpoint, info)
    if (settings := (PurePosixPath(name).parent / ADAPTER_CONFIG).as_posix()) in sizes:
        download(settings)  # gives an adapter's factors their meaning
    if not is_index(name):
        _check_size(str(repo), sizes[name], max_bytes)
        return Path(download(name))
    index = Path(download(name))
    shards = [(PurePosixPath(name).parent / file).as_posix() for file in parse_index(index)]
    _check_size(str(repo), sum(sizes.get(file, 0) for file in shards), max_bytes)
    for file in shards:
        download(file)
    return index


def _check_size(repo_id: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ValueError(
            f"{repo_id} holds {num_bytes:,} bytes of weights, more than the limit of {max_bytes:,}; pass a larger "
            "max_bytes if they fit into memory"
        )
