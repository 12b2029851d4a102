"""Compare two tensors of the same shape: bit by bit, after casts, and after quantisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_sane.screening._grids import is_rounded

MAX_QUANTISED_DISTANCE = 0.6, 0.3  # of matrices, in as few as two bits, and of vectors
EPS = 8 * torch.finfo(torch.float32).eps  # distance that computing in single precision leaves
SPREAD = 32  # of a value's difference over that of all
COARSE = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # types that values are rounded to
STEP, SHARE = 1.5, 0.35  # machine epsilons by which rounding twice moves a value at most, and all of them on average

SIDES = "first", "other"
MAX_RANK, OVERSAMPLING = 128, 8  # of differences, as from LoRA adapters
FLAT = 1 / 3  # of its norm, that a difference of low rank leaves at most
MAX_RANKED_DISTANCE = 0.5  # of tensors whose difference may have a low rank
ROUND_OFF = 1e-7  # of the largest singular value, that computing in double precision leaves in sums of squares


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How much a tensor differs from its counterpart.

    Attributes:
        name: Name in the first checkpoint.
        other_name: Name in the other checkpoint.
        shape: Shape of both tensors.
        dtypes: Types of both tensors.
        difference_norm: `|A - B|`, after undoing permutations and scales.
        joint_norm: `sqrt(|A|^2 + |B|^2)`.
        cosine: Cosine of the angle between them; NaN if one is zero.
        largest: Largest absolute difference.
        is_equal: Whether they are equal, bit by bit.
        is_cast: Whether they are equal in the coarser of their types, or one is the other rounded to 16 or 8 bits.
        is_quantised: Whether one is the other, with all values rounded to a few: per tensor, row, column or block.
        is_rounding: Whether they differ by no more than rounding explains, in single precision or in their type.
        is_constant: Whether all values of both are equal, as in biases that were never trained.
        changes: Which changes of one of the two explain the difference, such as `other in bfloat16`, `other as stored`
            (in its type) and `first quantised`.
        rank: Rank of their difference if it is low, up to rounding, as after merging a LoRA adapter; `None` otherwise.
    """

    name: str
    other_name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    difference_norm: float
    joint_norm: float
    cosine: float
    largest: float
    is_equal: bool
    is_cast: bool
    is_quantised: bool
    is_rounding: bool
    is_constant: bool
    changes: tuple[str, ...] = ()
    rank: int | None = None

    @property
    def distance(self) -> float:
        """0 for equal tensors, 1 for independent ones with mean zero; NaN if one is not finite."""
        return 0.0 if self.difference_norm == 0 else self.difference_norm / self.joint_norm

    @property
    def is_same(self) -> bool:
        """Whether they are equal up to casts, rounding and quantisation."""
        return self.is_cast or self.is_rounding or self.is_quantised

    @property
    def holds_weights(self) -> bool:
        """Whether it holds weights, and not counters, masks or position indices."""
        return any(name.startswith(("float", "bfloat", "complex")) or name == "int8" for name in self.dtypes)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def row(self) -> dict[str, Any]:
        """A row for JSON."""
        values = {name: getattr(self, name) for name in (*self.__dataclass_fields__, "distance")}
        values |= {"shape": list(self.shape), "dtypes": list(self.dtypes), "changes": list(self.changes)}
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
    finds_rank: bool = False,
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
        finds_rank: Whether to compute the rank of the difference.
    """
    kinds = dtypes or (a.dtype, b.dtype)
    shape = tuple(a.shape)
    names = str(kinds[0]).removeprefix("torch."), str(kinds[1]).removeprefix("torch.")
    if any(kind.is_complex for kind in kinds):
        a, b = (torch.view_as_real(x if x.is_complex() else torch.complex(x, torch.zeros_like(x))) for x in (a, b))
        kinds = kinds[0].to_real(), kinds[1].to_real()
    x, y = (tensor.detach().double() for tensor in (a, b))
    has_same_values = torch.equal(x, y)
    is_equal = names[0] == names[1] and (has_same_values or torch.equal(_bits(a), _bits(b)))
    gap, sizes = x - y, (float(x.norm()), float(y.norm()))
    found = TensorDifference(
        name=name,
        other_name=other_name,
        shape=shape,
        dtypes=names,
        difference_norm=0.0 if is_equal else float(gap.norm()),
        joint_norm=math.hypot(*sizes),
        cosine=float((x * y).sum()) / (sizes[0] * sizes[1]) if sizes[0] * sizes[1] > 0 else math.nan,
        largest=float(gap.abs().max()) if gap.numel() and not is_equal else 0.0,
        is_equal=is_equal,
        is_cast=is_equal or has_same_values,
        is_quantised=False,
        is_rounding=is_equal or has_same_values,
        is_constant=_is_constant(x) and _is_constant(y),
    )
    is_float = all(kind.is_floating_point for kind in kinds)
    if is_equal or has_same_values or not is_float:
        return found
    changes = _casts(a, b, kinds)
    is_cast = bool(changes)
    is_rounding = is_cast or _is_near(x, y, found, tolerance) or _differ_by_rounding(x, y, found, kinds, is_rescaled)
    if not is_rounding and found.distance < MAX_QUANTISED_DISTANCE[x.ndim < 2]:
        coarse = {"other": is_rounded(x, y), "first": is_rounded(y, x)}
        changes = tuple(f"{side} quantised" for side, holds in coarse.items() if holds)
    is_quantised = not is_rounding and bool(changes)
    has_rank = finds_rank and not is_rounding and not is_quantised and found.distance < MAX_RANKED_DISTANCE
    noise = SHARE * _precision(kinds) * found.joint_norm + EPS * found.difference_norm  # of the sum, and of a product
    rank = difference_rank(gap, tolerance=noise) if has_rank else None
    return replace(
        found, is_cast=is_cast, is_rounding=is_rounding, is_quantised=is_quantised, changes=changes, rank=rank
    )


def total_distance(tensors: Sequence[TensorDifference]) -> float:
    """Distance of all weights as one vector; NaN if one of them is not finite."""
    found = [x for x in weights_among(tensors) if x.difference_norm != 0 or math.isfinite(x.joint_norm)]
    gap = math.hypot(*(x.difference_norm for x in found))
    return 0.0 if gap == 0 else gap / math.hypot(*(x.joint_norm for x in found))


def weights_among(tensors: Sequence[TensorDifference]) -> list[TensorDifference]:
    """Tensors that hold weights, or all if none does."""
    return [x for x in tensors if x.holds_weights] or list(tensors)


def difference_rank(difference: Tensor, *, tolerance: float) -> int | None:
    """The rank of a matrix if it is low: at most a quarter of its sides, and at most 128.

    Returns `None` if only a few rows or columns differ from zero, since a low rank then means nothing.

    Args:
        difference: The matrix, or a kernel `[rows, columns, *kernel]`.
        tolerance: Norm of what rounding may add to it.
    """
    if difference.ndim < 2:
        return None
    matrix = difference.flatten(1)
    limit = min(MAX_RANK, min(matrix.shape) // 4)
    if limit < 1:
        return None
    squares = _squares(matrix, limit + OVERSAMPLING)
    left = float(matrix.square().sum()) - torch.cumsum(squares, 0)
    tolerance = min(tolerance, FLAT * float(matrix.norm()))  # a flat spectrum is rounding, which has no rank
    fitting = (left.clamp(min=0).sqrt() <= tolerance + ROUND_OFF * math.sqrt(float(squares[0]))).nonzero()
    rank = int(fitting[0]) + 1 if len(fitting) else limit + 1
    touched = min(int((matrix != 0).any(dim).sum()) for dim in (0, 1))
    return rank if rank <= min(limit, touched - 1) else None


def _squares(matrix: Tensor, count: int) -> Tensor:
    """The largest squared singular values, by a randomised range finder (Halko et al. 2011) if there are many."""
    if 2 * count >= min(matrix.shape):
        return torch.linalg.svdvals(matrix).square()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    return torch.linalg.svdvals(basis.T @ matrix).square()


def _precision(kinds: tuple[torch.dtype, torch.dtype]) -> float:
    """Machine epsilon of the coarser type, or of single precision (that of matrix products) if both are finer."""
    return max(torch.finfo(torch.float32).eps, *(torch.finfo(kind).eps for kind in kinds))


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, with which NaN values can be compared, too."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _is_constant(values: Tensor) -> bool:
    return values.numel() < 2 or bool((values == values.flatten()[0]).all())


def _casts(a: Tensor, b: Tensor, kinds: tuple[torch.dtype, torch.dtype]) -> tuple[str, ...]:
    """How one tensor is the other in a coarser type: in that of the two, in which it is stored, or in another one.

    A constant is no evidence of another type than that in which it is stored: any vector near it can be rounded to it.
    """
    x, y = a.to(kinds[0]), b.to(kinds[1])
    wide = x.double(), y.double()
    if not all(bool(values.isfinite().all()) for values in wide):
        return ()
    found = []
    coarse = _coarser(*kinds)
    if kinds[0] != kinds[1] and torch.equal(x.to(coarse).float(), y.to(coarse).float()):
        side = SIDES[kinds[1] == coarse]
        found += [f"{side} as stored", _in(side, coarse)]
    for dtype in COARSE:
        for side, one, other in zip(SIDES[::-1], wide, wide[::-1], strict=True):
            if (
                _in(side, dtype) not in found
                and not _is_constant(other)
                and torch.equal(one.to(dtype).double(), other)
            ):
                found.append(_in(side, dtype))
    return tuple(found)


def _in(side: str, dtype: torch.dtype) -> str:
    return f"{side} in {str(dtype).removeprefix('torch.')}"


def _is_near(x: Tensor, y: Tensor, found: TensorDifference, tolerance: float) -> bool:
    """Whether they differ as by computing in single precision: as a whole, and no value by much more than others."""
    if not found.distance <= tolerance:
        return False
    sizes = torch.maximum(x.abs(), y.abs())
    return bool(((x - y).abs() <= SPREAD * tolerance * (sizes + sizes.median())).all())


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
