"""Locks, so that only one process at a time writes to a folder; the error of another process names the owner."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hf_sane.records._command import command_line
from hf_sane.records._errors import shorten

LOCK = ".hf_sane-lock"


class FolderInUseError(OSError):
    """Another process is writing to the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which need not exist; the system releases it when the process ends.

    The lock is the file `.NAME.hf_sane-lock` next to the folder, which is removed at the end of the block. A second
    file next to it describes the owner.

    Raises:
        FolderInUseError: If another process holds the lock; the message has its id, machine, start and command.
        OSError: If the parent folder is not writable.
    """
    path = folder.with_name(f".{folder.name}{LOCK}")
    owner = path.with_name(path.name + "-owner")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if not path.exists():  # which filelock also says of places where no file can be made
            _check_writable(folder)
        raise FolderInUseError(
            f"{folder} is being written by {_describe(owner)}; wait until it has finished, stop it, or choose "
            "another folder"
        ) from error
    try:
        owner.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        path.unlink(
            missing_ok=True
        )  # before the release, so that waiting processes notice the missing file and start over
        lock.release()


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder.parent, prefix=f".{folder.name}").close()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"cannot write to {folder}: {why}; choose another place") from error


def is_locked(folder: Path) -> bool:
    """Whether there is a lock file next to `folder`, of a running or of a killed process."""
    return folder.with_name(f".{folder.name}{LOCK}").exists()


def remove_left_lock(folder: Path) -> None:
    """Remove the lock file of a killed process; a lock that is held stays."""
    if is_locked(folder):
        with suppress(OSError), folder_lock(folder):
            pass  # leaving the block removes the files


def _this_process() -> dict[str, str | int]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "machine": socket.gethostname(), "since": started, "command": command_line()}


def _describe(owner: Path) -> str:
    with suppress(OSError, ValueError, TypeError, KeyError):
        who = json.loads(owner.read_text(encoding="utf-8"))
        return shorten(f"process {who['pid']} on {who['machine']} since {who['since']} ({who['command']})", 400)
    return "another process"
