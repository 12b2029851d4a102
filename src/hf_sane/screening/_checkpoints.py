"""The tensors of a checkpoint as byte ranges of files, on this machine or the Hub, and the files next to them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_download
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError, shorten
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.screening._experts import Experts
from hf_sane.screening._other_formats import BY_SUFFIX, OPENERS, Encoding, OtherFile, choose_other
from hf_sane.tokenization._byte_ranges import HubFile, LocalFile, RandomAccessFile
from hf_sane.tokenization._checkpoints import (
    CheckpointSource,
    find_remote_weights,
    index_shards,
    parse_index,
    read_weights,
    weights_path,
)
from hf_sane.tokenization._formats import WHOLE, file_format
from hf_sane.tokenization._kept_ranges import remove_old_ranges
from hf_sane.tokenization._safetensors_header import TensorEntry, fetch_entries, read_entries
from hf_sane.tokenization._weight_files import SAFETENSORS_NAMES, is_index, is_pickle_name
from hf_sane.zoo.importing._cards import CardFacts

CONFIG, CARD = "config.json", "README.md"


@dataclass(frozen=True)
class Surroundings:
    """Files next to the weights.

    Attributes:
        code: Python files, and code that `config.json` refers to.
        pickles: Names of files that could run code when opened.
        licence: Licence named in the card, if any.
        has_card: Whether there can be a card, which a single file does not have.
    """

    code: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()
    licence: str | None = None
    has_card: bool = False


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose headers have been read.

    Attributes:
        source: The user's name for it.
        format: Format of its files, as a continuation of "it is".
        files: Tensors and their positions, by file; empty for files that must be read in full.
        whole: Tensors of a file that must be read in full.
        path: The file, if it must be read in full.
        surroundings: What is next to it.
        experts: Experts that are stored together in one tensor.
        encodings: How tensors that are not plain values are stored.
        metadata: Metadata of the file.
        skipped: Tensors whose values cannot be read, with the reason.
    """

    source: str
    format: str
    files: tuple[tuple[RandomAccessFile, Mapping[str, TensorEntry]], ...] = ()
    whole: StateDict = field(default_factory=dict)
    path: Path | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    experts: Experts = field(default_factory=Experts)
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def outlines(self) -> dict[str, Tensor]:
        """Tensors as stored, with fused experts, on the meta device."""
        entries = self.entries
        found = {name: entry.outline for name, entry in entries.items() if name not in self.experts.places}
        return found | self.experts.wholes

    def encoding(self, name: str) -> Encoding:
        """How a tensor is stored."""
        whole, _ = self.experts.places.get(name, (name, 0))
        return self.encodings.get(whole) or Encoding.plain(self.entries[name].outline.dtype)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """All tensors that are read as byte ranges."""
        return {name: entry for _, entries in self.files for name, entry in entries.items()}

    @property
    def bytes_downloaded(self) -> int | None:
        """Bytes downloaded from the Hub so far; `None` for local files."""
        remote = [file.bytes_read for file, _ in self.files if isinstance(file, HubFile)]
        return sum(remote) if remote else None

    def forget(self) -> None:
        """Remove kept parts of files on the Hub, since the scan is finished."""
        _forget(file for file, _ in self.files)


def open_for_scan(checkpoint: CheckpointSource, *, takes_whole: Callable[[int], bool]) -> OpenCheckpoint:
    """Read the headers of a checkpoint. Files without headers are read in full, and pickles on the Hub not at all.

    Args:
        checkpoint: A file, a folder with one checkpoint, or a repository on the Hub.
        takes_whole: Function of a file's size: whether the file may be downloaded in full.

    Raises:
        FileNotFoundError: If there is no such file, or a folder or repository holds no safetensors.
        InvalidFileError: If a header is damaged, or the format is not supported.
        ConnectionError: If the Hub cannot be reached.
    """
    place = find_source(checkpoint.source, revision=checkpoint.revision)
    if isinstance(place, HubRepo):
        return _open_repository(place, checkpoint, takes_whole)
    path = weights_path(checkpoint)
    surroundings = _around(place) if place.is_dir() else Surroundings()
    found, experts = file_format(path), Experts()
    if found in OPENERS:
        return _opened(str(place), [OPENERS[found](LocalFile(path), partial(_beside, path))], surroundings)
    if found.reader in WHOLE:
        tensors = read_weights(path, key=checkpoint.key)
        return OpenCheckpoint(str(place), found.name, whole=tensors, path=path, surroundings=surroundings)
    if found.reader is None:
        raise InvalidFileError(path, expected="a file of weights", got=found.name, remedy=found.remedy)
    shards = [path] if found.reader == "safetensors" else [path.parent / name for name in index_shards(path)]
    if unread := [shard for shard in shards if file_format(shard).reader != "safetensors"]:
        raise InvalidFileError(
            unread[0], expected="a safetensors file", got=file_format(unread[0]).name, remedy="scan only the shards"
        )
    files = tuple((LocalFile(shard), experts.split(read_entries(shard))) for shard in shards)
    return OpenCheckpoint(str(place), found.name, files, surroundings=surroundings, experts=experts)


def _opened(source: str, parts: Sequence[OtherFile], surroundings: Surroundings) -> OpenCheckpoint:
    """A checkpoint in one or several GGUF or ONNX files."""
    experts = Experts()
    return OpenCheckpoint(
        source,
        parts[0].name if len(parts) == 1 else f"{len(parts)} files, of which the first is {parts[0].name}",
        tuple((file, experts.split(entries)) for part in parts for file, entries in part.files),
        surroundings=surroundings,
        experts=experts,
        encodings={name: encoding for part in parts for name, encoding in part.encodings.items()},
        metadata=parts[0].metadata,
        skipped={name: reason for part in parts for name, reason in part.skipped.items()},
    )


def _open_repository(
    repo: HubRepo, checkpoint: CheckpointSource, takes_whole: Callable[[int], bool]
) -> OpenCheckpoint:
    api = HfApi()
    info = patiently(api.model_info, repo.repo_id, revision=repo.revision)
    surroundings = _around_remote(repo, info)
    try:
        names = _remote_names(repo, checkpoint, info)
    except FileNotFoundError as error:
        return OpenCheckpoint(str(repo), f"not read: {shorten(error, 400)}", surroundings=surroundings)
    remove_old_ranges()
    files: list[HubFile] = []

    def open_file(name: str) -> HubFile:
        files.append(HubFile(repo.repo_id, name, info.sha, api, takes_whole=takes_whole, keeps=True))
        return files[-1]

    def open_beside(file: str, name: str) -> HubFile:
        path = (PurePosixPath(file).parent / _below(file, name)).as_posix()
        if path not in _stored(info):
            raise _missing(file, name)
        found = open_file(path)
        found.read(0, 1)  # makes its size known
        return found

    try:
        if (opener := BY_SUFFIX.get(PurePosixPath(names[0]).suffix)) is not None:
            others = [opener(open_file(name), partial(open_beside, name)) for name in names]
            return _opened(str(repo), others, surroundings)
        experts = Experts()
        parts = tuple((file, experts.split(fetch_entries(file))) for file in map(open_file, names))
    except InvalidFileError:
        _forget(files)
        raise
    kind = "a safetensors file" if len(names) == 1 else f"{len(names)} safetensors files"
    return OpenCheckpoint(str(repo), kind, parts, surroundings=surroundings, experts=experts)


def _forget(files: Iterable[RandomAccessFile]) -> None:
    for file in files:
        if isinstance(file, HubFile):
            file.forget()


def _remote_names(repo: HubRepo, checkpoint: CheckpointSource, info: ModelInfo) -> list[str]:
    """The files to read: of safetensors if there are any, otherwise of GGUF or ONNX.

    Raises:
        FileNotFoundError: If there is none, or the choice is ambiguous.
    """
    try:
        name = find_remote_weights(repo, checkpoint, info)
    except FileNotFoundError:
        if names := choose_other(str(repo), _stored(info), checkpoint.subfolder, checkpoint.variant):
            return names
        raise
    if not is_index(name):
        return [name]
    index = Path(patiently(hf_hub_download, repo.repo_id, name, revision=info.sha))
    return [(PurePosixPath(name).parent / shard).as_posix() for shard in parse_index(index)]


def _stored(info: ModelInfo) -> list[str]:
    """Names of all files of a repository."""
    return sorted(file.rfilename for file in info.siblings or ())


def _beside(file: Path, name: str) -> LocalFile:
    """The file that another one on this machine refers to."""
    path = file.parent / _below(file, name)
    if not path.is_file():
        raise _missing(file, name)
    return LocalFile(path)


def _below(file: str | Path, name: str) -> str:
    """The name of the file that another one refers to, if it is in the same folder or below.

    Raises:
        InvalidFileError: If it is elsewhere.
    """
    if not name.isprintable() or "\\" in name or PurePosixPath(name).is_absolute() or ".." in name.split("/"):
        expected = "names of files next to it"
        raise InvalidFileError(file, expected=expected, got=repr(name), remedy="do not trust this file")
    return name


def _missing(file: str | Path, name: str) -> InvalidFileError:
    remedy = "download both files, or ask the author for the other one"
    return InvalidFileError(file, expected=f"the file {name} with its values next to it", got="none", remedy=remedy)


def _around(folder: Path) -> Surroundings:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    card = folder / CARD
    licence = None
    if card.is_file():
        licence = CardFacts.from_file(card).columns["license"]
    return Surroundings(
        code=_code(names, folder / CONFIG if CONFIG in names else None),
        pickles=tuple(name for name in names if is_pickle_name(name)),
        licence=licence,
        has_card=True,
    )


def _around_remote(repo: HubRepo, info: ModelInfo) -> Surroundings:
    names, config = _stored(info), None
    if CONFIG in names:
        config = Path(patiently(hf_hub_download, repo.repo_id, CONFIG, revision=info.sha))
    return Surroundings(
        code=_code(names, config),
        pickles=tuple(name for name in names if is_pickle_name(name)),
        licence=CardFacts.from_info(info).columns.get("license"),
        has_card=True,
    )


def _code(names: list[str], config: Path | None) -> tuple[str, ...]:
    """Code that `trust_remote_code=True` would run, and other Python files."""
    found = [name for name in names if name.endswith(".py")]
    if config is not None:
        document = read_document(config, expected="the configuration of a network", remedy="correct or remove it")
        if asked := document.mapping().get("auto_map"):
            found.append(f"{CONFIG} (auto_map: {', '.join(map(str, asked)) if isinstance(asked, dict) else asked})")
    return tuple(found)


def targets_in(folder: Path, *, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Checkpoints of a folder: itself if it is one checkpoint, otherwise its files and subfolders of weights.

    Empty or unreadable subfolders count as one file each. Links to a folder that contains them are skipped.

    Args:
        folder: The folder.
        above: Folders that contain it, without links.
    """
    if _holds_weights(folder):
        yield folder
        return
    within = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if not _has_content(path):
            yield from () if path.name.startswith(".") else (path,)
        elif not path.name.startswith(".") and path.resolve() not in within:
            yield from targets_in(path, above=within)


def _has_content(path: Path) -> bool:
    """Whether a path is a folder with content."""
    try:
        return path.is_dir() and any(not inside.name.startswith(".") for inside in path.iterdir())
    except PermissionError:
        return False


def _holds_weights(folder: Path) -> bool:
    """Whether a folder is one checkpoint: its weights have a common name, or are in a single file."""
    try:
        chosen = weights_path(CheckpointSource(folder))
    except (FileNotFoundError, InvalidFileError):
        return False
    if is_index(chosen.name) or chosen.name in SAFETENSORS_NAMES:
        return True
    others = (path for path in chosen.parent.iterdir() if path.is_file() and path != chosen)
    return not any(file_format(path).holds_weights for path in others if not path.name.startswith("."))
