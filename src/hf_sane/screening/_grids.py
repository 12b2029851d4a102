"""Tell whether a tensor is another one, rounded to few values: per tensor, row, column or block."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = (16, 32, 64, 128, 256)  # numbers of neighbours that formats quantise together
SHORT = 8  # values from which a code can be told
MAX_STEPS = 255  # of even grids: 8 bits
SYMMETRIC = (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128)  # steps from zero to the largest value, by bits
ONE_SIDED = (2, 4, 8, 16, 32, 64, 128)  # of those: a grid with one more step on the side of the largest value
SPANS = (1, 3, 7, 15, 31, 63, 127, 255)  # steps from the smallest to the largest value
WITH_ZERO = (15, 127, 255)  # of those: grids on which zero is, whose small values remain exact in coarse types
DIVISORS = (1, 2, 3)  # of the least difference of two values, which may be several steps
WHOLE = 1e-4  # of a step, that values may be off the grid, beside the rounding of their type
EVIDENCE = 20.0  # log-odds against a grid by chance
CHOICES = len(SYMMETRIC) + len(SPANS) + len(WITH_ZERO) + len(DIVISORS) * MAX_STEPS  # grids that are tried
CODES = 256  # values of a code
REPEATS, COARSE_REPEATS = 4 / 3, 8  # values per code at least, in single precision and in coarser types
CLUSTER = 8  # roundings by which values of one code may differ
VARYING = 0.5  # least share of groups with several values
AT_ONCE = 2**17  # values
GLANCE = 4096  # values that are tried first
MANY = 16  # groups after which the others are tried on grids of the kinds that fit some of these
TYPES = (torch.bfloat16, torch.float16)

Grouping = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Precision:
    """Rounding error of the type of a tensor: relative, and absolute."""

    relative: float
    absolute: float


def is_rounded(fine: Tensor, coarse: Tensor) -> bool:
    """Whether `coarse` is `fine`, with every single value rounded to the nearest of a few.

    These are an even grid in each group of values, as after quantisation by the largest absolute value or by the
    range, or multiples of one code that all groups share, as in NF4 or with scaled 8-bit floats. A group is the
    tensor, a row, a column, a block of neighbours or a tile. That so many values are on a grid must not be chance, and
    a constant group must be as near as the others: one that was set to zero is not rounded.
    """
    fine, coarse = fine.double(), coarse.double()
    if fine.numel() < 2 or bool((coarse == coarse.flatten()[0]).all()):
        return False
    if not (bool(fine.isfinite().all()) and bool(coarse.isfinite().all())):
        return False
    precisions = list(_precisions(coarse))
    for part, whole in _groupings(coarse.shape):
        found = [x for x in precisions if _is_on_grid(part(fine), part(coarse), x, enough=0.0)]
        if not found:
            continue
        x, y = whole(fine), whole(coarse)
        if float((y.amax(1) > y.amin(1)).double().mean()) < VARYING:
            continue
        if any(_is_on_grid(x, y, precision, enough=EVIDENCE) for precision in found):
            return True
    return False


def _is_on_grid(x: Tensor, y: Tensor, precision: _Precision, *, enough: float) -> bool:
    return _is_on_even_grids(x, y, precision, enough) or _is_in_code(x, y, precision)


def _groupings(shape: torch.Size) -> Iterator[tuple[Grouping, Grouping]]:
    """Functions of a tensor that return its groups of values `[groups, values]`: the first of them, and all."""
    rows, columns = shape[0], math.prod(shape[1:])
    yield (lambda x: x.reshape(1, -1)), (lambda x: x.reshape(1, -1))
    if rows > 1 and columns > 1:
        yield (lambda x: x.flatten(1)[:MANY]), (lambda x: x.flatten(1))
        yield (lambda x: x.flatten(1).T[:MANY]), (lambda x: x.flatten(1).T)
    for size in BLOCKS:
        yield from _blocks(rows, columns, size)


def _blocks(rows: int, columns: int, size: int) -> Iterator[tuple[Grouping, Grouping]]:
    """Groups of neighbours in rows, in columns, and in tiles."""

    def tiles(matrix: Tensor) -> Tensor:
        parts = matrix.reshape(-1, size, columns // size, size)
        return parts.transpose(1, 2).reshape(-1, size * size)

    count = rows * columns
    if count % size == 0 and count > size:
        yield (lambda x: x.reshape(-1, size)[: 4 * MANY]), (lambda x: x.reshape(-1, size))
    if columns > 1 and rows % size == 0 and rows > size:
        yield (lambda x: x.flatten(1).T[:4].reshape(-1, size)), (lambda x: x.flatten(1).T.reshape(-1, size))
        if columns % size == 0 and columns > size:
            yield (lambda x: tiles(x.flatten(1)[:size])), (lambda x: tiles(x.flatten(1)))


def _precisions(coarse: Tensor) -> Iterator[_Precision]:
    """That of single precision, and that of the coarser type in which the values are exact."""
    info = torch.finfo(torch.float32)
    yield _Precision(info.eps / 2, info.smallest_normal * info.eps / 2)
    for dtype in TYPES:
        if torch.equal(coarse.to(dtype).double(), coarse):
            info = torch.finfo(dtype)
            yield _Precision(info.eps / 2, info.smallest_normal * info.eps / 2)
            return


def _is_on_even_grids(x: Tensor, y: Tensor, precision: _Precision, enough: float) -> bool:
    kinds, evidence, step, apart = None, 0.0, math.inf, 0.0
    count = max(1, AT_ONCE // y.shape[1])
    for start in range(0, len(y), count):
        fine, coarse = x[start : start + count], y[start : start + count]
        varies = coarse.amax(1) > coarse.amin(1)
        gaps = (fine - coarse)[~varies].abs()
        apart = max(apart, float(gaps.max()) if gaps.numel() else 0.0)
        fine, coarse = fine[varies], coarse[varies]
        if not len(coarse):
            continue
        found = _even_grids(fine, coarse, precision, kinds)
        if found is None:
            return False
        proof, steps, useful = found
        kinds = useful if kinds is None and len(coarse) >= MANY else kinds
        evidence += proof
        step = min(step, steps)
    return evidence >= enough and apart <= 0.5 * step


@dataclass(frozen=True)
class _Grids:
    """Even grids of several kinds, for each group of values.

    Attributes:
        step: `[K, G, 1]`.
        origin: Value on the grid, `[K, G, 1]`.
        one_sided: Steps on the side of the largest value, if there is one less on the other; or 0. `[K, 1, 1]`
        free: Number of values that define a grid, and are on it by that, `[K, 1]`.
        peak: Sign of the largest value, `[G, 1]`.
    """

    step: Tensor
    origin: Tensor
    one_sided: Tensor
    free: Tensor
    peak: Tensor

    @classmethod
    def of(cls, y: Tensor, glance: Tensor) -> "_Grids":
        """All grids that may fit groups `[G, n]`, of which some values are looked at to find the least difference."""
        low, high = y.amin(1, keepdim=True), y.amax(1, keepdim=True)
        top, span = torch.maximum(high, -low), high - low
        gaps = glance.sort(1).values.diff(dim=1)
        least = torch.where(gaps > 0.5 * span / MAX_STEPS, gaps, span).amin(1, keepdim=True)
        steps = [top / levels for levels in SYMMETRIC] + [span / levels for levels in SPANS]
        steps += [span / levels for levels in WITH_ZERO]  # with a whole zero point
        steps += [span / (divisor * span / least).round().clamp(1, MAX_STEPS) for divisor in DIVISORS]
        count = len(steps) - len(SYMMETRIC)
        before = len(SYMMETRIC) + len(SPANS)
        at_zero = {*range(len(SYMMETRIC)), *range(before, before + len(WITH_ZERO))}
        one_sided = [levels if levels in ONE_SIDED else 0 for levels in SYMMETRIC] + [0] * count
        return cls(
            torch.stack(steps),
            torch.stack([torch.zeros_like(low) if number in at_zero else low for number in range(len(steps))]),
            torch.tensor(one_sided, dtype=y.dtype)[:, None, None],
            torch.tensor([1] * len(SYMMETRIC) + [2] * count)[:, None],
            torch.where(high >= -low, 1.0, -1.0),
        )

    def only(self, kinds: Tensor) -> "_Grids":
        """Those of some kinds."""
        return _Grids(self.step[kinds], self.origin[kinds], self.one_sided[kinds], self.free[kinds], self.peak)

    def fit(self, x: Tensor, y: Tensor, precision: _Precision) -> tuple[Tensor, Tensor]:
        """Which groups are on a grid and nearest to it, and the log-odds against that by chance: `[K, G]`."""
        places = (y - self.origin) / self.step
        whole = places.round()
        size = y.abs() + self.origin.abs()
        slack = WHOLE * (whole != 0) + 2 * (precision.relative * size + precision.absolute) / self.step
        # There may be one value less on one side, to which anything beyond is rounded.
        is_last = (self.one_sided > 0) & (whole == -self.peak * (self.one_sided - 1))
        allowed = slack + torch.where(is_last, 1.0, 0.5)
        fits = (((places - whole).abs() <= slack) & ((x - y).abs() <= allowed * self.step)).all(2)
        fits &= whole.amax(2) > whole.amin(2)
        odds = -(2 * slack).clamp(WHOLE, 1).log() * ((whole != 0) | (self.origin != 0))
        return fits, (odds.sum(2) - self.free * odds.amax(2)).clamp(min=0)


def _even_grids(
    x: Tensor, y: Tensor, precision: _Precision, kinds: Tensor | None
) -> tuple[float, float, Tensor] | None:
    """Log-odds against chance, the smallest step and the kinds that fit; `None` if a group is on no grid."""
    glance = y[:, :GLANCE]
    grids = _Grids.of(y, glance)
    kinds = torch.arange(len(grids.step)) if kinds is None else kinds
    grids = grids.only(kinds)
    fits, proof = grids.fit(x[:, :GLANCE], glance, precision)
    if y.shape[1] > GLANCE:
        kept = (fits & (proof > math.log(CHOICES))).any(1)
        kinds, grids = kinds[kept], grids.only(kept)
        if not len(kinds):
            return None
        found = [grids.only(torch.tensor([i])).fit(x, y, precision) for i in range(len(kinds))]
        fits, proof = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not bool(fits.any(0).all()):
        return None
    steps = torch.where(fits, grids.step[..., 0], 0.0).amax(0)
    best = torch.where(fits, proof, -math.inf).amax(0)
    return float((best - math.log(CHOICES)).sum()), float(steps.min()), kinds[fits.any(1)]


def _is_in_code(x: Tensor, y: Tensor, precision: _Precision) -> bool:
    top = y.abs().amax(1, keepdim=True)
    scales = {
        "largest": torch.where(top > 0, top, 1.0),
        "power of two": 2.0 ** torch.where(top > 0, top, 1.0).log2().floor(),
    }
    is_zero = top[:, 0] == 0
    for scale in scales.values():
        few = max(1, GLANCE // y.shape[1])
        if _codes(y[:few, :GLANCE] / scale[:few], precision) is None:
            continue
        codes = _codes(y / scale, precision)
        if codes is None or len(codes) < 2:
            continue
        used = int((y != 0).sum()) - len(y)  # one defines the scale
        repeats = REPEATS if precision.relative < 1e-6 else COARSE_REPEATS
        if used < SHORT or used < repeats * int((codes != 0).sum()):
            continue
        smallest = float(codes[codes != 0].abs().min()) * float(scale[~is_zero].min())
        if bool(is_zero.any()) and float(x[is_zero].abs().max()) > 0.5 * smallest:
            continue
        if _is_nearest(x[~is_zero] / scale[~is_zero], y[~is_zero] / scale[~is_zero], codes, precision):
            return True
    return False


def _codes(values: Tensor, precision: _Precision) -> Tensor | None:
    """The few values of which all are roundings; `None` if they are not few."""
    sorted_values = values.flatten().unique()
    tolerance = CLUSTER * precision.relative
    starts = sorted_values.diff() > tolerance * torch.maximum(sorted_values[1:].abs(), sorted_values[:-1].abs())
    if int(starts.sum()) >= CODES:
        return None
    place = torch.cat([torch.zeros(1, dtype=torch.long), starts.long().cumsum(0)])
    count = int(place[-1]) + 1
    empty = torch.zeros(count, dtype=values.dtype)
    low, high = (empty.scatter_reduce(0, place, sorted_values, how, include_self=False) for how in ("amin", "amax"))
    is_narrow = high - low <= tolerance * torch.maximum(low.abs(), high.abs())
    return (low + high) / 2 if bool(is_narrow.all()) else None


def _is_nearest(x: Tensor, y: Tensor, codes: Tensor, precision: _Precision) -> bool:
    """Whether no code is nearer to a value than the one to which it was rounded."""
    nearest = codes[torch.bucketize(x.contiguous(), (codes[1:] + codes[:-1]) / 2)]
    slack = CLUSTER * precision.relative * torch.maximum(x.abs(), y.abs())
    return bool(((x - y).abs() <= (x - nearest).abs() + slack).all())
