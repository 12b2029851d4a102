"""Progress of long work: a bar with the rate and the remaining time, on a terminal and after two seconds."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

DELAY = 2.0  # seconds before a bar is shown

_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
Item = TypeVar("Item")


@contextmanager
def quietly(is_quiet: bool = True) -> Iterator[None]:
    """Show no bar of [`progress`] in the block; with `False`, leave it as it is."""
    token = _is_quiet.set(is_quiet or _is_quiet.get())
    try:
        yield
    finally:
        _is_quiet.reset(token)


def progress(
    *, total: float | None = None, desc: str, unit: str = "it", initial: int = 0, wanted: bool = True
) -> tqdm:
    """A bar to be updated by hand, in a `with` statement.

    Args:
        total: Number of steps, if it is known.
        desc: What is being done.
        unit: What a step is.
        initial: Steps that were done before.
        wanted: Whether to show it at all.
    """
    is_hidden = True if _is_quiet.get() or not wanted else None  # None: unless standard error is no terminal
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        delay=DELAY,
        disable=is_hidden,
        unit_scale=unit in ("token", "weight", "B"),
        dynamic_ncols=True,
        leave=False,
    )


def tracked(items: Iterable[Item], *, desc: str, unit: str = "it", total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that moves on as each is done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(total=total, desc=desc, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
