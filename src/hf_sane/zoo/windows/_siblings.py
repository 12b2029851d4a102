"""Other checkpoints of the same training run."""

from collections.abc import Sequence

import numpy as np


class Siblings:
    """The checkpoints of each training run of a split.

    Args:
        run_ids: `[M]`, the run of each network.
    """

    def __init__(self, run_ids: Sequence[str]) -> None:
        _, self._run, counts = np.unique(np.asarray(run_ids), return_inverse=True, return_counts=True)
        self._count = counts
        self._first = np.cumsum(counts) - counts
        self._order = np.argsort(self._run, kind="stable")  # run by run
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(len(self._order))

    @property
    def exist(self) -> bool:
        """Whether a run has more than one checkpoint."""
        return bool((self._count > 1).any())

    def draw(self, members: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """For each member, draw another network of its run uniformly; the member itself if it is the only one.

        Args:
            members: `[k]` positions in the split.
            shares: `[k]` random numbers in [0, 1).

        Returns:
            `[k]` int64 positions.
        """
        run = self._run[members]
        first, count = self._first[run], self._count[run]
        step = np.where(count > 1, 1 + np.floor(shares * (count - 1)).astype(np.int64), 0)
        return self._order[first + (self._place[members] - first + step) % count]
