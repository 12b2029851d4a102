"""Ctrl-C (SIGINT) until a verb runs. Imports nothing that takes time."""

import os
import signal
from types import FrameType

INTERRUPTED = 130  # exit code; `hf_sane.records` has it, too, but takes time to import


def quit_when_interrupted() -> None:
    """Let Ctrl-C end the program at once, without a message: nothing is written before a verb runs."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # shells ignore SIGINT in the background
        signal.signal(signal.SIGINT, _quit)


def heed_interruptions() -> None:
    """Turn Ctrl-C into a `KeyboardInterrupt` again, for a verb that explains what it has left."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _quit(number: int, frame: FrameType | None) -> None:
    # An exception could be swallowed by one of the modules that are being imported.
    os._exit(INTERRUPTED)
