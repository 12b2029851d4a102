"""Messages after an interruption (Ctrl-C, SIGINT), which describe the state of the output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from hf_sane.records._command import again

_is_inside: ContextVar[bool] = ContextVar("is_inside", default=False)
_finished: ContextVar[list[Path] | None] = ContextVar("finished", default=None)


@contextmanager
def explaining(describe: Callable[[], str], *, output: Path | None = None) -> Iterator[None]:
    """Attach a note about the state of the output to an interruption of the block.

    Of nested blocks, only the outermost one attaches a note, after the inner ones have cleaned up.

    Args:
        describe: Function that describes the state of the output and the next step, called after all blocks have
            cleaned up.
        output: Output that is finished when the block ends, which the message about a later interruption mentions; see
            [`noting_outputs`].
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
    """Collect the outputs that are finished within the block, in order."""
    outputs: list[Path] = []
    token = _finished.set(outputs)
    try:
        yield outputs
    finally:
        _finished.reset(token)


def describe_interruption(interruption: KeyboardInterrupt, outputs: list[Path]) -> str:
    """State of the output after an interruption, in one line.

    Args:
        interruption: Interruption with its notes.
        outputs: Outputs that were finished before, from [`noting_outputs`].
    """
    notes = [*(f"{output} is finished" for output in outputs), *getattr(interruption, "__notes__", ())]
    return f"interrupted: {'; '.join(notes) or 'nothing was written; ' + again('start again')}"
