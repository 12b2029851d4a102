"""Divide training runs into folds, so that checkpoints of one run stay together."""

from collections.abc import Sequence

import numpy as np


def fold_of_runs(runs: Sequence[object] | np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Fold of each network, `[M]` int64 below `count`; networks of one run are in the same fold.

    Runs are dealt in random order, so that folds have equally many, up to one.

    Args:
        runs: `[M]`, the training run of each network.
        count: Number of folds.
        seed: Random seed of the order.

    Raises:
        ValueError: If there are fewer runs than folds.
    """
    names, members = np.unique(np.asarray(runs), return_inverse=True)
    if members.ndim != 1 or not 1 <= count <= len(names):
        raise ValueError(
            f"expected at least {count} training runs, some of which are left out in turn, got {len(names)}; use "
            "networks of more runs, or ridge regression with validation networks"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    folds = np.empty(len(names), dtype=np.int64)
    folds[order] = np.arange(len(names)) % count
    return folds[members]
