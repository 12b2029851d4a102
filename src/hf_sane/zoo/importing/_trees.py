"""Files in a folder or a tar or zip archive, with a common interface; archives are never fully unpacked."""

import os
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from hf_sane.records._errors import InvalidFileError, reading, shorten
from hf_sane.records._files import files_below
from hf_sane.tokenization._formats import HEAD_BYTES, TAR, TORCH_ZIP, UNKNOWN, ZIP, FileFormat, file_format
from hf_sane.zoo.importing._cut_archives import CutZip, tar_members

KEPT_FILES = 8  # members of an archive that are unpacked at the same time
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, OSError, NotImplementedError)
# First bytes of files that may hold weights: zip (torch.save), older pickles, an empty or long safetensors header.
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Tree(Protocol):
    """Files by their path relative to a root, with `/` as separator.

    Attributes:
        name: Name of the root, for display.
        sizes: Sizes in bytes by path, in the best order for reading; `None` for broken links.
        empty: Folders with nothing in them.
        unreadable: Errors about folders below the root that cannot be listed.
        cut: Where an archive was cut off, if it was; files before that place can be read.
    """

    name: str
    sizes: Mapping[str, int | None]
    empty: Sequence[str]
    unreadable: list[OSError]
    cut: str | None

    def may_hold_weights(self, path: str) -> bool:
        """Whether a file may hold weights, regardless of its name."""

    def fetch(self, path: str) -> Path:
        """The file on this machine; a member of an archive is removed once more members are fetched."""

    def state(self, path: str) -> str:
        """Text that changes when the file changes."""


class FolderTree:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.resolve().name
        self.cut: str | None = None
        self.unreadable: list[OSError] = []
        nothing: list[Path] = []
        # Other objects than files, such as pipes, might never end. Unreadable files are kept: their reader explains
        # why.
        found = files_below(root, unreadable=self.unreadable, empty=nothing)
        files = (path for path in found if os.path.isfile(path) or not os.path.exists(path))
        self.sizes: Mapping[str, int | None] = {
            path.relative_to(root).as_posix(): _size(path) for path in sorted(files)
        }
        self.empty: Sequence[str] = [path.relative_to(root).as_posix() for path in sorted(nothing)]

    def may_hold_weights(self, path: str) -> bool:
        """Decide by the first bytes."""
        return format_or_unknown(self.root / path).holds_weights

    def fetch(self, path: str) -> Path:
        """Return the file itself."""
        return self.root / path

    def state(self, path: str) -> str:
        """Size and modification time."""
        found = (self.root / path).stat()
        return f"{found.st_size}-{found.st_mtime_ns}"


class ArchiveTree:
    """Members of a tar or zip archive, which are unpacked one by one into a temporary folder when needed.

    A member cannot determine where it is unpacked, and cannot be larger than the archive states. Members of a
    compressed tar archive are read in its order, because going back means decompressing it again.

    Raises:
        InvalidFileError: If it is not an archive, is damaged, or was cut off before the end of its first file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name.partition(".")[0] or path.name
        self._folder = scratch_folder(self, "hf_sane-archive-")
        self._unpacked: OrderedDict[str, Path] = OrderedDict()
        self.unreadable: list[OSError] = []
        self.empty: Sequence[str] = ()
        with self._reading():
            is_zip = _starts_as_zip(path)
            self._is_cut = is_zip and _is_cut(path)
            self._zip = (CutZip if self._is_cut else zipfile.ZipFile)(path) if is_zip else None
            self._tar = None if self._zip is not None else tarfile.open(path)  # noqa: SIM115 - read while it lasts
            weakref.finalize(self, (self._zip or self._tar).close)  # type: ignore[union-attr]
            self._members = self._list()
            if self._is_cut and not self._members:
                raise EOFError("an archive that is damaged, or was cut off before the end of its first file")
        read = f"{len(self._members):,} files were read"
        last = shorten(next(reversed(self._members), ""))
        self.cut = f"the archive was cut off after {last}; {read}" if self._is_cut else None
        self.sizes: Mapping[str, int | None] = {name: size for name, (size, _) in self._members.items()}

    def _reading(self) -> AbstractContextManager[None]:
        remedy = "download it again, or unpack it and pass the folder"
        return reading(self.path, expected="a tar or zip archive", remedy=remedy, also=BROKEN)

    def _list(self) -> dict[str, tuple[int, zipfile.ZipInfo | tarfile.TarInfo]]:
        found: dict[str, tuple[int, zipfile.ZipInfo | tarfile.TarInfo]] = {}
        if self._zip is not None:
            for entry in self._zip.infolist():
                if not entry.is_dir():
                    found[_inside(entry.filename)] = (entry.file_size, entry)
        elif self._tar is not None:
            members, self._is_cut = tar_members(self._tar)
            for member in members:
                if member.isreg():
                    found[_inside(member.name)] = (member.size, member)
        found.pop("", None)
        return found

    def _open(self, path: str) -> IO[bytes]:
        _, member = self._members[path]
        if isinstance(member, zipfile.ZipInfo):
            assert self._zip is not None
            return self._zip.open(member)
        assert self._tar is not None
        stream = self._tar.extractfile(member)
        assert stream is not None  # only regular files are members
        return stream

    def may_hold_weights(self, path: str) -> bool:
        """Decide by the first bytes; the exact format is detected after unpacking."""
        if path in self._unpacked:
            return format_or_unknown(self._unpacked[path]).holds_weights
        with self._reading(), self._open(path) as stream:
            head = stream.read(HEAD_BYTES)
        is_safetensors = head[8:9] == b"{"
        return head.startswith(PICKLED) or is_safetensors

    def fetch(self, path: str) -> Path:
        """Unpack a member; if there are too many, the oldest is removed."""
        if path not in self._unpacked:
            # In a folder of its own: messages name the file as the archive does.
            target = self._folder / sha256(path.encode()).hexdigest()[:16] / PurePosixPath(path).name
            target.parent.mkdir(exist_ok=True)
            with self._reading(), self._open(path) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file)
            if target.stat().st_size != (size := self._members[path][0]):
                raise InvalidFileError(
                    self.path,
                    field=path,
                    expected=f"{size:,} bytes",
                    got=f"{target.stat().st_size:,}",
                    remedy="download it again",
                )
            self._unpacked[path] = target
            while len(self._unpacked) > KEPT_FILES:
                shutil.rmtree(self._unpacked.popitem(last=False)[1].parent)
        return self._unpacked[path]

    def state(self, path: str) -> str:
        """State of the archive, since the times of members cannot be trusted."""
        found = self.path.stat()
        return f"{found.st_size}-{found.st_mtime_ns}"


def open_tree(path: Path) -> FolderTree | ArchiveTree:
    """Open a folder or an archive.

    Raises:
        InvalidFileError: If it is neither, or a damaged archive.
    """
    if path.is_dir():
        return FolderTree(path)
    if not (found := file_format(path)).holds_weights:
        expected = "a folder, or a tar or zip archive"
        raise InvalidFileError(path, expected=expected, got=found.name, remedy=found.remedy)
    return ArchiveTree(path)


def is_tree(path: Path) -> bool:
    """Whether a path is a folder or an archive, and not a file of torch.save, which may be named `.tar`."""
    if not path.is_file():
        return path.is_dir()
    found = format_or_unknown(path)
    is_named = path.name.lower().endswith(ARCHIVE_SUFFIXES)
    # Whether a truncated zip archive held a folder or tensors can only be seen from its name.
    return found in (TAR, ZIP) or (is_named and (found.reader is None or (found is TORCH_ZIP and _is_cut(path))))


def scratch_folder(owner: object, prefix: str) -> Path:
    """Create a temporary folder that is removed together with its owner."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except PermissionError:  # its reader explains why
        return 0
    except OSError:  # a link to nothing
        return None


def _starts_as_zip(path: Path) -> bool:
    """Whether a file starts like a zip archive; a tar archive may end like one."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _is_cut(path: Path) -> bool:
    """Whether a zip archive lacks its end; an end record may belong to an archive that it contains."""
    try:
        with zipfile.ZipFile(path) as archive:
            return min((entry.header_offset for entry in archive.infolist()), default=0) > 0
    except BROKEN:
        return True


def format_or_unknown(path: Path) -> FileFormat:
    """Format of a file; unknown if it cannot be opened, in which case its reader reports the reason."""
    try:
        return file_format(path)
    except OSError:
        return UNKNOWN


def _inside(name: str) -> str:
    """The path of a member; empty if it points outside the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    return "" if path.is_absolute() or ".." in path.parts else path.as_posix()
