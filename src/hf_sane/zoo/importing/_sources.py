"""Sources of imports: repositories on the Hub and folders, with a common interface."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi
from safetensors.torch import save_file

from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, name_some
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.records._manifests import CARD
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import HubBusyError, patiently
from hf_sane.records._sources import describe_silence, parse_source
from hf_sane.tokenization._formats import FileFormat, Reader, file_format
from hf_sane.tokenization._safetensors_header import fetch_header, read_header
from hf_sane.tokenization._weight_files import (
    INDEX_SUFFIX,
    PICKLE_INDEX_SUFFIX,
    SAFETENSORS_NAMES,
    SHARD,
    choose_weights,
    is_index,
    is_pickle_name,
)
from hf_sane.zoo.importing._arrays import ARRAY_FILES, WEIGHTS, ArrayZoo, find_arrays
from hf_sane.zoo.importing._cards import CardFacts
from hf_sane.zoo.importing._published import BESIDE, CHECKPOINT_FOLDER, find_run, run_folders
from hf_sane.zoo.importing._settings import ImportSettings
from hf_sane.zoo.importing._trees import FolderTree, Tree, format_or_unknown, scratch_folder

# The same weights in another precision: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`.
VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)(?=\.safetensors$|\.json$)")
PICKLE_NAMES = tuple(
    f"{stem}.bin{suffix}"
    for stem in ("pytorch_model", "adapter_model", "diffusion_pytorch_model")
    for suffix in ("", ".index.json")
)
NO_NETWORK = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)$")
INDICES = (f".safetensors{INDEX_SUFFIX}", PICKLE_INDEX_SUFFIX)
CHECKPOINT_SUFFIXES = (".safetensors", *INDICES, *PICKLE_SUFFIXES)
LISTED_KINDS = 5
SHOWN_FILES = 2  # of a folder without networks
# Files that make a folder a single model.
WHOLE_MODELS = {f"{name}{suffix}" for name in SAFETENSORS_NAMES for suffix in ("", ".index.json")}


@dataclass(frozen=True)
class Repository:
    """Files that belong together, on the Hub or in a folder, and access to them.

    Attributes:
        repo_id: `owner/name`, or the path below the imported folder.
        label: `repo_id`, with `@revision` if one was requested.
        revision: Commit on the Hub; `None` for a folder.
        state: Text that changes when the files change.
        files: Sizes in bytes, by path.
        fetch: Function that makes a file available locally.
        read_header: Function that reads the tensors of a safetensors file on the meta device, from its header only.
        digests: SHA-256 of large files on the Hub, by path.
        readers: Reader of every file with weights, by path; chosen by name on the Hub and by first bytes in a folder.
        card: Facts that do not require the weights.
        group: Where other checkpoints of the same run may be: the repository on the Hub, otherwise a folder.
        run: Training run, if a published zoo has a folder per run.
        properties: Properties of the network, if it is part of an array of networks.
    """

    repo_id: str
    label: str
    revision: str | None
    state: str
    files: Mapping[str, int]
    fetch: Callable[[str], Path]
    read_header: Callable[[str], StateDict]
    readers: Mapping[str, Reader]
    digests: Mapping[str, str] = field(default_factory=dict)
    card: CardFacts = field(default_factory=CardFacts)
    group: str = ""
    run: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.repo_id)


@dataclass(frozen=True)
class Source:
    """A repository that has not been opened yet; if that fails, the import continues with the next one."""

    label: str
    open: Callable[[], list[Repository]]


def find_sources(arguments: ImportSettings, api: HfApi, tree: Tree | None = None) -> Iterator[Source]:
    """Sources of an import, in order and without duplicates: named repositories, those listed by the Hub, the tree."""
    seen = set()
    for text in arguments.repos:
        if text not in seen:
            seen.add(text)
            yield Source(text, partial(_open_named, api, text))
    if arguments.lists_models:
        listed = partial(
            api.list_models,
            author=arguments.author,
            filter=arguments.filter or None,
            search=arguments.search,
            sort="downloads",
            limit=arguments.limit,
        )
        for info in patiently(lambda: list(listed())):
            if info.id not in seen:
                seen.add(info.id)
                yield Source(info.id, partial(_open_remote, api, info.id, None))
    if tree is not None:
        arrays = list(find_arrays(tree))
        for folder in arrays:
            yield from _array_sources(tree, folder)
        theirs = {str(folder / name) for folder in arrays for name in ARRAY_FILES}
        places = [place for place in _local_repositories(tree) if place.label not in theirs]
        for place in places:
            if _is_below(place.folder, arguments.subfolder):
                yield Source(place.label, partial(_open_local, tree, place))
        if arguments.subfolder is None:
            yield from _idle_folders(tree, places, arrays)
        for error in tree.unreadable:
            yield Source(PurePosixPath(error.filename).name, partial(_refuse, error))
        if tree.cut is not None:  # an error that a repeated import tries again
            yield Source(tree.name, partial(_refuse, OSError(f"{tree.cut}; download it again")))


def _refuse(error: Exception) -> list[Repository]:
    raise error


def _idle_folders(tree: Tree, places: Sequence["_Place"], arrays: Sequence[PurePosixPath]) -> Iterator[Source]:
    """Folders without networks that are probably runs: empty ones, and those of whose siblings most have networks."""
    holding = [PurePosixPath("_"), *(place.folder / "_" for place in places), *(folder / "_" for folder in arrays)]
    used = {folder for path in holding for folder in path.parents}
    models = {place.folder for place in places if place.is_model}
    idle: dict[PurePosixPath, dict[PurePosixPath, list[str]]] = {}  # parent to folder to files
    for path in (*tree.sizes, *(f"{folder}/" for folder in tree.empty)):
        above = [PurePosixPath(path) if path.endswith("/") else PurePosixPath(path).parent]
        above += above[0].parents
        found = next((folder for folder in reversed(above) if folder not in used), None)
        is_hidden = any(part.startswith((".", "__")) for part in above[0].parts)
        if found is not None and not is_hidden and models.isdisjoint(above):
            idle.setdefault(found.parent, {}).setdefault(found, []).extend([path] * (not path.endswith("/")))
    for parent, folders in idle.items():
        beside = sum(folder.parent == parent for folder in used if folder.name)
        for folder, files in folders.items():
            if not files or beside > len(folders):
                yield Source(str(folder), partial(_refuse_folder, tree, files))


def _refuse_folder(tree: Tree, files: Sequence[str]) -> list[Repository]:
    names = {name: file for file in files if not (name := PurePosixPath(file).name).startswith(".")}
    shown = [name for name in names if not BESIDE.fullmatch(name)][:SHOWN_FILES]
    kinds = (f"{name} is {format_or_unknown(tree.fetch(names[name])).name}" for name in shown)
    raise ValueError(f"no network is in this folder: {name_some(kinds) or 'it is empty'}")


def _open_named(api: HfApi, text: str) -> list[Repository]:
    place = parse_source(text)
    if isinstance(place, Path):
        what = "is on this machine: pass it as folder (--folder)" if place.exists() else "does not exist"
        raise ValueError(f"expected a repository on the Hub, owner/name, got a path, which {what}")
    try:
        return _open_remote(api, place.repo_id, place.revision)
    except HubBusyError:
        raise
    except ConnectionError as error:
        raise ConnectionError(describe_silence(error, text, api=api)) from error


def _open_remote(api: HfApi, repo_id: str, revision: str | None) -> list[Repository]:
    info = patiently(api.model_info, repo_id, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    sha = info.sha or "main"

    def fetch(file: str) -> Path:
        return Path(patiently(api.hf_hub_download, repo_id, file, revision=sha))

    def read_header(file: str) -> StateDict:
        return patiently(fetch_header, repo_id, file, revision=sha, api=api)

    return [
        Repository(
            repo_id=info.id,
            label=repo_id if revision is None else f"{repo_id}@{revision}",
            revision=sha,
            state=sha,
            # Files without a known size cannot be compared with a limit.
            files={sibling.rfilename: sibling.size for sibling in siblings if sibling.size is not None},
            fetch=fetch,
            read_header=read_header,
            digests={sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs},
            readers=_readers_by_name(sibling.rfilename for sibling in siblings),
            card=CardFacts.from_info(info),
        )
    ]


def _array_sources(tree: Tree, folder: PurePosixPath) -> Iterator[Source]:
    """One source for each row of an array of networks, with its properties from the table next to the array."""
    try:
        zoo = ArrayZoo(tree, folder)
    except (InvalidFileError, OSError) as error:
        yield Source(str(folder / WEIGHTS), partial(_refuse, error))
        return
    file = scratch_folder(zoo, "hf_sane-rows-") / "row.safetensors"
    state = tree.state(str(folder / WEIGHTS))
    header = zoo.header()
    size = sum(tensor.nbytes for tensor in header.values())

    def open_row(row: int) -> list[Repository]:
        name = zoo.name(row)

        def fetch(_: str) -> Path:
            save_file(zoo.state_dict(row), file)
            return file

        return [
            Repository(
                repo_id=name,
                label=name,
                revision=None,
                state=state,
                files={name: size},
                fetch=fetch,
                read_header=lambda _: header,
                readers={name: "safetensors"},
                group=name,
                properties={} if zoo.table is None else zoo.table.rows[row],
            )
        ]

    for row in range(len(zoo)):
        yield Source(zoo.name(row), partial(open_row, row))


@dataclass(frozen=True)
class _Place:
    """Files below a folder that belong together.

    Attributes:
        label: Name of the repository.
        group: Where other checkpoints of the same run may be.
        folder: Their folder, relative to the root.
        files: Their paths, relative to the root.
        run: Folder of the training run in a published zoo, with its settings and results.
        is_model: Whether the whole folder is one model.
    """

    label: str
    group: str
    folder: PurePosixPath
    files: Sequence[str]
    run: str | None = None
    is_model: bool = False


def _local_repositories(tree: Tree) -> Iterator[_Place]:
    """Model folders, and every other checkpoint file on its own."""
    paths = [path for path in map(PurePosixPath, tree.sizes) if not any(part.startswith(".") for part in path.parts)]
    beside: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in paths:
        beside.setdefault(path.parent, []).append(path)
    if runs := run_folders(map(str, paths)):
        paths = [path for path in paths if not BESIDE.fullmatch(path.name)]
    folders = {path.parent for path in paths if path.name in WHOLE_MODELS}
    for folder in sorted(folders):
        is_checkpoint = folder.name != "" and CHECKPOINT_FOLDER.search(folder.name) is not None
        run = find_run(folder, runs)
        group = folder.parent if is_checkpoint else folder
        files = [str(path) for path in beside[folder]]
        yield _Place(_label(folder, tree), run or _label(group, tree), folder, files, run, is_model=True)
    shards = {folder: [str(path) for path in found if SHARD.search(path.name)] for folder, found in beside.items()}
    for path in paths:
        if SHARD.search(path.name) or not folders.isdisjoint(path.parents):
            continue
        if path.name.lower().endswith((*CHECKPOINT_SUFFIXES, ".gguf", ".onnx")) or tree.may_hold_weights(str(path)):
            run = find_run(path, runs)
            files = [str(path), *shards[path.parent]]
            yield _Place(str(path), run or _label(path.parent, tree), path.parent, files, run)


def _read_local_header(path: Path) -> StateDict:
    _refuse_unread(file_format(path))
    return read_header(path)


def _refuse_unread(found: FileFormat) -> None:
    if found.reader is None:
        raise ValueError(f"it is {found.name}, which is not supported; {found.remedy}")


def _readers_by_name(files: Iterable[str]) -> dict[str, Reader]:
    """Readers of the files with weights, chosen by name."""
    found: dict[str, Reader] = {}
    for file in files:
        if file.endswith(".safetensors"):
            found[file] = "safetensors"
        elif file.endswith(INDICES) or is_index(file):
            found[file] = "index"
        elif is_pickle_name(file):
            found[file] = "pickle"
    return found


def _label(folder: PurePosixPath, tree: Tree) -> str:
    return str(folder) if folder.name else tree.name


def _is_below(folder: PurePosixPath, subfolder: str | None) -> bool:
    """Whether a path ends with the requested subfolder."""
    wanted = PurePosixPath((subfolder or "").strip("/")).parts
    return not wanted or folder.parts[-len(wanted) :] == wanted


def _open_local(tree: Tree, place: _Place) -> list[Repository]:
    names = {PurePosixPath(path).name: path for path in place.files}
    sizes = {name: size for name, path in names.items() if (size := tree.sizes[path]) is not None}
    if broken := [name for name in names if name not in sizes and name.endswith(CHECKPOINT_SUFFIXES)]:
        raise FileNotFoundError(f"{name_some(broken)}: a link to a file that does not exist")
    if isinstance(tree, FolderTree) and place.is_model:
        check_finished(tree.root / place.folder)

    def fetch(file: str) -> Path:
        return tree.fetch(names[file])

    formats = {
        name: format_or_unknown(fetch(name))
        for name in sizes
        if isinstance(tree, FolderTree) or tree.may_hold_weights(names[name])
    }
    by_bytes = {name: found.reader for name, found in formats.items() if found.reader is not None}
    readers = _readers_by_name(sizes) | by_bytes
    if not readers and (unread := [found for found in formats.values() if found.holds_weights]):
        _refuse_unread(unread[0])
    card = CardFacts.from_file(fetch(CARD)) if CARD in sizes else CardFacts()
    author = place.label.partition("/")[0] if "/" in place.label else None
    return [
        Repository(
            repo_id=place.label,
            label=place.label,
            revision=None,
            state=",".join(tree.state(names[name]) for name in sizes),
            files=sizes,
            fetch=fetch,
            read_header=lambda file: _read_local_header(fetch(file)),
            readers=readers,
            card=replace(card, columns={"author": author, **card.columns}),
            group=place.group,
            run=place.run,
        )
    ]


def find_networks(
    files: Mapping[str, int],
    patterns: Sequence[str],
    *,
    allow_pickle: bool,
    readers: Mapping[str, Reader] | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> list[str]:
    """The files of a repository that hold one network each: weights, or the index of their shards.

    Args:
        files: Paths in the repository.
        patterns: Files to import; by default those described in `ImportSettings.files`.
        allow_pickle: Whether to include pickles.
        readers: Reader of each file with weights; if `None`, chosen by name.
        subfolder: Folder to look in instead of the root.
        variant: Which of several precisions to import, such as `"fp16"`; only for safetensors.

    Raises:
        FileNotFoundError: If there are no weights of this variant in the subfolder.
        ValueError: If there are none, with the reason, or a path points outside the repository.
    """
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError(f"it names the file {file!r} outside the repository; do not trust it")
    if variant is not None:
        return [choose_weights("it", files, subfolder=subfolder, variant=variant, local=False)]
    readers = _readers_by_name(files) if readers is None else readers
    prefix = f"{subfolder.strip('/')}/" if subfolder and subfolder.strip("/") else ""
    if prefix:
        readers = {file: reader for file, reader in readers.items() if file.startswith(prefix)}
        files = {file: size for file, size in files.items() if file.startswith(prefix)}
    networks = [file for file in readers if not SHARD.search(file) and not NO_NETWORK.search(file)]
    if readers and not networks and not patterns:
        raise ValueError(f"judged by their names, {name_some(readers)} hold no network, but the state of a training")
    pickles = [file for file in networks if is_pickled(file, readers)]
    weights = [file for file in networks if file not in pickles]
    if patterns:
        chosen = [file for file in (*weights, *pickles) if any(fnmatch(file, pattern) for pattern in patterns)]
        if not chosen:
            raise ValueError(f"none of its weights match {', '.join(patterns)}; it holds {_kinds(files)}")
        return sorted(chosen)
    for name in (*SAFETENSORS_NAMES, *(f"{name}.index.json" for name in SAFETENSORS_NAMES)):
        if prefix + name in weights:
            return [prefix + name]
    if weights:
        return sorted(file for file in weights if VARIANT.sub("", file) not in weights or not VARIANT.search(file))
    if pickles and not allow_pickle:
        raise ValueError(
            "it holds only pickles, which can run code when they are opened; ask its author for safetensors, or allow "
            "pickles (--allow-pickle; opened with weights_only)"
        )
    for name in PICKLE_NAMES:
        if prefix + name in pickles:
            return [prefix + name]
    if not pickles:
        place = f" in its folder {subfolder}" if prefix else ""
        raise ValueError(f"it holds no safetensors and no pickled weights{place}, but {_kinds(files)}")
    return sorted(pickles)


def is_pickled(file: str, readers: Mapping[str, Reader]) -> bool:
    """Whether a file is a pickle, or an index of pickles."""
    return readers[file] == "pickle" or file.endswith(PICKLE_INDEX_SUFFIX)


def _kinds(files: Mapping[str, int]) -> str:
    """The kinds of existing files, for messages."""
    kinds = sorted({PurePosixPath(file).suffix or PurePosixPath(file).name for file in files})
    return name_some(kinds, LISTED_KINDS) or "no files"
