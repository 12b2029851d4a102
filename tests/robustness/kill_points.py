"""Run a verb in a child of this process, and kill it at the k-th thing it does to files.

Everything is imported once, in the parent; a child is a fork. Before every change of a file or folder below a watched
place (through Python's audit hooks: open for writing, rename, remove, mkdir, rmdir, link, chmod; and the exchange of
two names, which has no hook of its own) the child counts one event. Files that are written outside of Python
(safetensors, parquet, torch.save) count twice: before they are written, and when half of them is.
Requests to the Hub count, too.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch
import torch
from forks import Fork
from huggingface_hub.utils import get_session

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FOLDER_DESCRIPTOR = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2}  # place among an event's arguments
EXCHANGES = ("renameat2", "renamex_np")


@dataclass
class Outcome:
    """How a child ended.

    Attributes:
        code: Exit code; the negative number of the signal that ended it.
        output: What it printed.
        events: What it did to files, if it ended by itself or was killed.
        seconds: How long it lived.
    """

    code: int
    output: str
    events: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Watch:
    """Counts events below a place, and ends this process at one of them."""

    def __init__(self, place: Path, log: int, stop_at: int | None, by: signal.Signals) -> None:
        self.place, self.log, self.stop_at, self.by = os.path.realpath(place), log, stop_at, by
        self.count = 0

    def install(self) -> None:
        """For the rest of this process."""
        sys.addaudithook(self._hear)
        self._around_requests()
        self._around(safetensors.torch, "serialize_file", 1)
        self._around(torch, "save", 1)
        self._around(pq.ParquetWriter, "__init__", 1)

    def note(self, what: str) -> bool:
        """Count an event; whether this is where the process ends, which it does at once unless the caller wants to."""
        os.write(self.log, f"{what.replace(self.place, '')}\n".encode())
        self.count += 1
        return self.count == self.stop_at

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            is_write = isinstance(flags, int) and bool(flags & WRITES)
            watched = is_write and self._is_below(path, None)
        elif event in ("os.rename", "os.link", "os.symlink"):
            path = arguments[1]
            watched = self._is_below(path, arguments[3] if event != "os.symlink" else arguments[2])
        elif event in FOLDER_DESCRIPTOR:
            path = arguments[0]
            watched = self._is_below(path, arguments[FOLDER_DESCRIPTOR[event]])
        elif event == "ctypes.dlsym" and arguments[1] in EXCHANGES:
            path, watched = "", True
        else:
            return
        if watched and self.note(f"{event} {os.fsdecode(path) if isinstance(path, str | bytes) else path}"):
            os.kill(os.getpid(), self.by)

    def _is_below(self, path: Any, folder: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        text = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        return os.path.abspath(text).startswith(self.place)

    def _around_requests(self) -> None:
        """Count a request to the Hub, before it is sent and when it is answered."""
        client: Any = type(get_session())
        send = client.send

        def watched(session: Any, request: Any, **settings: Any) -> Any:
            what = f"{request.method} {request.url.path}"
            if self.note(f"request {what}"):
                os.kill(os.getpid(), self.by)
            response = send(session, request, **settings)
            if self.note(f"answer to {what}"):
                os.kill(os.getpid(), self.by)
            return response

        client.send = watched

    def _around(self, owner: Any, name: str, place: int) -> None:
        """Count a native write, before and in the middle of it; the argument at `place` is its path."""
        write = getattr(owner, name)

        def watched(*arguments: Any, **settings: Any) -> Any:
            path = arguments[place] if len(arguments) > place else settings.get("filename")
            if not isinstance(path, str | os.PathLike) or not self._is_below(path, None):
                return write(*arguments, **settings)
            if self.note(f"write {os.fspath(path)}"):
                os.kill(os.getpid(), self.by)
            result = write(*arguments, **settings)
            if self.note(f"half of {os.fspath(path)}"):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), self.by)
            return result

        setattr(owner, name, watched)


def in_child(
    work: Callable[[], object],
    *,
    place: Path,
    stop_at: int | None = None,
    by: signal.Signals = signal.SIGKILL,
    before: Callable[[], object] | None = None,
) -> Outcome:
    """Run `work` in a fork.

    Args:
        work: What is done; `SystemExit` gives the exit code.
        place: Events below this folder count.
        stop_at: Number of the event, from 1, before which the child sends itself a signal; never if `None`.
        by: The signal: SIGKILL, or SIGINT as Ctrl-C sends it.
        before: Called first, to narrow what the child may do.
    """
    events, events_end = os.pipe()
    start = time.monotonic()

    def watched() -> None:
        os.close(events)
        if before is not None:
            before()
        Watch(place, events_end, stop_at, by).install()
        work()

    child = Fork(watched)
    os.close(events_end)
    code, stdout, stderr, (noted,) = child.wait(events)
    return Outcome(code, stdout + stderr, noted.splitlines(), time.monotonic() - start)


def spread(total: int, number: int) -> Iterator[int]:
    """`number` events out of `total`, from the first to the last; of one, that in the middle."""
    if total <= number:
        yield from range(1, total + 1)
        return
    if number == 1:
        yield (1 + total) // 2
        return
    for index in range(number):
        yield 1 + round(index * (total - 1) / (number - 1))
