"""Messages after an interruption (Ctrl-C, SIGINT), which describe the state of the output."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hf_sane.records._command import again

AGAIN = 0.1  # seconds after which an interruption that got lost is repeated

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
        with ignoring_interruptions():
            interruption.add_note(describe())
        raise
    finally:
        _is_inside.reset(token)


@contextmanager
def repeating_lost_interruptions() -> Iterator[None]:
    """Repeat an interruption that Python drops since it occurs in a finalizer, such as one called by its collector.

    Without it, Ctrl-C has no effect at such a moment; the collector takes a tenth of the start of a program.
    """
    report = sys.unraisablehook

    def repeat(dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            report(dropped)
            return
        timer = threading.Timer(AGAIN, _interrupt)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = report


def _interrupt() -> None:
    """Interrupt the main thread, also while it waits."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


@contextmanager
def ignoring_interruptions() -> Iterator[None]:
    """Ignore SIGINT in the block, so that a second Ctrl-C does not cut the message about the first one."""
    if threading.current_thread() is not threading.main_thread():  # only that one sets handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)


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
