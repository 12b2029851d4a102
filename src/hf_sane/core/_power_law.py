"""Fit power laws to the tails of many samples at once: exponent, tail start and uncertainty."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

CHUNK_SCALARS = 2**16  # of one table of distances, which should fit into a cache
START_GROUPS = 4
SCREEN_POINTS = 48  # of a tail, at which distances are computed first
SCREEN_FROM = 192  # values; shorter samples are not screened, since all points take as little time


@dataclass(frozen=True, slots=True)
class PowerLawFit:
    """Tails `p(x) ~ x^-alpha` for `x >= xmin`, one per sample.

    Attributes:
        alpha: `[B]` float64, > 1; NaN if no tail has `min_tail` different values.
        xmin: `[B]` float64, start of the tail.
        ks_distance: `[B]` float64, Kolmogorov-Smirnov distance between the tail and its fit.
        tail_size: `[B]` int64, number of values in the tail.
    """

    alpha: Tensor
    xmin: Tensor
    ks_distance: Tensor
    tail_size: Tensor


def fit_power_law(
    values: Tensor, *, min_tail: int = 2, max_starts: int | None = None, table_type: type = np.float64
) -> PowerLawFit:
    """Fit the tail of each sample by maximum likelihood, choosing its start by the Kolmogorov-Smirnov distance.

    For the tail `x_i..x_n` of the sorted sample, with `k` values, `alpha_i = 1 + k / sum_j ln(x_j / x_i)`; the start
    is the one with the smallest `D_i = max_j |F_i(x_j) - S_i(x_j)|`, `F_i(x) = 1 - (x / x_i)^(1 - alpha_i)` (Clauset,
    Shalizi and Newman, arXiv:0706.1062, equations 3.1 and 3.9). As in their code and the `powerlaw` package, `S_i` is
    the share of the tail *below* a value. A single long sample is screened first: the distance over some values of a
    tail is a lower bound, which excludes most tails without affecting the result.

    Args:
        values: `[B, n]` float; zero and negative values are in no tail.
        min_tail: Least number of values in a tail, >= 2.
        max_starts: Maximum number of starts to try, evenly spaced in rank; all if `None`.
        table_type: Dtype of the tables of distances by which tails are chosen; exponents are always float64.

    Returns:
        One fit per row.

    Raises:
        ValueError: If `values` is not a matrix of finite numbers, `min_tail < 2` or `max_starts < 1`.
    """
    if values.ndim != 2 or not values.isfinite().all():
        raise ValueError(
            f"expected finite values [B, n], got shape {list(values.shape)}"
            + ("" if values.ndim != 2 else " with NaN")
        )
    if min_tail < 2 or (max_starts is not None and max_starts < 1):
        raise ValueError(f"expected min_tail >= 2 and max_starts >= 1, got {min_tail} and {max_starts}")
    tails = _Tails(values.detach().cpu().double().numpy(), min_tail, max_starts, table_type)
    if not tails.num_starts:
        nan = torch.full((len(values),), torch.nan, dtype=torch.float64)
        return PowerLawFit(nan, nan, nan, torch.zeros(len(values), dtype=torch.int64))
    best, distance = tails.screened() if len(values) == 1 and values.shape[1] >= SCREEN_FROM else tails.all_distances()
    rows = np.arange(len(best))
    start, is_found = tails.starts[rows, best], np.isfinite(distance)

    def where_found(table: Array) -> Tensor:
        return torch.from_numpy(np.where(is_found, table, np.nan))

    return PowerLawFit(
        where_found(tails.alpha[rows, best]),
        where_found(tails.sorted[rows, start]),
        where_found(distance),
        torch.from_numpy(np.where(is_found, values.shape[1] - start, 0)),
    )


def bootstrap_alpha(values: Tensor, num_resamples: int, *, seed: int = 0, max_starts: int = 32) -> Tensor:
    """Exponents of resamples of one sample, each with its own tail start, as a measure of uncertainty.

    This is the nonparametric bootstrap of Clauset et al. (arXiv:0706.1062, section 3.4), with starts on a grid of
    ranks. It treats values as independent. Eigenvalues are not: they repel each other, and one matrix is a single
    draw. Interpret the spread as sensitivity to the particular eigenvalues.

    Args:
        values: `[n]` float, positive.
        num_resamples: Number of resamples, >= 1.
        seed: Random seed of the draws.
        max_starts: Number of tail starts to try per resample.

    Returns:
        `[num_resamples]` float64, ascending; fewer if resamples have no tail.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (num_resamples, len(values)), generator=generator)
    alpha = fit_power_law(values.cpu()[drawn], max_starts=max_starts, table_type=np.float32).alpha
    return alpha[alpha.isfinite()].sort().values


class _Tails:
    """All candidate tails of samples `[B, n]`, with their starts `[B, S]` and exponents `[B, S]`.

    Uses NumPy, whose elementwise functions run on one thread: the tables are small, and PyTorch would split each of
    them between threads that wait for each other.
    """

    def __init__(self, values: Array, min_tail: int, max_starts: int | None, table_type: type) -> None:
        count = values.shape[1]
        self.table_type = table_type
        self.sorted = np.sort(values, axis=1)
        is_positive = self.sorted > 0
        self.logs = np.log(np.where(is_positive, self.sorted, 1.0))
        # Equal values belong to one tail, which starts at the first of them, and have the same number of values below.
        is_new = np.diff(self.sorted, axis=1, prepend=-np.inf) > 0
        self.first = np.maximum.accumulate(np.where(is_new, np.arange(count), 0), axis=1)
        ranks = np.arange(max(0, count - min_tail + 1))
        if max_starts is not None and len(ranks) > max_starts:
            ranks = np.linspace(0, len(ranks) - 1, max_starts).round().astype(np.int64)
        self.starts = self.first[:, ranks]
        self.num_starts = len(ranks)
        self.size = (count - self.starts).astype(np.float64)
        self.start_logs = np.take_along_axis(self.logs, self.starts, axis=1)
        sums = np.take_along_axis(self.logs[:, ::-1].cumsum(axis=1)[:, ::-1], self.starts, axis=1)
        spread = sums - self.size * self.start_logs
        # Values that differ only by rounding count as one value and form no tail.
        self.is_valid = np.take_along_axis(is_positive, self.starts, axis=1) & (spread > 1e-9 * self.size)
        self.alpha = 1 + self.size / np.where(self.is_valid, spread, 1.0)

    def distances(self, rows: slice, starts: Any, points: Any) -> Array:
        """Largest distance of each tail over a subset of points.

        Args:
            rows: Samples.
            starts: `[S]` indices of candidates.
            points: `[P]` ranks of values at which to compare; those before the start of a tail are ignored.

        Returns:
            `[rows, S]`.
        """
        slope = 1 - self.alpha[rows][:, starts, None]
        share = 1 / self.size[rows][:, starts, None]
        offset = -slope * self.start_logs[rows][:, starts, None]
        none_below = -share * self.starts[rows][:, starts, None]
        kind = self.table_type
        # 1 - F and S of every point (that of the start for points before the tail), whose sum is 1 if they agree.
        beyond = self.logs[rows][:, None, points].astype(kind) * slope.astype(kind)
        beyond += offset.astype(kind)
        np.exp(np.minimum(beyond, 0, out=beyond), out=beyond)
        below = self.first[rows][:, None, points].astype(kind) * share.astype(kind)
        below += none_below.astype(kind)
        beyond += np.maximum(below, 0, out=below)
        return np.maximum(1 - beyond.min(axis=-1), beyond.max(axis=-1) - 1).astype(np.float64)

    def all_distances(self) -> tuple[Array, Array]:
        """Best candidate of each sample and its distance (infinite if there is none), computing every distance."""
        count = self.sorted.shape[1]
        group = -(-self.num_starts // START_GROUPS)
        table = np.empty(self.starts.shape)
        rows = max(1, CHUNK_SCALARS // (count * group))
        step = min(group, max(1, CHUNK_SCALARS // count))
        for row in range(0, len(self.sorted), rows):
            chosen = slice(row, row + rows)
            for begin in range(0, self.num_starts, step):
                part = slice(begin, begin + step)
                first = int(self.starts[chosen, part].min())  # points before all of these tails are ignored
                table[chosen, part] = self.distances(chosen, part, slice(first, None))
        table[~self.is_valid] = np.inf
        best = table.argmin(axis=1)
        return best, table[np.arange(len(table)), best]

    def screened(self) -> tuple[Array, Array]:
        """The same for one sample, where distances at few points decide which are computed in full."""
        count = self.sorted.shape[1]
        # Half of the points are at the far end, where values are few and distances often largest.
        half = SCREEN_POINTS // 2
        points = np.unique(
            np.r_[np.linspace(0, count - 1, half), count - np.geomspace(1, count, half)].astype(np.int64)
        )
        bound = np.where(self.is_valid[0], self.distances(slice(0, 1), slice(None), points)[0], np.inf)
        order = bound.argsort(kind="stable")
        best, distance, position, step = int(order[0]), np.inf, 0, 8
        while position < len(order) and bound[order[position]] < distance:
            part = order[position : position + step]
            first = int(self.starts[0, part].min())
            exact = np.where(self.is_valid[0, part], self.distances(slice(0, 1), part, slice(first, None))[0], np.inf)
            if exact.min() < distance:
                best, distance = int(part[exact.argmin()]), float(exact.min())
            position, step = position + step, min(2 * step, max(8, CHUNK_SCALARS // count))
        return np.array([best]), np.array([distance])
