"""The command that is running, as a shell takes it, for records and for messages that name it."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hf_sane.records._redaction import redact_tokens

_running: ContextVar[tuple[str, ...] | None] = ContextVar("running", default=None)


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    """Say what runs in the block: a program and its arguments. Otherwise it is a call from Python."""
    token = _running.set(tuple(command))
    try:
        yield
    finally:
        _running.reset(token)


def command_line(*options: str) -> str:
    """The command, quoted so that it can be pasted into a shell, without access tokens; that of the process in Python.

    Args:
        options: Added at the end, unless they are given.
    """
    program, *arguments = sys.argv or ["python"]
    words = _running.get() or (Path(program).name, *arguments)
    return redact_tokens(shlex.join([*words, *(option for option in options if option not in words)]))


def again(what: str, *flags: str) -> str:
    """How to start again or continue after an interruption: the command, or in Python the call.

    Args:
        what: `"start again"` or `"continue"`.
        flags: Options that are needed for it, such as `"--resume"`.
    """
    if _running.get() is not None:
        return f"to {what}: {command_line(*flags)}"
    given = " and ".join(f"{flag.strip('-').replace('-', '_')}=True" for flag in flags)
    return f"to {what}, repeat the call{f' with {given}' if given else ''}"
