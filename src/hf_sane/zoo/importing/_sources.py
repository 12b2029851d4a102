"""Where networks can be imported from: repositories on the Hub and folders, seen alike."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from hf_sane.core._types import StateDict
from hf_sane.records._outputs import check_finished
from hf_sane.records._patience import patiently
from hf_sane.records._sources import parse_source
from hf_sane.tokenization._formats import UNKNOWN, FileFormat, Reader, file_format
from hf_sane.tokenization._safetensors_header import fetch_header, read_header
from hf_sane.tokenization._weight_files import (
    INDEX_SUFFIX,
    PICKLE_INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    SAFETENSORS_NAMES,
    SHARD,
    choose_weights,
    is_index,
    is_pickle_name,
)
from hf_sane.zoo.importing._cards import CardFacts
from hf_sane.zoo.importing._settings import ImportSettings

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
# Model folders that are one run together with those beside them, as trainers name them.
CHECKPOINT_FOLDER = re.compile(
    r"^((checkpoint|ckpt|epoch|global_step|step|iter|iteration)[-_]?\d+|best|last|latest|final)([-_](model|checkpoint))?$"
)
LISTED_KINDS = 5
# What a folder has in it that is one model.
WHOLE_MODELS = {f"{name}{suffix}" for name in SAFETENSORS_NAMES for suffix in ("", ".index.json")}


@dataclass(frozen=True)
class Repository:
    """Files that belong together, on the Hub or in a folder, and how to get at them.

    Attributes:
        repo_id: `owner/name`, or the path below the imported folder.
        label: `repo_id`, with `@revision` if one was asked for.
        revision: Commit on the Hub; `None` for a folder.
        state: Changes when the files do.
        files: Path to size in bytes.
        fetch: Brings a file here.
        read_header: Tensors of a safetensors file on the meta device, from its header alone.
        digests: Path to SHA-256, of large files on the Hub.
        readers: Path of every file with weights to what reads it: on the Hub by its name, in a folder by its first
            bytes.
        card: What is known without the weights.
        group: What may hold other checkpoints of the same run: the repository itself on the Hub, a folder elsewhere.
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

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.repo_id)


@dataclass(frozen=True)
class Source:
    """A repository that has not been looked at yet: asking for it may fail, and then the next one is tried."""

    label: str
    open: Callable[[], list[Repository]]


def find_sources(arguments: ImportSettings, api: HfApi) -> Iterator[Source]:
    """Sources of an import in order: named repositories, those listed by the Hub, the folder; no duplicates."""
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
    if arguments.folder is not None:
        root = Path(arguments.folder)
        for label, group, folder, files in _local_repositories(root):
            if not _is_below(folder.relative_to(root), arguments.subfolder):
                continue
            yield Source(label, partial(_open_local, label, group, folder, files))


def _open_named(api: HfApi, text: str) -> list[Repository]:
    place = parse_source(text)
    if isinstance(place, Path):
        what = "is on this machine: give it as folder (--folder)" if place.exists() else "does not exist"
        raise ValueError(f"expected a repository on the Hub, owner/name, got a path, which {what}")
    return _open_remote(api, place.repo_id, place.revision)


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
            # What has no size cannot be held against a limit.
            files={sibling.rfilename: sibling.size for sibling in siblings if sibling.size is not None},
            fetch=fetch,
            read_header=read_header,
            digests={sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs},
            readers=_readers_by_name(sibling.rfilename for sibling in siblings),
            card=CardFacts.from_info(info),
        )
    ]


def _local_repositories(root: Path) -> Iterator[tuple[str, str, Path, list[Path]]]:
    """Label, group, folder and files of each: model folders, and every other checkpoint file on its own."""
    found = (path for path in root.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
    paths = sorted(path for path in found if not _is_hidden(path, root))
    folders = {path.parent for path in paths if path.name in WHOLE_MODELS}
    for folder in sorted(folders):
        label = _label(folder, root)
        is_checkpoint = folder != root and CHECKPOINT_FOLDER.search(folder.name) is not None
        group = _label(folder.parent, root) if is_checkpoint else label
        yield label, group, folder, [path for path in paths if path.parent == folder]
    for path in paths:
        if SHARD.search(path.name) or any(folder in path.parents for folder in folders):
            continue
        if path.name.lower().endswith(CHECKPOINT_SUFFIXES) or _format(path).holds_weights:
            parts = [p for p in paths if p.parent == path.parent and (p == path or SHARD.search(p.name))]
            yield path.relative_to(root).as_posix(), _label(path.parent, root), path.parent, parts


def _format(path: Path) -> FileFormat:
    """What a file is; unknown, where it cannot be opened: then its name decides, and whoever reads it says why."""
    try:
        return file_format(path)
    except OSError:
        return UNKNOWN


def _read_local_header(path: Path) -> StateDict:
    _refuse_unread(file_format(path))
    return read_header(path)


def _refuse_unread(found: FileFormat) -> None:
    if found.reader is None:
        raise ValueError(f"it is {found.name}, which is not read; {found.remedy}")


def _readers_by_name(files: Iterable[str]) -> dict[str, Reader]:
    """What reads the files with weights, by their names."""
    found: dict[str, Reader] = {}
    for file in files:
        if file.endswith(".safetensors"):
            found[file] = "safetensors"
        elif file.endswith(INDICES) or is_index(file):
            found[file] = "index"
        elif is_pickle_name(file):
            found[file] = "pickle"
    return found


def _label(folder: Path, root: Path) -> str:
    return root.resolve().name if folder == root else folder.relative_to(root).as_posix()


def _is_below(folder: Path, subfolder: str | None) -> bool:
    """Whether the end of a path is the wanted subfolder."""
    wanted = PurePosixPath((subfolder or "").strip("/")).parts
    return not wanted or folder.parts[-len(wanted) :] == wanted


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _open_local(label: str, group: str, folder: Path, files: Sequence[Path]) -> list[Repository]:
    if broken := [path.name for path in files if not path.exists() and path.name.endswith(CHECKPOINT_SUFFIXES)]:
        raise FileNotFoundError(f"{', '.join(broken[:LISTED_KINDS])}: a link to a file that does not exist")
    if any(path.name in WHOLE_MODELS for path in files):
        check_finished(folder)
    states = {path.name: path.stat() for path in files if path.exists()}
    formats = {name: _format(folder / name) for name in states}
    by_bytes = {name: found.reader for name, found in formats.items() if found.reader is not None}
    readers = _readers_by_name(states) | by_bytes
    if not readers and (unread := [found for found in formats.values() if found.holds_weights]):
        _refuse_unread(unread[0])
    card = CardFacts()
    if "README.md" in states:
        card = CardFacts.from_file(folder / "README.md")
    author = label.partition("/")[0] if "/" in label else None
    return [
        Repository(
            repo_id=label,
            label=label,
            revision=None,
            state=",".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states.values()),
            files={name: state.st_size for name, state in states.items()},
            fetch=lambda file: folder / file,
            read_header=lambda file: _read_local_header(folder / file),
            readers=readers,
            card=replace(card, columns={"author": author, **card.columns}),
            group=group,
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
    """The files of a repository that stand for one network each: weights, or the index of their shards.

    Args:
        files: Paths in the repository.
        patterns: Which ones to take; as described in `ImportSettings.files` if there are none.
        allow_pickle: Whether pickles may be among them.
        readers: What reads each file with weights; told from the names if `None`.
        subfolder: The folder to look in, in place of the root.
        variant: Which one of several precisions, such as `"fp16"`: safetensors only.

    Raises:
        FileNotFoundError: If there is nothing of that variant in that subfolder.
        ValueError: If there are none, with the reason, or a path leads out of the repository.
    """
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError(f"it names the file {file!r}, which lies outside of it; refused, do not trust it")
    if variant is not None:
        return [choose_weights("it", files, subfolder=subfolder, variant=variant, local=False)]
    readers = _readers_by_name(files) if readers is None else readers
    prefix = f"{subfolder.strip('/')}/" if subfolder and subfolder.strip("/") else ""
    if prefix:
        readers = {file: reader for file, reader in readers.items() if file.startswith(prefix)}
        files = {file: size for file, size in files.items() if file.startswith(prefix)}
    networks = [file for file in readers if not SHARD.search(file) and not NO_NETWORK.search(file)]
    pickles = [file for file in networks if is_pickled(file, readers)]
    weights = [file for file in networks if file not in pickles]
    if patterns:
        chosen = [file for file in (*weights, *pickles) if any(fnmatch(file, pattern) for pattern in patterns)]
        if not chosen:
            raise ValueError(f"no weights among its files match {', '.join(patterns)}; it holds {_kinds(files)}")
        return sorted(chosen)
    for name in (*SAFETENSORS_NAMES, *(f"{name}.index.json" for name in SAFETENSORS_NAMES)):
        if prefix + name in weights:
            return [prefix + name]
    if weights:
        return sorted(file for file in weights if VARIANT.sub("", file) not in weights or not VARIANT.search(file))
    if pickles and not allow_pickle:
        raise ValueError(
            "it holds pickles only, which can run code when they are opened; ask its author for safetensors, or allow "
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
    """What else there is, in a few words."""
    kinds = sorted({PurePosixPath(file).suffix or PurePosixPath(file).name for file in files})
    return ", ".join(kinds[:LISTED_KINDS]) + (" and more" if len(kinds) > LISTED_KINDS else "") or "no files"
