"""The tensors of a checkpoint as byte ranges of files, on this machine or the Hub, and the files next to them."""

import os
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
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.screening._experts import Experts
from hf_sane.screening._finding import Finding, damaged
from hf_sane.screening._other_formats import BY_SUFFIX, OPENERS, Encoding, OtherFile, choose_other
from hf_sane.screening._pickles import check_whole, is_pickle
from hf_sane.screening._plain import why_not_plain
from hf_sane.screening._shards import Header, join_headers, missing_index
from hf_sane.tokenization._byte_ranges import HubFile, LocalFile, RandomAccessFile
from hf_sane.tokenization._checkpoints import (
    CheckpointSource,
    find_remote_weights,
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
TIED = "tie_word_embeddings"
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".onnx", *PICKLE_SUFFIXES)
DANGLING, RESTORE = "a link to a file that is missing", "restore the file that it points to, or remove the link"


@dataclass(frozen=True)
class Surroundings:
    """Files next to the weights.

    Attributes:
        code: Python files, and code that `config.json` refers to.
        pickles: Names of files that could run code when opened.
        licence: Licence named in the card, if any.
        has_card: Whether there can be a card, which a single file does not have, and it is not damaged.
        are_tied: Whether `config.json` says that input embeddings and the output head are the same
            (`tie_word_embeddings`); `None` if it does not say.
        findings: Damaged cards and configurations.
    """

    code: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()
    licence: str | None = None
    has_card: bool = False
    are_tied: bool | None = None
    findings: tuple[Finding, ...] = ()


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
        findings: Where shards differ from their index.
        listed: The index and all shards that it lists, including missing ones: paths, or names after the id of a
            repository.
        problem: Why nothing can be read; empty if something can.
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
    findings: tuple[Finding, ...] = ()
    listed: tuple[str, ...] = ()
    problem: str = ""

    @property
    def own(self) -> set[str]:
        """Paths of its files, or their names in a repository after its id."""
        return {str(file) for file, _ in self.files} | {*self.listed} | ({str(self.path)} if self.path else set())

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
        if found.reader == "pickle":
            check_whole(path)
        tensors, skipped = _usable(read_weights(path, key=checkpoint.key))
        return OpenCheckpoint(
            str(place), found.name, whole=tensors, path=path, surroundings=surroundings, skipped=skipped
        )
    if found.reader is None:
        raise InvalidFileError(path, expected="a file of weights", got=found.name, remedy=found.remedy)
    if found.reader == "safetensors":
        files = ((LocalFile(path), experts.split(read_entries(path))),)
        lost = tuple(missing_index(path.name, os.listdir(path.parent)))
        return OpenCheckpoint(str(place), found.name, files, surroundings=surroundings, experts=experts, findings=lost)
    listed = parse_index(path)
    headers = {name: _header(path.parent / name) for name in listed}
    entries, findings = join_headers(path, listed, headers)
    return OpenCheckpoint(
        str(place),
        found.name,
        tuple((LocalFile(path.parent / name), experts.split(part)) for name, part in entries.items()),
        surroundings=surroundings,
        experts=experts,
        findings=tuple(findings),
        listed=(str(path), *(str(path.parent / name) for name in listed)),
    )


def _header(shard: Path) -> Header:
    """The tensors of a shard on this machine."""
    if not shard.exists():
        return None
    found = file_format(shard)
    if found.reader != "safetensors":
        remedy = found.remedy if found.reader is None else "scan the shards one by one"
        return InvalidFileError(shard, expected="a safetensors file", got=found.name, remedy=remedy)
    try:
        return read_entries(shard)
    except InvalidFileError as error:
        return error


def _usable(tensors: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Tensors of plain values, and the reasons why others have none."""
    skipped = {name: reason for name, tensor in tensors.items() if (reason := why_not_plain(tensor))}
    found = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    return {name: tensor.resolve_conj().resolve_neg() for name, tensor in found.items()}, skipped


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
        problem = shorten(error, 400)
        return OpenCheckpoint(str(repo), "not read: no weights", surroundings=surroundings, problem=problem)
    remove_old_ranges()
    files: dict[str, HubFile] = {}

    def open_file(name: str) -> HubFile:
        files[name] = HubFile(repo.repo_id, name, info.sha, api, takes_whole=takes_whole, keeps=True)
        return files[name]

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
        experts, findings, headers = Experts(), list[Finding](), dict[str, Header]()
        if not is_index(names[0]):
            entries = {names[0]: fetch_entries(open_file(names[0]))}
        else:
            index = Path(patiently(hf_hub_download, repo.repo_id, names[0], revision=info.sha))
            folder = PurePosixPath(names[0]).parent
            listed = {(folder / name).as_posix(): tensors for name, tensors in parse_index(index).items()}
            headers = {name: _remote_header(name, info, open_file) for name in listed}
            entries, findings = join_headers(PurePosixPath(names[0]), listed, headers)
    except InvalidFileError:
        _forget(files.values())
        raise
    kind = f"{len(entries)} safetensors files" if is_index(names[0]) else "a safetensors file"
    return OpenCheckpoint(
        str(repo),
        kind,
        tuple((files[name], experts.split(part)) for name, part in entries.items()),
        surroundings=surroundings,
        experts=experts,
        findings=tuple(findings),
        listed=tuple(f"{repo.repo_id}/{name}" for name in (*names, *headers)),
    )


def _remote_header(name: str, info: ModelInfo, open_file: Callable[[str], HubFile]) -> Header:
    """The tensors of a shard on the Hub."""
    if name not in _stored(info):
        return None
    try:
        return fetch_entries(open_file(name))
    except InvalidFileError as error:
        return error


def _forget(files: Iterable[RandomAccessFile]) -> None:
    for file in files:
        if isinstance(file, HubFile):
            file.forget()


def _remote_names(repo: HubRepo, checkpoint: CheckpointSource, info: ModelInfo) -> list[str]:
    """The file to read, or the index of shards: of safetensors if there are any, otherwise of GGUF or ONNX.

    Raises:
        FileNotFoundError: If there is none, or the choice is ambiguous.
    """
    try:
        return [find_remote_weights(repo, checkpoint, info)]
    except FileNotFoundError:
        if names := choose_other(str(repo), _stored(info), checkpoint.subfolder, checkpoint.variant):
            return names
        raise


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
    expected, got = f"the file {name} with its values next to it", "no file of this name"
    return InvalidFileError(file, expected=expected, got=got, remedy=remedy)


def _around(folder: Path) -> Surroundings:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    findings: list[Finding] = []
    licence, has_card = None, True
    if CARD in names:
        try:
            licence = CardFacts.from_file(folder / CARD).columns["license"]
        except InvalidFileError as error:
            findings.append(damaged(CARD, error, "warning"))
            has_card = False
    config = _settings(folder / CONFIG if CONFIG in names else None, findings)
    return Surroundings(
        code=_code(names, config),
        are_tied=_are_tied(config),
        pickles=tuple(
            path.relative_to(folder).as_posix()
            for path in visible_files(folder)
            if path.is_file() and (is_pickle_name(path.name) or _is_pickle(path))
        ),
        licence=licence,
        has_card=has_card,
        findings=tuple(findings),
    )


def visible_files(folder: Path) -> list[Path]:
    """All in a folder and its subfolders but folders and hidden files: also broken links, pipes, links to folders."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in sorted([*names, *links]) if not name.startswith(".")]
    return found


def weights_below(folder: Path) -> list[Path]:
    """Files in the subfolders of a checkpoint that are named like weights."""
    return [x for x in visible_files(folder) if x.parent != folder and x.name.lower().endswith(WEIGHT_SUFFIXES)]


def is_dangling(path: Path) -> bool:
    """Whether a path is a link to a file that is missing, or to itself."""
    return path.is_symlink() and not path.exists()


def is_loop(path: Path) -> bool:
    """Whether a path is a link to a folder that contains it."""
    return path.is_symlink() and path.is_dir() and path.resolve() in path.parent.resolve().joinpath("x").parents


def _is_pickle(path: Path) -> bool:
    try:
        return is_pickle(path)
    except OSError:
        return False


def _around_remote(repo: HubRepo, info: ModelInfo) -> Surroundings:
    names, config = _stored(info), None
    if CONFIG in names:
        config = Path(patiently(hf_hub_download, repo.repo_id, CONFIG, revision=info.sha))
    findings: list[Finding] = []
    settings = _settings(config, findings)
    return Surroundings(
        code=_code(names, settings),
        are_tied=_are_tied(settings),
        pickles=tuple(name for name in names if is_pickle_name(name)),
        licence=CardFacts.from_info(info).columns.get("license"),
        has_card=True,
        findings=tuple(findings),
    )


def _settings(config: Path | None, findings: list[Finding]) -> Mapping[str, Any]:
    """The settings in `config.json`; that it is damaged is a finding."""
    if config is None:
        return {}
    try:
        return read_document(
            config, expected="the configuration of a network", remedy="correct or remove it"
        ).mapping()
    except InvalidFileError as error:
        findings.append(damaged(CONFIG, error))
        return {}


def _code(names: list[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Code that `trust_remote_code=True` would run, and other Python files."""
    found = [name for name in names if name.endswith(".py")]
    if asked := settings.get("auto_map"):
        listed = ", ".join(map(str, asked)) if isinstance(asked, dict) else asked
        found.append(f"{CONFIG} (auto_map: {listed})")
    return tuple(found)


def _are_tied(settings: Mapping[str, Any]) -> bool | None:
    """Whether embeddings are tied to the head, according to the settings of the whole or of its part for texts."""
    parts = [settings, *(settings.get(name) for name in ("text_config", "llm_config", "decoder"))]
    said = [part.get(TIED) for part in parts if isinstance(part, dict)]
    return next((value for value in said if isinstance(value, bool)), None)


def targets_in(folder: Path, *, above: tuple[Path, ...] = (), with_loops: bool = False) -> Iterator[Path]:
    """Checkpoints of a folder: itself if it is one checkpoint, otherwise its files and subfolders of weights.

    Empty or unreadable subfolders count as one file each.

    Args:
        folder: The folder.
        above: Folders that contain it, without links.
        with_loops: Whether links to a folder that contains them are returned; otherwise, they are left out.
    """
    if _holds_weights(folder):
        yield folder
        return
    within = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if not _has_content(path):
            yield from () if path.name.startswith(".") else (path,)
        elif path.name.startswith("."):
            continue
        elif path.resolve() not in within:
            yield from targets_in(path, above=within, with_loops=with_loops)
        elif with_loops:
            yield path


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
