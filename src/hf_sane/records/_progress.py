"""Progress bars with rate and remaining time, shown on a terminal after two seconds.

All long work uses them, so that [`quietly`] can disable every bar.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

DELAY = 2.0  # seconds before a bar is shown
SCALED = ("token", "weight", "B")  # units of large numbers

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
Item = TypeVar("Item")


class Bar(tqdm):
    """A progress bar."""


@contextmanager
def quietly(is_quiet: bool = True) -> Iterator[None]:
    """Hide progress bars in the block, including those of downloads; `False` changes nothing."""
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


def is_quiet() -> bool:
    """Whether the enclosing [`quietly`] hides progress bars."""
    return _is_quiet.get()


def progress(*, total: float | None = None, desc: str, unit: str = "it", initial: int = 0, wanted: bool = True) -> Bar:
    """A progress bar that the caller updates, for a `with` statement.

    Args:
        total: Number of steps, if known.
        desc: Description of the work.
        unit: Name of a step.
        initial: Number of steps that are already done.
        wanted: Whether to show the bar.
    """
    is_hidden = True if _is_quiet.get() or not wanted else None  # None: only if standard error is a terminal
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
    """The items, with a progress bar."""
    total = len(items) if isinstance(items, Sized) else None
    with progress(total=total, desc=desc, unit=unit, wanted=wanted) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def keeping_warnings(kept: list[str]) -> Iterator[None]:
    """Collect warnings of this library within the block in a list instead of showing them."""
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
    """Print the beginning of a stage on standard error, above the bars."""
    if not _is_quiet.get():
        Bar.write(text, file=sys.stderr)
