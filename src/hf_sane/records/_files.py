"""Files and folders that are either complete or absent."""

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".hf_sane-partial"  # ends the name of what is not finished; only names of this form are ever removed
RETIRED = ".hf_sane-retired"
_PARTIAL_FILE = re.compile(r"\.(.+)\.(\d+)" + re.escape(PARTIAL))


@contextmanager
def write_atomically(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file next to its final place and move it there when it is complete.

    A reader, or a run that continues after a crash, sees the old content or the new one, never half of it. Missing
    parent folders are made. The file gets the permissions of any new file, whatever the writer gave it (safetensors:
    0600).

    Args:
        path: Final place of the file.
        durable: Whether the disk must keep it before anything that follows. Not for what carries its own digest and is
            made again where it is damaged: thousands of such files are written in half of the time.

    Yields:
        Where to write; on the same file system. If the block raises, it is removed and `path` is left as it was.
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
    """Whether a file was left by [`write_atomically`] before it was moved to its place."""
    return _PARTIAL_FILE.fullmatch(name) is not None


def remove_partial_files(folder: Path, *, of: str | None = None) -> None:
    """Remove what [`write_atomically`] left in `folder` (not in its subfolders) when its process was killed.

    Only for a folder that no other process writes to, or for a file `of` that name that no other process writes.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        found = _PARTIAL_FILE.fullmatch(entry.name)
        if found and of in (None, found[1]) and entry.is_file() and not entry.is_symlink():
            entry.unlink(missing_ok=True)


def files_below(
    folder: Path, *, unreadable: list[OSError] | None = None, empty: list[Path] | None = None
) -> Iterator[Path]:
    """All files in a folder and below it, links of any kind among them.

    Unlike `rglob`, it does not skip folders that cannot be listed.

    Args:
        folder: Folder to search.
        unreadable: Takes the errors about such folders; by default the first one is raised.
        empty: Takes the subfolders with nothing in them.
    """

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop if unreadable is None else unreadable.append):
        if empty is not None and not names and not folders and Path(place) != folder:
            empty.append(Path(place))
        links = (name for name in folders if Path(place, name).is_symlink())
        yield from (Path(place, name) for name in (*names, *links))


def folders_with(folder: Path, *names: str) -> list[Path]:
    """Subfolders, except hidden ones, with a file of one of these names; all must be readable."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if not set(names).isdisjoint(os.listdir(path))]


def move_folder(partial: Path, final: Path) -> None:
    """Put a finished folder in place of `final`, which may be absent, an empty folder, or a folder that it replaces.

    Where the system can exchange two names (Linux, macOS) there is no moment without the old or the new folder.
    Elsewhere the old one has the name `.NAME.hf_sane-retired` for a moment, and [`recover_folder`] puts it back after
    a crash.
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
    """Restore what a killed [`move_folder`] had moved away, or remove it if the new folder is in place."""
    retired = final.with_name(f".{final.name}{RETIRED}")
    if retired.is_dir():
        if final.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(final)


def sync(path: Path) -> None:
    """Flush a file, or the list of files in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; `False` where the system or the file system cannot."""
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
