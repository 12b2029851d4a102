"""The files next to a checkpoint's weights: pickles, whose opcodes are scanned, and files that are damaged."""

import io
import tempfile
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_sane.records._errors import InvalidFileError, shorten
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.screening._checkpoints import DANGLING, RESTORE, WEIGHT_SUFFIXES, is_dangling, visible_files
from hf_sane.screening._finding import Finding, damaged
from hf_sane.screening._other_formats import INSTALL, OPENERS
from hf_sane.screening._pickles import (
    FAILURES,
    MAX_CHECKED,
    SCANNER,
    check_whole,
    is_pickle,
    read_opcodes,
    scan_pickle,
)
from hf_sane.tokenization._byte_ranges import HubFile, LocalFile
from hf_sane.tokenization._checkpoints import AGAIN, CheckpointSource
from hf_sane.tokenization._formats import JSON, LFS_POINTER, SAFETENSORS, file_format
from hf_sane.tokenization._pickles import DAMAGED, WHOLE_FILE
from hf_sane.tokenization._safetensors_header import read_entries

MAX_PICKLE_BYTES = 64 * 10**6  # of a pickle on the Hub that is downloaded for its opcodes
MAX_PICKLES_BYTES = 4 * MAX_PICKLE_BYTES  # of all pickles of a repository
READ_SIZE = 2**16  # bytes of one request for parts of an archive
NOT_SCANNED = "next to the weights, not scanned"
NO_WEIGHTS = "no weights"


@dataclass
class Beside:
    """Results about the files next to the weights.

    Attributes:
        findings: Code in pickles, and damaged files.
        skipped: Files that were not scanned, with the reason.
        bytes_downloaded: Bytes of pickles that were downloaded; `None` for a local folder.
    """

    findings: list[Finding] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    bytes_downloaded: int | None = None


def scan_beside(checkpoint: CheckpointSource, own: Collection[str]) -> Beside:
    """Scan the opcodes of pickles next to the weights of a folder or repository, and look for damaged files.

    Pickles on the Hub are downloaded for this up to 64 MB each, and 256 MB together; of larger archives of PyTorch,
    only the pickle in them. Nothing is opened.

    Args:
        checkpoint: What was scanned.
        own: The files that hold its weights: paths, or names in a repository after its id.

    Raises:
        ConnectionError: If the Hub cannot be reached.
    """
    place = find_source(checkpoint.source, revision=checkpoint.revision)
    if isinstance(place, HubRepo):
        return _scan_repository(place, own)
    beside = Beside()
    for path in visible_files(place) if place.is_dir() else ():
        if str(path) not in own:
            _scan_file(path, path.relative_to(place).as_posix(), beside)
    return beside


def _scan_file(path: Path, name: str, beside: Beside) -> None:
    """Scan one file next to the weights."""
    if path.is_symlink() and path.is_dir():
        beside.skipped[name] = f"{NOT_SCANNED}: a link to a folder"
        return
    has_name = name.lower().endswith(WEIGHT_SUFFIXES)
    if is_dangling(path):
        if has_name:
            error = InvalidFileError(path, expected="weights", got=DANGLING, remedy=RESTORE)
            beside.findings.append(damaged(name, error))
        else:
            beside.skipped[name] = f"{NO_WEIGHTS}: {DANGLING}"
        return
    try:
        found = file_format(path)
        if has_name and (found == LFS_POINTER or not found.holds_weights):
            got, expected = found.name, "weights, as its name says"
            raise InvalidFileError(path, expected=expected, got=got, remedy=found.remedy)
        if is_pickle(path):
            _scan_opcodes(path, name, beside)
            check_whole(path, max_bytes=MAX_CHECKED)
        elif found == SAFETENSORS:
            read_entries(path)
        elif found in OPENERS:
            OPENERS[found](LocalFile(path), partial(_no_other, path))
    except InvalidFileError as error:
        if error.remedy == INSTALL or isinstance(error, _OtherFileError):
            beside.skipped[name] = f"{NOT_SCANNED}: {found.name}"
        else:
            beside.findings.append(damaged(name, error))
    except OSError as error:
        beside.skipped[name] = f"{NOT_SCANNED}: {shorten(error)}"
    else:
        if found == LFS_POINTER or (found.holds_weights and not is_pickle(path)):
            beside.skipped[name] = f"{NOT_SCANNED}: {found.name}; pass it by its path"
        elif not found.holds_weights:
            beside.skipped[name] = f"{NO_WEIGHTS}: {'a JSON file' if found == JSON else found.name}"


class _OtherFileError(InvalidFileError):
    """The values are in another file."""


def _no_other(path: Path, name: str) -> LocalFile:
    raise _OtherFileError(path, expected="values", got=f"values in {name}", remedy="pass it by its path")


def _scan_opcodes(path: Path, name: str, beside: Beside) -> None:
    """Add what a pickle would run; that there is a pickle is a finding of its own."""
    beside.findings += [found for found in scan_pickle(path, name=name) if found.severity == "error"]
    if unread := read_opcodes(path).unread:
        beside.skipped[name] = f"a pickle, whose opcodes were not scanned, since {unread}"


def _scan_repository(repo: HubRepo, own: Collection[str]) -> Beside:
    """Download the pickles of a repository one by one, as far as the limits allow, and scan their opcodes."""
    api, beside, downloaded = HfApi(), Beside(), 0
    info = patiently(api.model_info, repo.repo_id, revision=repo.revision, files_metadata=True)
    for entry in sorted(info.siblings or (), key=lambda entry: entry.rfilename):
        name, size = entry.rfilename, entry.size or 0
        if f"{repo.repo_id}/{name}" in own:
            continue
        if not name.lower().endswith(WEIGHT_SUFFIXES):
            beside.skipped[name] = f"{NO_WEIGHTS}, by its name"
            continue
        if not name.lower().endswith(PICKLE_SUFFIXES):
            beside.skipped[name] = f"{NOT_SCANNED}: choose it with --subfolder or --variant, or download it"
            continue
        if find_spec(SCANNER) is None:
            beside.skipped[name] = f"{NOT_SCANNED}: {SCANNER} is not installed"
            continue
        file = HubFile(repo.repo_id, name, info.sha, api)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"file{Path(name).suffix}"
            try:
                (Path(folder) / path.name).write_bytes(_fetch_pickle(file, size, MAX_PICKLES_BYTES - downloaded))
                _scan_file(path, name, beside)
            except InvalidFileError as error:
                beside.findings.append(damaged(name, error))
            except (_TooLargeError, OSError) as error:
                beside.skipped[name] = f"{NOT_SCANNED}: {shorten(str(error))}"
        downloaded += file.bytes_read
    beside.bytes_downloaded = downloaded
    return beside


class _TooLargeError(Exception):
    """More bytes than may be downloaded."""


def _fetch_pickle(file: HubFile, size: int, left: int) -> bytes:
    """Download a pickle; of a large archive, only the pickles in it, as a smaller archive.

    Raises:
        InvalidFileError: If the archive is damaged.
        _TooLargeError: If it is too large, and not an archive.
    """
    if size <= min(left, MAX_PICKLE_BYTES):
        return b"".join(file.read_ranges([(0, size)]))
    try:
        head = file.read(0, READ_SIZE)
    except InvalidFileError as error:  # from a server without ranges
        raise _TooLargeError(f"{size:,} bytes, and {error.got}") from error
    if not head.startswith(b"PK"):
        raise _TooLargeError(f"{size:,} bytes, more than {MAX_PICKLE_BYTES:,} of one file and {left:,} of the others")
    try:
        with zipfile.ZipFile(io.BufferedReader(_Stream(file), READ_SIZE)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
            if (total := sum(member.file_size for member in members)) > min(left, MAX_PICKLE_BYTES):
                raise _TooLargeError(f"pickles of {total:,} bytes in it")
            smaller = io.BytesIO()
            with zipfile.ZipFile(smaller, "w") as copy:
                for member in members:
                    copy.writestr(member.filename, archive.read(member))
            return smaller.getvalue()
    except FAILURES as error:
        if isinstance(error, OSError):
            raise
        raise InvalidFileError(str(file), expected=WHOLE_FILE, got=DAMAGED, remedy=AGAIN) from error


class _Stream(io.RawIOBase):
    """A file on the Hub whose parts are requested when they are read."""

    def __init__(self, file: HubFile) -> None:
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._file.size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._file.size)
        content = self._file.read(self._place, stop) if stop > self._place else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
