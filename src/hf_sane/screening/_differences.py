"""Compare two checkpoints tensor by tensor, and up to changes that do not affect the network's outputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._progress import tracked
from hf_sane.screening._fingerprints import fingerprint
from hf_sane.screening._index import Likeness, likeness
from hf_sane.screening._names import outlines, pair_names
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._permutation import Permutation, PermutationSpec

Relation = Literal[
    "equal",
    "cast",
    "quantised",
    "permuted",
    "rescaled",
    "partly equal",
    "close",
    "far",
    "unrelated",
    "undecided",
]
GRID = 256  # distinct values of a row that was quantised to 8 bits
LEVELS = (127, 128, 7, 8)  # steps up to the largest value of a row, in 8 and 4 bits
WHOLE = 1e-3  # tolerance for multiples of the step, due to rounding
GROUP = 32  # neighbours that 4-bit formats quantise together
ON_GRID = 0.999  # share of values that must be the nearest on the grid
MAX_QUANTISED_DISTANCE = 0.3
EPS = 8  # machine epsilons of the coarser type allowed for rounding
ORDERS = 3  # random orders of weight matching, after the given order
CLOSE, UNRELATED = 0.5, 0.9  # shares of the distance by chance at which networks are close and unrelated


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
        is_cast: Whether they are equal in the coarser of their types.
        is_quantised: Whether one is the other, rounded to a few values per row or group of neighbours.
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

    @property
    def distance(self) -> float:
        """Gap over scale: 0 for equal tensors, 1 for independent ones with mean zero; NaN if one is not finite."""
        return 0.0 if self.gap == 0 else self.gap / self.scale

    def row(self) -> dict[str, Any]:
        """A row for JSON."""
        values = {name: getattr(self, name) for name in (*self.__dataclass_fields__, "distance")}
        values |= {"shape": list(self.shape), "dtypes": list(self.dtypes)}
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        relation: How they are related; `None` only while that is being determined.
        tensors: Tensors that both have, in the order of the first.
        only_first: Names that only the first has.
        only_other: Names that only the other has.
        distance: Distance of all common tensors, as one vector.
        distance_as_stored: The same before undoing permutations and scales.
        distance_by_chance: Distance of the first from the other with the values of each tensor shuffled, after the
            same alignment, as expected for independent networks of this size and scale.
        is_permuted: Whether channels were reordered for the comparison.
        is_rescaled: Whether scales of channels were undone.
        unaligned: Why channels were not matched; `None` if they were.
        likeness: Likeness of their fingerprints, if they are far apart and channels were not matched.
    """

    relation: Relation | None
    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_other: tuple[str, ...]
    distance: float
    distance_as_stored: float
    distance_by_chance: float = math.nan
    is_permuted: bool = False
    is_rescaled: bool = False
    unaligned: str | None = None
    likeness: Likeness | None = None


def compare_checkpoints(
    first: Mapping[str, Tensor], other: Mapping[str, Tensor], spec: PermutationSpec | None, *, why_not: str = ""
) -> Difference:
    """Compare two checkpoints as stored, and after undoing changes that do not affect the function.

    Args:
        first: Tensors by name, which are read one at a time.
        other: Tensors of the other checkpoint. Names may have another prefix.
        spec: Permutation symmetries of the first; `None` if they are unknown.
        why_not: Why they are unknown.

    Raises:
        ValueError: If they have no tensor in common.
    """
    pairs = pair_names(outlines(first), outlines(other))
    if not pairs:
        raise ValueError(
            "the checkpoints have no tensor with the same name and shape; compare networks of one architecture"
        )
    only = (
        tuple(name for name in first if name not in pairs),
        tuple(name for name in other if name not in set(pairs.values())),
    )
    named = tracked(pairs.items(), desc="comparing", unit="tensor")
    stored = [compare_tensors(name, other_name, first[name], other[other_name]) for name, other_name in named]
    plain = Difference(
        relation=_same(stored) if not any(only) else None,
        tensors=tuple(stored),
        only_first=only[0],
        only_other=only[1],
        distance=_total(stored),
        distance_as_stored=_total(stored),
        unaligned=why_not or None,
    )
    if plain.relation is not None:
        return plain
    if spec is not None and (reason := _hindrance(spec, first, other, pairs)):
        spec, plain = None, replace(plain, unaligned=reason)
    if spec is None:
        chance = [compare_tensors(n, pairs[n], first[n], _shuffle(other[pairs[n]])) for n in pairs]
        return _doubted(_placed(plain, _total(chance)), first, other)
    mine, theirs = {n: first[n] for n in pairs}, {n: other[pairs[n]] for n in pairs}
    found = _undone(plain, spec, mine, theirs)
    if found.relation is not None:
        return found
    shuffled = {name: _shuffle(tensor) for name, tensor in theirs.items()}
    chance = [compare_tensors(n, pairs[n], mine[n], shuffled[n]) for n in pairs]
    _, aligned = _aligned(plain, spec, mine, shuffled, None)
    return _placed(found, min(_total(chance), _total(aligned)))


def _hindrance(
    spec: PermutationSpec, first: Mapping[str, Tensor], other: Mapping[str, Tensor], pairs: Mapping[str, str]
) -> str | None:
    """Why channels cannot be matched, if so."""
    if missing := [name for name in spec.axes if name not in pairs]:
        return f"{len(missing)} tensors with channels to match are not in both, such as {missing[0]!r}"
    is_finite = all(first[name].isfinite().all() and other[pairs[name]].isfinite().all() for name in spec.axes)
    return None if is_finite else "there are NaN or infinite weights"


def _undone(plain: Difference, spec: PermutationSpec, mine: StateDict, theirs: StateDict) -> Difference:
    """The comparison after matching channels and, if scales explain the rest, after undoing scales."""
    best = replace(plain, unaligned=None)
    for is_rescaled in (False, True) if scalable_axes(spec) else (False,):
        a, b = (canonical_scales(spec, x) if is_rescaled else x for x in (mine, theirs))
        for attempt in range(1 + ORDERS):
            generator = torch.Generator().manual_seed(attempt) if attempt else None
            permutation, found = _aligned(plain, spec, a, b, generator)
            aligned = replace(
                best, tensors=tuple(found), distance=_total(found), is_permuted=not _is_identity(permutation)
            )
            if all(_is_rounding(x) for x in found):
                return replace(aligned, relation="rescaled" if is_rescaled else "permuted", is_rescaled=is_rescaled)
            if not is_rescaled and aligned.distance < best.distance:
                best = aligned
    return best


def _aligned(
    plain: Difference, spec: PermutationSpec, a: StateDict, b: StateDict, generator: torch.Generator | None
) -> tuple[Permutation, list[TensorDifference]]:
    """Match the channels of the other checkpoint to those of the first, and compare again."""
    permutation = match_weights(
        spec, {name: a[name] for name in spec.axes}, {name: b[name] for name in spec.axes}, generator=generator
    )
    moved = b | spec.apply({name: b[name] for name in spec.axes}, permutation)
    types = {x.name: tuple(getattr(torch, name) for name in x.dtypes) for x in plain.tensors}
    return permutation, [
        compare_tensors(x.name, x.other_name, a[x.name], moved[x.name], dtypes=types[x.name]) for x in plain.tensors
    ]


def _shuffle(tensor: Tensor) -> Tensor:
    """The same values in random order."""
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))
    return tensor.flatten()[order].view(tensor.shape)


def _placed(found: Difference, by_chance: float) -> Difference:
    """Classify the distance relative to the distance by chance."""
    matrices = [x for x in found.tensors if len(x.shape) > 1] or list(found.tensors)
    share = found.distance / by_chance if by_chance else math.nan
    relation: Relation = "close" if share < CLOSE else "far" if share < UNRELATED else "unrelated"
    if 2 * sum(x.is_cast for x in matrices) >= len(matrices):
        relation = "partly equal"
    return replace(found, relation=relation, distance_by_chance=by_chance)


def _doubted(found: Difference, first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Difference:
    """The comparison without alignment, in which a network may seem unrelated to a reordered copy.

    Fingerprints do not depend on the order of channels.
    """
    if found.relation not in ("far", "unrelated"):
        return found
    alike = likeness(fingerprint(first), fingerprint(other))
    is_unclear = alike != "other" or math.isnan(found.distance)
    return replace(found, relation="undecided" if is_unclear else found.relation, likeness=alike)


def _is_identity(permutation: Mapping[str, Tensor]) -> bool:
    """Whether a permutation moves nothing."""
    return all(torch.equal(index, torch.arange(len(index))) for index in permutation.values())


def compare_tensors(
    name: str, other_name: str, a: Tensor, b: Tensor, *, dtypes: tuple[torch.dtype, torch.dtype] | None = None
) -> TensorDifference:
    """Compare two tensors of the same shape.

    Args:
        name: Name of the first tensor.
        other_name: Name of the other tensor.
        a: The first.
        b: The other.
        dtypes: Types in which they are stored, if they were converted.
    """
    kinds = dtypes or (a.dtype, b.dtype)
    x, y = (_wide(tensor) for tensor in (a, b))
    gap, sizes = x - y, (float(x.norm()), float(y.norm()))
    is_equal = a.dtype == b.dtype and torch.equal(a, b)
    is_float = a.is_floating_point() and b.is_floating_point()
    coarse = _coarser(a.dtype, b.dtype) if is_float else a.dtype
    is_cast = is_equal or (is_float and a.dtype != b.dtype and torch.equal(a.to(coarse), b.to(coarse)))
    found = TensorDifference(
        name=name,
        other_name=other_name,
        shape=tuple(a.shape),
        dtypes=(str(kinds[0]).removeprefix("torch."), str(kinds[1]).removeprefix("torch.")),
        gap=float(gap.norm()),
        scale=math.hypot(*sizes),
        cosine=float((x * y).sum()) / (sizes[0] * sizes[1]) if sizes[0] * sizes[1] > 0 else math.nan,
        largest=float(gap.abs().max()) if gap.numel() else 0.0,
        is_equal=is_equal,
        is_cast=is_cast,
        is_quantised=False,
    )
    is_near = is_float and not is_cast and found.distance < MAX_QUANTISED_DISTANCE
    return replace(found, is_quantised=True) if is_near and (is_rounded(x, y) or is_rounded(y, x)) else found


def is_rounded(fine: Tensor, coarse: Tensor) -> bool:
    """Whether `coarse` is `fine`, rounded to the few values that `coarse` has in each row or group of neighbours.

    In rows that are too short to count distinct values, the values must be whole multiples of the largest divided by
    127 or 7, as from quantisation by the largest absolute value.
    """
    if fine.ndim < 2:
        return False
    rows, grids = fine.flatten(1), coarse.flatten(1)
    groups = [(rows, grids)]
    if rows.shape[1] % GROUP == 0:
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


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The type with fewer values: by bits, then by precision."""
    return max((a, b), key=lambda dtype: (-dtype.itemsize, torch.finfo(dtype).eps))


def _is_rounding(found: TensorDifference) -> bool:
    """Whether rounding explains the difference."""
    types = [getattr(torch, name) for name in found.dtypes]
    if not all(dtype.is_floating_point for dtype in types):
        return found.is_equal or found.largest == 0
    return found.is_cast or found.distance <= EPS * max(torch.finfo(dtype).eps for dtype in types)


def _total(tensors: list[TensorDifference]) -> float:
    """Distance of all tensors as one vector; NaN if one of them is not finite."""
    gap = math.hypot(*(x.gap for x in tensors))
    return 0.0 if gap == 0 else gap / math.hypot(*(x.scale for x in tensors))


def _same(tensors: list[TensorDifference]) -> Relation | None:
    """The relation, if they are the same network as stored or after rounding."""
    if all(x.is_equal for x in tensors):
        return "equal"
    if all(x.is_cast for x in tensors):
        return "cast"
    return "quantised" if all(x.is_cast or x.is_quantised for x in tensors) else None
