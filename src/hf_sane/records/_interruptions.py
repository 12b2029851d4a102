"""Messages after an interruption (Ctrl-C, SIGINT), which describe what is on disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

NOTHING = "nothing was written; the same command starts again"

_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
_finished: ContextVar[list[Path] | None] = ContextVar("finished", default=None)


@contextmanager
def explaining(describe: Callable[[], str], *, output: Path | None = None) -> Iterator[None]:
    """Have an interruption of the block carry a note of what it left.

    Of blocks within each other the outermost one speaks, after the others have tidied: it knows what they are part of.

    Args:
        describe: Says in what state the output is, and what to do; asked when everything else has come to rest.
        output: What is finished when the block ends; an interruption that comes later says so, see [`noting_outputs`].
    """
    if _is_inside.get():
        yield
        return
    token = _is_inside.set(True)
    try:
        yield
        noted = _finished.get()
        if output is not None and noted is not None:
            noted.append(output)
    except KeyboardInterrupt as interruption:
        interruption.add_note(describe())
        raise
    finally:
        _is_inside.reset(token)


@contextmanager
def noting_outputs() -> Iterator[list[Path]]:
    """For a program: what its writers finish while the block runs, in their order."""
    outputs: list[Path] = []
    token = _finished.set(outputs)
    try:
        yield outputs
    finally:
        _finished.reset(token)


def describe_interruption(interruption: KeyboardInterrupt, outputs: list[Path]) -> str:
    """In one line, what a program leaves that was interrupted.

    Args:
        interruption: With the notes of those whom it passed.
        outputs: What was finished before; from [`noting_outputs`].
    """
    notes = [*(f"{output} is finished" for output in outputs), *getattr(interruption, "__notes__", ())]
    return f"interrupted: {'; '.join(notes) or NOTHING}"
