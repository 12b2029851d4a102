"""Locks that let one process at a time write to a folder; the error of a second process names the first."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hf_sane.records._command import command_line
from hf_sane.records._errors import shorten

LOCK = ".hf_sane-lock"


class FolderInUseError(OSError):
    """Another process writes the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which need not exist; the system releases it when the process ends.

    The lock is the file `.NAME.hf_sane-lock` next to the folder, which is removed when the work is done. Meanwhile, a
    second file next to it names its owner.

    Raises:
        FolderInUseError: If another process has it, naming that process, its machine, start and command.
        PermissionError: If the parent folder cannot be written.
    """
    path = folder.with_name(f".{folder.name}{LOCK}")
    owner = path.with_name(path.name + "-owner")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
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
        )  # before the release: who waits for the lock sees that it is gone, and starts anew
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether there is a lock next to `folder`, held or left by a process that was killed."""
    return folder.with_name(f".{folder.name}{LOCK}").exists()


def remove_left_lock(folder: Path) -> None:
    """Remove the lock of a process that was killed while it was removing it; a lock that is held stays."""
    if is_locked(folder):
        with suppress(OSError), folder_lock(folder):
            pass  # its end removes the files


def _this_process() -> dict[str, str | int]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "machine": socket.gethostname(), "since": started, "command": command_line()}


def _describe(owner: Path) -> str:
    with suppress(OSError, ValueError, TypeError, KeyError):
        who = json.loads(owner.read_text(encoding="utf-8"))
        return shorten(f"process {who['pid']} on {who['machine']} since {who['since']} ({who['command']})", 400)
    return "another process"
