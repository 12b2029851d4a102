"""Files and folders that are either complete or absent."""

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".hf_sane-partial"  # end of the names of unfinished files and folders; only such names are ever removed
RETIRED = ".hf_sane-retired"
_PARTIAL_FILE = re.compile(r"\.(.+)\.(\d+)" + re.escape(PARTIAL))


@contextmanager
def write_atomically(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a temporary file next to its final path, and move it there when it is complete.

    A reader, or a run that continues after a crash, finds either the old or the new content. Missing parent folders
    are created. The file gets default permissions, even if the writer sets others (safetensors: 0600).

    Args:
        path: Final path of the file.
        durable: Flush the file to the disk before it is moved. Not needed for files with their own digest that are
            rewritten if damaged; writing thousands of these without flushing takes half of the time.

    Yields:
        Path to write to. If the block raises an exception, the file is removed and `path` stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode & 0o7777)
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def is_partial_file(name: str) -> bool:
    """Whether a file is an unfinished one of [`write_atomically`]."""
    return _PARTIAL_FILE.fullmatch(name) is not None


def remove_partial_files(folder: Path, *, of: str | None = None) -> None:
    """Remove unfinished files of [`write_atomically`] that a killed process left in `folder` (not in its subfolders).

    No other process may be writing to the folder or, if `of` is given, to the file of that name.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        found = _PARTIAL_FILE.fullmatch(entry.name)
        if found and of in (None, found[1]) and entry.is_file() and not entry.is_symlink():
            entry.unlink(missing_ok=True)


def files_below(
    folder: Path, *, unreadable: list[OSError] | None = None, empty: list[Path] | None = None
) -> Iterator[Path]:
    """All files in a folder and its subfolders, including links.

    Unlike `rglob`, it does not silently skip folders that cannot be listed.

    Args:
        folder: Folder to search.
        unreadable: Callback for errors about such folders; by default the first one is raised.
        empty: Callback for empty subfolders.
    """

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop if unreadable is None else unreadable.append):
        if empty is not None and not names and not folders and Path(place) != folder:
            empty.append(Path(place))
        links = (name for name in folders if Path(place, name).is_symlink())
        yield from (Path(place, name) for name in (*names, *links))


def folders_with(folder: Path, *names: str) -> list[Path]:
    """Subfolders, except hidden ones, that contain a file of one of these names; all must be readable."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if not set(names).isdisjoint(os.listdir(path))]


def move_folder(partial: Path, final: Path) -> None:
    """Move a finished folder to `final`, which may be absent, an empty folder, or a folder to replace.

    On systems that can exchange two names (Linux, macOS), either the old or the new folder exists at any time.
    Elsewhere the old one is briefly renamed to `.NAME.hf_sane-retired`, and [`recover_folder`] restores it after a
    crash.
    """
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        partial.rename(final)
    elif _exchange(partial, final):
        shutil.rmtree(partial)
    else:
        retired = final.with_name(f".{final.name}{RETIRED}")
        shutil.rmtree(retired, ignore_errors=True)
        final.rename(retired)
        partial.rename(final)
        shutil.rmtree(retired)
    sync(final.parent)


def recover_folder(final: Path) -> None:
    """Restore the folder renamed by a killed [`move_folder`], or remove it if the new folder is in place."""
    retired = final.with_name(f".{final.name}{RETIRED}")
    if retired.is_dir():
        if final.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(final)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; `False` if the system or the file system does not support it."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            at_cwd, exchange = -100, 2
            return library.renameat2(at_cwd, names[0], at_cwd, names[1], exchange) == 0
        if sys.platform == "darwin":
            swap = 2
            return library.renamex_np(*names, swap) == 0
    except (AttributeError, OSError):
        return False
    return False
