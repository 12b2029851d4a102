"""Intervals at which a long job saves its progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_SHARE = 0.05  # largest share of the time for saving


class Cadence:
    """Decides when to save progress: at intervals that grow if saving is slow. Results do not depend on it.

    Args:
        seconds: Minimum time between two saves; 0 or less to never save.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._cost, self._last = seconds, 0.0, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to save."""
        wait = max(self._seconds, self._cost / MAX_SHARE)
        return self._seconds > 0 and time.monotonic() - self._last >= wait

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long saving takes, in a `with` statement around it."""
        start = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - start
