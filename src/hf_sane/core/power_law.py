"""Power laws fitted to the tail of a sample, many samples at once: exponent, tail start, uncertainty."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_SCALARS = 2**18  # of one table of distances
START_GROUPS = 4
SCREEN_POINTS = 48  # of a tail, looked at before all of it
SCREEN_FROM = 192  # values; below, looking at all is as fast


@dataclass(frozen=True, slots=True)
class PowerLawFit:
    """Tails `p(x) ~ x^-alpha` for `x >= xmin`, one per sample.

    Attributes:
        alpha: `[B]` float64, > 1; NaN where no tail of `min_tail` different values exists.
        xmin: `[B]` float64, where the tail starts.
        ks_distance: `[B]` float64, Kolmogorov-Smirnov distance between the tail and its fit.
        tail_size: `[B]` int64, values in the tail.
    """

    alpha: Tensor
    xmin: Tensor
    ks_distance: Tensor
    tail_size: Tensor

    @property
    def standard_error(self) -> Tensor:
        """`(alpha - 1) / sqrt(tail_size)`: of alpha for independent values and a given tail start."""
        return (self.alpha - 1) / self.tail_size.sqrt()


def fit_power_law(
    values: Tensor, *, min_tail: int = 2, max_starts: int | None = None, table_type: torch.dtype = torch.float64
) -> PowerLawFit:
    """Fit the tail of each sample by maximum likelihood, its start by the Kolmogorov-Smirnov distance.

    For the tail `x_i..x_n` of the sorted sample, `k` values long, `alpha_i = 1 + k / sum_j ln(x_j / x_i)`; the start is the
    one with the smallest `D_i = max_j |F_i(x_j) - S_i(x_j)|`, `F_i(x) = 1 - (x / x_i)^(1 - alpha_i)` (Clauset, Shalizi and
    Newman, arXiv:0706.1062, equations 3.1 and 3.9). As in their code and the `powerlaw` package, `S_i` is the share of the
    tail *below* a value. A single long sample is screened first: the distance over some of a tail's values bounds the whole
    from below, so that most tails need no second look; the result is the same.

    Args:
        values: `[B, n]` float; zero and negative values are in no tail.
        min_tail: Values that a tail must have, >= 2.
        max_starts: Try only so many starts, evenly spaced in rank; all when `None`.
        table_type: Of the tables of distances, which choose among tails; exponents are float64 always.

    Returns:
        One fit per row.

    Raises:
        ValueError: If `values` is not a matrix of finite numbers, or for counts below 2 and 1.
    """
    if values.ndim != 2 or not values.isfinite().all():
        raise ValueError(
            f"expected finite values [B, n], got shape {list(values.shape)}"
            + ("" if values.ndim != 2 else " with NaN")
        )
    if min_tail < 2 or (max_starts is not None and max_starts < 1):
        raise ValueError(f"expected min_tail >= 2 and max_starts >= 1, got {min_tail} and {max_starts}")
    tails = _Tails(values, min_tail, max_starts, table_type)
    if not tails.num_starts:
        nan = torch.full((len(values),), torch.nan, dtype=torch.float64)
        return PowerLawFit(nan, nan, nan, torch.zeros(len(values), dtype=torch.int64))
    best, distance = tails.screened() if len(values) == 1 and values.shape[1] >= SCREEN_FROM else tails.all_distances()
    picked = best[:, None]
    start = tails.starts.gather(1, picked)
    found = distance.isfinite()

    def at_best(table: Tensor) -> Tensor:
        return torch.where(found, table, torch.nan)

    return PowerLawFit(
        at_best(tails.alpha.gather(1, picked)[:, 0]),
        at_best(tails.sorted.gather(1, start)[:, 0]),
        at_best(distance),
        torch.where(found, values.shape[1] - start[:, 0], 0),
    )


def bootstrap_alpha(values: Tensor, num_resamples: int, *, seed: int = 0, max_starts: int = 32) -> Tensor:
    """Exponents of resamples of one sample, each with a tail start of its own: how uncertain alpha is.

    The nonparametric bootstrap of Clauset et al. (arXiv:0706.1062, section 3.4), with starts on a grid of ranks. It treats
    values as independent. Eigenvalues are not: they repel each other, and one matrix is a single draw. Read the spread as
    the sensitivity to which eigenvalues happen to be there.

    Args:
        values: `[n]` float, positive.
        num_resamples: Resamples, >= 1.
        seed: Of the draws.
        max_starts: Tail starts tried per resample.

    Returns:
        `[num_resamples]` float64, ascending; without resamples that have no tail, so possibly fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (num_resamples, len(values)), generator=generator)
    alpha = fit_power_law(values.cpu()[drawn], max_starts=max_starts, table_type=torch.float32).alpha
    return alpha[alpha.isfinite()].sort().values


class _Tails:
    """All candidate tails of samples `[B, n]`: their starts `[B, S]` and exponents `[B, S]`."""

    def __init__(self, values: Tensor, min_tail: int, max_starts: int | None, table_type: torch.dtype) -> None:
        count = values.shape[1]
        self.table_type = table_type
        self.sorted = values.double().cpu().sort(dim=1).values
        is_positive = self.sorted > 0
        self.logs = torch.where(is_positive, self.sorted, 1.0).log()
        # Equal values belong to one tail: it starts at the first of them, and as many values lie below each.
        self.first = torch.searchsorted(self.sorted, self.sorted, right=False)
        ranks = torch.arange(max(0, count - min_tail + 1))
        if max_starts is not None and len(ranks) > max_starts:
            ranks = torch.linspace(0, len(ranks) - 1, max_starts).round().long()
        self.starts = self.first[:, ranks]
        self.num_starts = len(ranks)
        self.size = (count - self.starts).double()
        sums = self.logs.flip(1).cumsum(1).flip(1).gather(1, self.starts) if self.num_starts else self.logs[:, :0]
        self.start_logs = self.logs.gather(1, self.starts)
        spread = sums - self.size * self.start_logs
        # Values that differ by rounding alone are one value: no tail.
        self.is_valid = is_positive.gather(1, self.starts) & (spread > 1e-9 * self.size)
        self.alpha = 1 + self.size / torch.where(self.is_valid, spread, 1.0)

    def distances(self, rows: slice, starts: Tensor, points: Tensor) -> Tensor:
        """Largest distance of each tail over some points.

        Args:
            rows: Samples.
            starts: `[S]` which candidates.
            points: `[P]` ranks of values to compare at; those before a tail's start count nothing.

        Returns:
            `[rows, S]`.
        """
        slope = 1 - self.alpha[rows][:, starts, None]
        share = 1 / self.size[rows][:, starts, None]
        offset = -slope * self.start_logs[rows][:, starts, None]
        none_below = -share * self.starts[rows][:, starts, None]
        kind = self.table_type
        # 1 - F and S of every point, both as at the start of the tail for points before it: the sum is 1 where they agree.
        beyond = torch.addcmul(offset.to(kind), slope.to(kind), self.logs[rows][:, None, points].to(kind))
        below = torch.addcmul(none_below.to(kind), share.to(kind), self.first[rows][:, None, points].to(kind))
        low, high = beyond.clamp_max_(0).exp_().add_(below.clamp_min_(0)).aminmax(dim=-1)
        return torch.maximum(1 - low, high - 1).double()

    def all_distances(self) -> tuple[Tensor, Tensor]:
        """Best candidate of each sample and its distance (infinite without any), every distance computed."""
        count = self.sorted.shape[1]
        parts = torch.arange(self.num_starts).split(-(-self.num_starts // START_GROUPS))
        rows = max(1, CHUNK_SCALARS // (count * len(parts[0])))
        table = torch.empty(self.starts.shape, dtype=torch.float64)
        for row in range(0, len(self.sorted), rows):
            chosen = slice(row, row + rows)
            for part in parts:
                first = int(self.starts[chosen][:, part].min())  # points before all of these tails count nothing
                for some in part.split(max(1, CHUNK_SCALARS // count)):
                    table[chosen, some] = self.distances(chosen, some, torch.arange(first, count))
        distance, best = table.masked_fill_(~self.is_valid, torch.inf).min(dim=1)
        return best, distance

    def screened(self) -> tuple[Tensor, Tensor]:
        """The same for one sample, with distances over few points deciding which are computed."""
        count = self.sorted.shape[1]
        # Distances are often largest at the far end, where few values are: half of the points lie there.
        ends = (
            count
            - 1
            - torch.logspace(0, 1, SCREEN_POINTS // 2, base=count).sub_(1).round_().long().clamp_max_(count - 1)
        )
        points = torch.cat([torch.linspace(0, count - 1, SCREEN_POINTS // 2).long(), ends]).unique()
        everything = torch.arange(self.num_starts)
        bound = self.distances(slice(0, 1), everything, points)[0].masked_fill_(~self.is_valid[0], torch.inf)
        order = bound.argsort()
        best, distance, position, step = order[0], torch.tensor(torch.inf), 0, 8
        while position < len(order) and bound[order[position]] < distance:
            part = order[position : position + step]
            exact = self.distances(slice(0, 1), part, torch.arange(int(part.min()), count))[0]
            exact = exact.masked_fill_(~self.is_valid[0, part], torch.inf)
            if exact.min() < distance:
                distance, place = exact.min(dim=0)
                best = part[place]
            position, step = position + step, min(2 * step, max(8, CHUNK_SCALARS // count))
        return best[None], distance.double()[None]
