"""State dicts from wherever networks live: memory, safetensors, pickles that hold nothing but weights, the Hub."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_sane.core.types import StateDict
from hf_sane.records.documents import read_document
from hf_sane.records.errors import InvalidFileError, reading
from hf_sane.records.outputs import check_finished
from hf_sane.records.patience import patiently
from hf_sane.records.sources import find_source
from hf_sane.tokenization.pickles import unpickle
from hf_sane.tokenization.safetensors_header import read_header

SAFETENSORS_NAMES = ("model.safetensors", "adapter_model.safetensors", "diffusion_pytorch_model.safetensors")
PICKLE_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile

SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
AGAIN = "download or save it again"
MAX_DOWNLOAD_BYTES = 50 * 2**30

Source = Mapping[str, Tensor] | nn.Module | str | Path
Value = TypeVar("Value")


def load_state_dict(source: Source, *, revision: str | None = None, max_bytes: int = MAX_DOWNLOAD_BYTES) -> StateDict:
    """Read a network's tensors.

    Args:
        source: A state dict or module (tensors are shared, not copied); a path to a `.safetensors` file, to a folder or
            index of shards, or to a pickle (`.pt`, `.pth`, `.th`, `.bin`, `.ckpt`), which is opened with
            `weights_only=True` and may wrap the tensors in `{"state_dict": ...}`; or a Hub repo id, `owner/name` or
            `owner/name@revision`, of which only safetensors are downloaded. A prefix `module.` or `_orig_mod.` that *all* names carry (DataParallel,
            torch.compile) is taken off, whatever the source.
        revision: Branch, tag or commit of a Hub repo.
        max_bytes: Weights of a Hub repo that are larger are not downloaded.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        ValueError: If a file is truncated, an index points outside its folder, a pickle holds more than weights, or a
            repo is too large.
        TypeError: If `source` is nothing of the above.
    """
    if isinstance(source, nn.Module):
        return strip_prefixes(source.state_dict())
    if isinstance(source, Mapping):
        return strip_prefixes(source)
    if not isinstance(source, str | Path):
        raise TypeError(f"expected a state dict, module, path or Hub repo id, got {type(source).__name__}")
    return strip_prefixes(_load_path(local_path(source, revision=revision, max_bytes=max_bytes)))


def local_path(source: str | Path, *, revision: str | None = None, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Path:
    """Where a checkpoint lies on this machine; a Hub repo is downloaded first, see [`download_checkpoint`].

    Raises:
        FileNotFoundError: If there is neither such a path nor such a repository.
        InvalidFileError: If it is a folder of ours that is unfinished, or lost or changed files since it was written.
    """
    found = find_source(source, revision=revision)
    if isinstance(found, Path):
        check_finished(found)
        return found
    return download_checkpoint(found.repo_id, revision=found.revision, max_bytes=max_bytes)


def strip_prefixes(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Take off `module.` and `_orig_mod.` where every name carries them."""
    names = dict(zip(state_dict, state_dict, strict=True))
    changed = bool(names)
    while changed:
        changed = False
        for prefix in WRAPPER_PREFIXES:
            if names and all(name.startswith(prefix) for name in names.values()):
                names = {old: name.removeprefix(prefix) for old, name in names.items()}
                changed = True
    return {names[old]: tensor for old, tensor in state_dict.items()}


def find_weights(path: Path) -> Path:
    """The file to read: `path` itself, or of a folder its safetensors file or shard index.

    Raises:
        FileNotFoundError: If a folder holds neither, or several files and nothing that says which.
    """
    if not path.is_dir():
        return path
    known = [path / f"{name}{suffix}" for name in SAFETENSORS_NAMES for suffix in ("", ".index.json")]
    candidates = [file for file in known if file.exists()] or sorted(path.glob("*.safetensors"))
    if not candidates or (len(candidates) > 1 and candidates[0] not in known):
        raise FileNotFoundError(
            f"{path} holds {len(candidates)} safetensors files and none of {SAFETENSORS_NAMES}; name the file itself"
        )
    return candidates[0]


def _load_path(path: Path) -> StateDict:
    path = find_weights(path)
    if path.name.endswith(".index.json"):
        return read_shards(path, read_safetensors)
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path)
    return read_safetensors(path)


def read_safetensors(path: Path) -> StateDict:
    """All tensors of one safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, or holds tensors of a dtype that torch does not know.
    """
    read_header(path)  # says what is wrong with a file; safetensors says that something is
    with reading(path, expected="a whole safetensors file", remedy=AGAIN, also=(SafetensorError,)):
        return load_file(path)


def index_shards(index: Path) -> dict[str, list[str]]:
    """Read a shard index of which all shards are there: file name to the tensors in it.

    Raises:
        InvalidFileError: If it is no index, or names a file outside its own folder.
        FileNotFoundError: If a shard is missing.
    """
    shards = parse_index(index)
    for file in shards:
        if not (index.parent / file).exists():
            raise FileNotFoundError(f"{index} names the shard {file}, which is missing; download the folder again")
    return shards


def parse_index(index: Path) -> dict[str, list[str]]:
    """Read a shard index, whose shards need not be there: file name to the tensors in it.

    Raises:
        InvalidFileError: If it is no index, or names a file outside its own folder.
    """
    document = read_document(index, expected="a shard index, with a 'weight_map'", remedy=AGAIN)
    shards: dict[str, list[str]] = {}
    for name, entry in document["weight_map"].items():
        file = entry.text()
        if Path(file).name != file or file in ("", ".", "..") or not file.isprintable() or "\\" in file:
            entry.fail("the name of a file beside the index", remedy="do not trust this folder")
        shards.setdefault(file, []).append(name)
    if not shards:
        document["weight_map"].fail("a file name for every tensor")
    counts = {int(found[1]) for file in shards if (found := SHARD.search(file))}
    if len(counts) == 1 and len(shards) != (count := counts.pop()):
        document["weight_map"].fail(f"tensors of all {count:,} shards", got=f"tensors of {len(shards)}")
    return shards


def read_shards(index: Path, read: Callable[[Path], StateDict]) -> StateDict:
    """Read every shard of an index, and of each shard the tensors that the index places there.

    Args:
        index: The shard index.
        read: Reads one safetensors file, or its header.

    Raises:
        FileNotFoundError: If a shard is missing.
        InvalidFileError: As in [`join_shards`].
    """
    return join_shards(index, index_shards(index), lambda file: read(index.parent / file))


def join_shards(index: Path, shards: Mapping[str, list[str]], read: Callable[[str], StateDict]) -> StateDict:
    """Put the tensors of all shards together.

    Args:
        index: The shard index, for messages.
        shards: From [`parse_index`].
        read: Reads a shard, or its header, by its name in the index.

    Raises:
        InvalidFileError: If a shard lacks a tensor, or holds one that the index does not know.
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


def read_pickle(path: Path) -> StateDict:
    """Read a pickle that holds nothing but weights, without running code.

    Args:
        path: The file: a dict of tensors, or one under `"state_dict"`.

    Raises:
        InvalidFileError: If it is damaged, or holds more than weights.
    """
    content = unpickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InvalidFileError(
            path,
            expected="a dict of tensors (or one under 'state_dict')",
            got=_outline(content),
            remedy="save the state_dict() of the network alone",
        )
    if strange := [name for name in content if not isinstance(name, str)]:
        expected = "a name for every tensor"
        raise InvalidFileError(path, expected=expected, got=strange[:3], remedy="save the state_dict() of the network")
    return dict(content)


def _outline(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {sorted({type(value).__name__ for value in content.values()})}"
    return type(content).__name__


def download_checkpoint(repo_id: str, *, revision: str | None = None, max_bytes: int = MAX_DOWNLOAD_BYTES) -> Path:
    """Bring the weights of a Hub repo into the local cache; safetensors only, all files of one commit.

    Args:
        repo_id: `user/name`.
        revision: Branch, tag or commit.
        max_bytes: Larger weights are not downloaded.

    Returns:
        The safetensors file, or the shard index with its shards beside it.

    Raises:
        FileNotFoundError: If the repo holds no safetensors under a known name.
        ValueError: If the weights are too large, or the index names files outside its folder.
    """
    info = patiently(HfApi().model_info, repo_id, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    download = partial(patiently, hf_hub_download, repo_id, revision=info.sha)
    for name in SAFETENSORS_NAMES:
        if name in sizes:
            _check_size(repo_id, sizes[name], max_bytes)
            return Path(download(name))
        if f"{name}.index.json" in sizes:
            index = Path(download(f"{name}.index.json"))
            shards = parse_index(index)
            _check_size(repo_id, sum(sizes.get(file, 0) for file in shards), max_bytes)
            for file in shards:
                download(file)
            return index
    pickles = [file for file in sizes if Path(file).suffix in PICKLE_SUFFIXES]
    raise FileNotFoundError(
        f"{repo_id} holds no {SAFETENSORS_NAMES[0]}"
        + (f", only pickles {pickles}, which are not downloaded; ask its author for safetensors" if pickles else "")
    )


def _check_size(repo_id: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ValueError(
            f"{repo_id} holds {num_bytes:,} bytes of weights, more than the limit of {max_bytes:,}; give a larger max_bytes "
            "if they fit into memory"
        )
