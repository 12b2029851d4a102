"""Progress of long work: a bar with the rate and the remaining time, on a terminal and after two seconds.

Whatever may last that long is counted here, so that one switch, [`quietly`], silences all of it.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

DELAY = 2.0  # seconds before a bar is shown
SCALED = ("token", "weight", "B")  # units that come in thousands

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
Item = TypeVar("Item")


class Bar(tqdm):
    """A bar of progress."""


@contextmanager
def quietly(is_quiet: bool = True) -> Iterator[None]:
    """Show no progress in the block, of downloads neither; with `False`, leave it as it is."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    token = _is_quiet.set(is_quiet or _is_quiet.get())
    hides_downloads = is_quiet and not are_progress_bars_disabled()
    if hides_downloads:
        disable_progress_bars()
    try:
        yield
    finally:
        _is_quiet.reset(token)
        if hides_downloads:
            enable_progress_bars()


def progress(*, total: float | None = None, desc: str, unit: str = "it", initial: int = 0, wanted: bool = True) -> Bar:
    """A bar to be updated by hand, in a `with` statement.

    Args:
        total: Number of steps, if it is known.
        desc: What is being done.
        unit: What a step is.
        initial: Steps that were done before.
        wanted: Whether to show it at all.
    """
    is_hidden = True if _is_quiet.get() or not wanted else None  # None: unless standard error is no terminal
    return Bar(
        total=total,
        desc=desc,
        unit=unit if unit in SCALED else f" {unit}",
        initial=initial,
        delay=DELAY,
        disable=is_hidden,
        unit_scale=unit in SCALED,
        dynamic_ncols=True,
        leave=False,
    )


def tracked(items: Iterable[Item], *, desc: str, unit: str = "it", wanted: bool = True) -> Iterator[Item]:
    """The items, with a bar that moves on as each is done."""
    total = len(items) if isinstance(items, Sized) else None
    with progress(total=total, desc=desc, unit=unit, wanted=wanted) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def keeping_warnings(kept: list[str]) -> Iterator[None]:
    """Put what this library warns of in the block into a list, instead of showing it."""
    logger, keeper = logging.getLogger("hf_sane"), logging.Handler(logging.WARNING)
    keeper.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    was_shown, logger.propagate = logger.propagate, False
    logger.addHandler(keeper)
    try:
        yield
    finally:
        logger.removeHandler(keeper)
        logger.propagate = was_shown


def announce(text: str) -> None:
    """Say on standard error that a stage begins, above the bars."""
    if not _is_quiet.get():
        Bar.write(text, file=sys.stderr)
