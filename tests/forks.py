"""Work in a fork of this process: in a process of its own, with everything imported already."""

import contextlib
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

import torch

RAISED = 99  # exit code of a fork that raised what nobody expected


class Ending(NamedTuple):
    """How a fork ended: exit code (negative for a signal), what it printed, what it wrote elsewhere."""

    code: int
    stdout: str
    stderr: str
    rest: list[str]


class Fork:
    """A child of this process that does one thing and ends; nothing that it changes comes back.

    Args:
        work: What is done; `SystemExit` gives the exit code.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._output, output = os.pipe()
        self._errors, errors = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for end in (self._output, output, self._errors, errors):
                os.close(end)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os._exit(_run(work))
        os.close(output)
        os.close(errors)

    def wait(self, *others: int) -> Ending:
        """Read what it prints, and what comes out of other pipes that it writes to, until it ends."""
        stdout, stderr, *rest = _read_all([self._output, self._errors, *others])
        _, status = os.waitpid(self.pid, 0)
        return Ending(os.waitstatus_to_exitcode(status), stdout, stderr, rest)


def run_in_fork(work: Callable[[], object]) -> str:
    """Do something in a child, which has to succeed; gives what it printed."""
    ending = Fork(work).wait()
    assert ending.code == 0, ending.stderr
    return ending.stdout


def _run(work: Callable[[], object]) -> int:
    code = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # the other threads of OpenMP did not come along: who waits for them waits for ever
        work()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else RAISED
    except BaseException:  # noqa: BLE001 (a fork must not go back into the tests)
        traceback.print_exc()
        code = RAISED
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _read_all(descriptors: list[int]) -> list[str]:
    """What comes out of pipes until their ends, at the same time: a full pipe would stop the child."""
    parts: dict[int, list[bytes]] = {descriptor: [] for descriptor in descriptors}
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if block := os.read(key.fd, 65536):
                    parts[key.fd].append(block)
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [b"".join(blocks).decode(errors="replace") for blocks in parts.values()]
