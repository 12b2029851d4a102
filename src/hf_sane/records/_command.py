"""The running command in shell syntax, for records and messages."""

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
    """Set the program and arguments that run in the block; without it, the library is called from Python."""
    token = _running.set(tuple(command))
    try:
        yield
    finally:
        _running.reset(token)


def command_line(*options: str) -> str:
    """The command, quoted for a shell and without access tokens; in calls from Python, that of the process.

    Args:
        options: Options to add at the end if they are missing.
    """
    program, *arguments = sys.argv or ["python"]
    words = _running.get() or (Path(program).name, *arguments)
    return redact_tokens(shlex.join([*words, *(option for option in options if option not in words)]))


def again(what: str, *flags: str) -> str:
    """Advice on how to start again or continue after an interruption: a command or, in Python, a call.

    Args:
        what: `"start again"` or `"continue"`.
        flags: Required options, such as `"--resume"`.
    """
    if _running.get() is not None:
        return f"to {what}: {command_line(*flags)}"
    given = " and ".join(f"{flag.strip('-').replace('-', '_')}=True" for flag in flags)
    return f"to {what}, repeat the call{f' with {given}' if given else ''}"
