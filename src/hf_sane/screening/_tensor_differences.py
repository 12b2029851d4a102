"""Compare two tensors of the same shape: bit by bit, after casts, and after quantisation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

GRID = 256  # distinct values of a row that was quantised to 8 bits
LEVELS = (127, 128, 7, 8)  # steps up to the largest value of a row, in 8 and 4 bits
WHOLE = 1e-3  # tolerance for multiples of the step, due to rounding
GROUP = 32  # neighbours that 4-bit formats quantise together
ON_GRID = 0.999  # share of values that must be the nearest on the grid
SHORT = 8  # vectors of which nothing can be said
MAX_QUANTISED_DISTANCE = 0.3
EPS = 8 * torch.finfo(torch.float32).eps  # distance that computing in single precision leaves
COARSE = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # types that values are rounded to
STEP, SHARE = 1.5, 0.35  # machine epsilons by which rounding twice moves a value at most, and all of them on average


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How much a tensor differs from its counterpart.

    Attributes:
        name: Name in the first checkpoint.
        other_name: Name in the other checkpoint.
        shape: Shape of both tensors.
        dtypes: Types of both tensors.
        gap: `|A - B|`, after undoing permutations and scales.
        scale: `sqrt(|A|^2 + |B|^2)`.
        cosine: Cosine of the angle between them; NaN if one is zero.
        largest: Largest absolute difference.
        is_equal: Whether they are equal, bit by bit.
        is_cast: Whether they are equal in the coarser of their types, or one is the other rounded to 16 or 8 bits.
        is_quantised: Whether one is the other, rounded to a few values per row or group of neighbours.
        is_rounding: Whether they differ by no more than rounding explains, in single precision or in their type.
        is_constant: Whether all values of both are equal, as in biases that were never trained.
    """

    name: str
    other_name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    gap: float
    scale: float
    cosine: float
    largest: float
    is_equal: bool
    is_cast: bool
    is_quantised: bool
    is_rounding: bool
    is_constant: bool

    @property
    def distance(self) -> float:
        """Gap over scale: 0 for equal tensors, 1 for independent ones with mean zero; NaN if one is not finite."""
        return 0.0 if self.gap == 0 else self.gap / self.scale

    @property
    def is_same(self) -> bool:
        """Whether they are equal up to casts, rounding and quantisation."""
        return self.is_cast or self.is_rounding or self.is_quantised

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def row(self) -> dict[str, Any]:
        """A row for JSON."""
        values = {name: getattr(self, name) for name in (*self.__dataclass_fields__, "distance")}
        values |= {"shape": list(self.shape), "dtypes": list(self.dtypes)}
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


def compare_tensors(
    name: str,
    other_name: str,
    a: Tensor,
    b: Tensor,
    *,
    dtypes: tuple[torch.dtype, torch.dtype] | None = None,
    tolerance: float = EPS,
    is_rescaled: bool = False,
) -> TensorDifference:
    """Compare two tensors of the same shape.

    Args:
        name: Name of the first tensor.
        other_name: Name of the other tensor.
        a: The first.
        b: The other.
        dtypes: Types in which they are stored, if they were converted.
        tolerance: Distance that counts as rounding.
        is_rescaled: Whether channels were scaled, after which casts are no longer exact.
    """
    kinds = dtypes or (a.dtype, b.dtype)
    x, y = (_wide(tensor) for tensor in (a, b))
    is_equal = kinds[0] == kinds[1] and (torch.equal(x, y) or torch.equal(_bits(a), _bits(b)))
    gap, sizes = x - y, (float(x.norm()), float(y.norm()))
    found = TensorDifference(
        name=name,
        other_name=other_name,
        shape=tuple(a.shape),
        dtypes=(str(kinds[0]).removeprefix("torch."), str(kinds[1]).removeprefix("torch.")),
        gap=0.0 if is_equal else float(gap.norm()),
        scale=math.hypot(*sizes),
        cosine=float((x * y).sum()) / (sizes[0] * sizes[1]) if sizes[0] * sizes[1] > 0 else math.nan,
        largest=float(gap.abs().max()) if gap.numel() and not is_equal else 0.0,
        is_equal=is_equal,
        is_cast=is_equal,
        is_quantised=False,
        is_rounding=is_equal,
        is_constant=_is_constant(x) and _is_constant(y),
    )
    is_float = all(kind.is_floating_point for kind in kinds)
    if is_equal or not is_float:
        return found
    is_cast = _is_cast(a, b, kinds)
    is_rounding = is_cast or found.distance <= tolerance or _differ_by_rounding(x, y, found, kinds, is_rescaled)
    is_near = found.distance < MAX_QUANTISED_DISTANCE
    is_quantised = not is_rounding and is_near and (is_rounded(x, y) or is_rounded(y, x))
    return replace(found, is_cast=is_cast, is_rounding=is_rounding, is_quantised=is_quantised)


def total_distance(tensors: Iterable[TensorDifference]) -> float:
    """Distance of all tensors as one vector; NaN if one of them is not finite."""
    found = [x for x in tensors if x.gap != 0 or math.isfinite(x.scale)]
    gap = math.hypot(*(x.gap for x in found))
    return 0.0 if gap == 0 else gap / math.hypot(*(x.scale for x in found))


def is_rounded(fine: Tensor, coarse: Tensor) -> bool:
    """Whether `coarse` is `fine`, rounded to the few values that `coarse` has in each row or group of neighbours.

    In rows that are too short to count distinct values, the values must be whole multiples of the largest divided by
    127 or 7, as from quantisation by the largest absolute value.
    """
    if fine.ndim == 0 or (fine.ndim == 1 and len(fine) < SHORT):
        return False
    rows, grids = (x.flatten(1) if x.ndim > 1 else x[None] for x in (fine, coarse))
    groups = [(rows, grids)]
    if rows.numel() % GROUP == 0:
        groups.append((rows.reshape(-1, GROUP), grids.reshape(-1, GROUP)))
    return any(_is_on_grid(x, y) or _is_multiple(x, y) for x, y in groups)


def _is_multiple(rows: Tensor, grids: Tensor) -> bool:
    largest = grids.abs().amax(1, keepdim=True)
    for levels in LEVELS:
        step = torch.where(largest > 0, largest, 1.0) / levels
        is_whole = ((grids / step).round() - grids / step).abs() < WHOLE
        is_near = (rows - grids).abs() <= (0.5 + WHOLE) * step
        if (is_whole & is_near).double().mean() >= ON_GRID:
            return True
    return False


def _is_on_grid(rows: Tensor, grids: Tensor) -> bool:
    hits = total = 0
    for row, grid in zip(rows, grids, strict=True):
        values = grid.unique()  # sorted
        if len(values) > min(GRID, 0.75 * len(row)):
            return False
        place = torch.bucketize(row, (values[1:] + values[:-1]) / 2)
        nearest = values[place]
        step = (values[1:] - values[:-1]).min() if len(values) > 1 else torch.ones(())
        hits += int(((nearest - grid).abs() <= 0.5 * step).sum())  # ties may be rounded either way
        total += len(row)
    return hits >= ON_GRID * total


def _wide(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    return torch.view_as_real(plain).double() if plain.is_complex() else plain.double()


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, by which also NaN can be compared."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _is_constant(values: Tensor) -> bool:
    return values.numel() < 2 or bool((values == values.flatten()[0]).all())


def _is_cast(a: Tensor, b: Tensor, kinds: tuple[torch.dtype, torch.dtype]) -> bool:
    """Whether tensors are equal in the coarser of their types, or one is the other in a coarser one."""
    coarse = _coarser(*kinds)
    x, y = a.to(kinds[0]), b.to(kinds[1])
    if kinds[0] != kinds[1] and torch.equal(x.to(coarse).float(), y.to(coarse).float()):
        return True
    wide = x.double(), y.double()
    for dtype in COARSE:
        for one, other in (wide, wide[::-1]):
            if torch.equal(one.to(dtype).double(), other) and bool(other.any()):
                return True
    return False


def _differ_by_rounding(
    x: Tensor, y: Tensor, found: TensorDifference, kinds: tuple[torch.dtype, torch.dtype], is_rescaled: bool
) -> bool:
    """Whether both were rounded, and no value moved by more than that explains."""
    if kinds[0] != kinds[1] and not is_rescaled:
        return False
    info = torch.finfo(_coarser(*kinds))
    near = (x - y).abs() <= STEP * info.eps * (torch.maximum(x.abs(), y.abs()) + info.tiny)
    return found.distance <= SHARE * info.eps and bool(near.all())


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The type with fewer values: by bits, then by precision."""
    return max((a, b), key=lambda dtype: (-dtype.itemsize, torch.finfo(dtype).eps))
