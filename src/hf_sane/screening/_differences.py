"""Compare two checkpoints tensor by tensor, and up to changes that do not affect the network's outputs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from hf_sane.core._named_tensors import RenamedTensors, outlines
from hf_sane.core._types import StateDict
from hf_sane.records._progress import tracked
from hf_sane.screening._fingerprints import fingerprint, is_weights
from hf_sane.screening._float8 import readable
from hf_sane.screening._index import Likeness, likeness
from hf_sane.screening._names import pair_names
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.screening._tables import is_table, without_table
from hf_sane.screening._tensor_differences import EPS, TensorDifference, compare_tensors, total_distance, weights_among
from hf_sane.symmetry._experts import Symmetries
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._permutation import Permutation, PermutationSpec

Relation = Literal[
    "equal",
    "cast",
    "rounded",
    "quantised",
    "permuted",
    "rescaled",
    "other scales",
    "low rank",
    "partly equal",
    "close",
    "far",
    "unrelated",
    "undecided",
]
ORDERS = 2  # random orders of weight matching, after the given order
SWEEPS = 2  # over the axes, to undo scales or to try which axes are better left in their order
BETTER = 0.9  # share of the distance that undoing scales has to leave at most
TRUST = 0.05  # distance of tensors that count for half of equal ones when channels are matched again
CLOSE, UNRELATED = 0.5, 0.9  # shares of the distance by chance at which networks are close and unrelated
MAX_TIED = 4  # tensors that only one checkpoint has that are compared with its others, to find tied ones
MAX_QUANTISED = 0.3  # distance of a network that may have been quantised after it was reordered
PART = 0.1  # share of the weights of one checkpoint that must be equal to call the two partly equal


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        relation: Relation of the checkpoints; `None` only while it is being determined.
        tensors: Tensors of both checkpoints, in the order of the first.
        only_first: Names of tensors in the first checkpoint only.
        only_other: Names of tensors in the other checkpoint only.
        equal_shares: Shares of the weights of the first and of the other in tensors that are equal in both, up to
            rounding.
        distance: Distance of all common tensors, as one vector.
        distance_as_stored: This distance before undoing permutations and scales.
        distance_by_chance: Distance of the first from the other with the values of each tensor shuffled, after the
            same alignment, as expected for independent networks of this size and scale.
        is_permuted: Whether channels were reordered for the comparison.
        is_rescaled: Whether scales of channels were undone.
        unaligned: Reason why channels were not matched; `None` if they were.
        likeness: Likeness of their fingerprints, if they are far apart.
        tables: Names of matrices from which the relation was not told, or only from what is not in them: fixed tables,
            such as sinusoids, and those that were trained from one.
    """

    relation: Relation | None
    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_other: tuple[str, ...]
    equal_shares: tuple[float, float] = (0.0, 0.0)
    distance: float
    distance_as_stored: float
    distance_by_chance: float = math.nan
    is_permuted: bool = False
    is_rescaled: bool = False
    unaligned: str | None = None
    likeness: Likeness | None = None
    tables: tuple[str, ...] = ()


def compare_checkpoints(
    first: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    symmetries: Symmetries | None,
    *,
    why_not: str = "",
    tolerance: float = EPS,
    finds_ranks: bool = True,
    keep_rescaled: Callable[[StateDict], None] = lambda moved: None,
) -> Difference:
    """Compare two checkpoints as stored, and after undoing changes that do not affect the function.

    Args:
        first: Tensors by name, which are read one at a time.
        other: Tensors of the other checkpoint. Names may have another prefix.
        symmetries: Permutation symmetries of the first; `None` if they are unknown.
        why_not: Why they are unknown.
        tolerance: Distance of a tensor that counts as rounding.
        finds_ranks: Whether to compute the ranks of differences, if they are low.
        keep_rescaled: Called with the other network as it was compared, under the names of the first, if scales of its
            channels were undone.

    Raises:
        ValueError: If they have no layer in common.
    """
    pairs = pair_names(outlines(first), outlines(other))
    if not pairs:
        raise ValueError(
            "the checkpoints have no layers in common: no matrix has the same name (apart from a prefix) and shape in "
            "both; compare networks of one architecture"
        )
    only = (
        tuple(name for name in first if name not in pairs),
        tuple(name for name in other if name not in set(pairs.values())),
    )
    named = tracked(pairs.items(), desc="comparing", unit="tensor")
    stored = [compare_tensors(n, m, first[n], other[m], tolerance=tolerance, finds_rank=finds_ranks) for n, m in named]
    is_part = bool(_additional(first, only[0]) or _additional(other, only[1]))
    plain = Difference(
        relation=None if is_part else _same(stored),
        tensors=tuple(stored),
        only_first=only[0],
        only_other=only[1],
        distance=total_distance(stored),
        distance_as_stored=total_distance(stored),
        unaligned=why_not or None,
    )
    sizes = _size(first), _size(other)
    alike = cache(lambda: likeness(fingerprint(first), fingerprint(other)))
    if plain.relation is not None:
        return _with_shares(plain, sizes)
    tables = {name for name in pairs if is_table(first[name]) or is_table(other[pairs[name]])}
    if _same(stored) is not None and _has_part(stored, tables, sizes):
        return _with_shares(replace(plain, relation="partly equal"), sizes)
    if not is_part and _has_low_rank(stored):
        return _with_shares(replace(plain, relation="low rank"), sizes)
    if symmetries is not None:
        symmetries = symmetries.select({name: name for name in symmetries.names if name in pairs})
        names = symmetries.names
        if not all(x.isfinite().all() for n in names for x in (_plain(first[n]), _plain(other[pairs[n]]))):
            symmetries, plain = None, replace(plain, unaligned="there are NaN or infinite weights")
    if symmetries is None or not symmetries.spec.sizes:  # no channels can move
        shuffled = [compare_tensors(n, m, first[n], _shuffle(other[m])) for n, m in pairs.items()]
        paired = RenamedTensors(other, pairs)
        found = _placed(_with_shares(plain, sizes), first, paired, (shuffled, shuffled), tables, sizes, alike)
        return _doubted(found, alike)
    mine, theirs = {n: _plain(first[n]) for n in pairs}, {n: _plain(other[pairs[n]]) for n in pairs}
    found, moved = _undone(plain, symmetries, mine, theirs, tolerance)
    if found.is_rescaled:
        keep_rescaled(moved)
    found = _with_shares(found, sizes)
    if (same := _same(found.tensors)) is not None and not is_part:
        return found if found.relation is not None else replace(found, relation=same)
    if same is not None and _has_part(found.tensors, tables, sizes):
        return replace(found, relation="partly equal")
    if not is_part and _has_low_rank(found.tensors):
        return replace(found, relation="low rank")
    mixed = {name: _shuffle(tensor) for name, tensor in theirs.items()}
    sides = symmetries.join(mine), symmetries.join(mixed)
    permutation = _match(symmetries.spec, *sides, is_rescaled=found.is_rescaled)
    aligned = symmetries.split(_moved(symmetries.spec, *sides, permutation, is_rescaled=found.is_rescaled))
    by_chance = [[compare_tensors(n, m, mine[n], x[n]) for n, m in pairs.items()] for x in (mixed, aligned)]
    nearest = min(by_chance, key=total_distance)
    return _doubted(_placed(found, mine, moved, (by_chance[0], nearest), tables, sizes, alike), alike)


def _additional(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """Those of some tensors that are weights and not tied to another tensor of the network."""
    known = outlines(tensors)
    weights, found = [name for name in names if is_weights(known[name])], list[str]()
    if len(weights) > MAX_TIED:
        return weights
    for name in weights:
        alike = [other for other in known if other not in names and known[other].shape == known[name].shape]
        if not any(torch.equal(_plain(tensors[name]), _plain(tensors[other])) for other in alike):
            found.append(name)
    return found


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(x.numel() for x in outlines(tensors).values() if is_weights(x))


def _with_shares(found: Difference, sizes: tuple[int, int]) -> Difference:
    """The comparison with the shares of the weights that are equal."""
    equal = sum(x.size for x in found.tensors if x.is_same and x.holds_weights)
    return replace(found, equal_shares=(min(1.0, equal / max(1, sizes[0])), min(1.0, equal / max(1, sizes[1]))))


def _undone(
    plain: Difference, symmetries: Symmetries, mine: StateDict, theirs: StateDict, tolerance: float
) -> tuple[Difference, StateDict]:
    """The comparison after matching channels and undoing scales, where that brings the networks nearer; and the other.

    The order in which they are stored is a candidate, for all axes together and for each by itself.
    """
    best, best_moved, order = replace(plain, unaligned=None), theirs, symmetries.spec.identity()
    spec, sides = symmetries.spec, (symmetries.join(mine), symmetries.join(theirs))
    for is_rescaled in (False, True) if scalable_axes(spec) else (False,):
        for permutation in _candidates(spec, *sides, is_rescaled=is_rescaled):
            moved = symmetries.split(_moved(spec, *sides, permutation, is_rescaled=is_rescaled))
            found = [
                compare_tensors(
                    x.name,
                    x.other_name,
                    mine[x.name],
                    moved[x.name],
                    dtypes=_types(x),
                    tolerance=tolerance,
                    is_rescaled=is_rescaled,
                )
                for x in plain.tensors
            ]
            is_permuted = not _is_identity(permutation)
            aligned = replace(
                best,
                tensors=tuple(found),
                distance=total_distance(found),
                is_permuted=is_permuted,
                is_rescaled=is_rescaled,
            )
            if (same := _same(found)) is not None:
                how: Relation = "rescaled" if is_rescaled else "permuted" if is_permuted else same
                return replace(aligned, relation="quantised" if same == "quantised" else how), moved
            if _mean_distance(found) < _mean_distance(best.tensors) * (
                BETTER if is_rescaled > best.is_rescaled else 1
            ):
                best, best_moved, order = aligned, moved, permutation
    if not best.is_permuted and not best.is_rescaled:
        return best, best_moved
    if not best.is_rescaled and best.distance < MAX_QUANTISED:
        found = _in_order_of_other(best, symmetries, mine, theirs, order)
        if _same(found) == "quantised":
            return replace(best, relation="quantised", tensors=tuple(found)), best_moved
    ranked = [_ranked(x, mine[x.name], best_moved[x.name], tolerance, best.is_rescaled) for x in best.tensors]
    return replace(best, tensors=tuple(ranked)), best_moved


def _in_order_of_other(
    best: Difference, symmetries: Symmetries, mine: StateDict, theirs: StateDict, order: Permutation
) -> list[TensorDifference]:
    """The comparison in the order of the other network, in which blocks of its values were quantised together."""
    whole = symmetries.join(mine)
    spec = symmetries.spec
    moved = symmetries.split(whole | spec.apply({name: whole[name] for name in spec.axes}, spec.inverse(order)))
    return [
        compare_tensors(x.name, x.other_name, moved[x.name], theirs[x.name], dtypes=_types(x)) for x in best.tensors
    ]


def _ranked(found: TensorDifference, a: Tensor, b: Tensor, tolerance: float, is_rescaled: bool) -> TensorDifference:
    """The comparison of two tensors, with the rank of their difference."""
    return compare_tensors(
        found.name,
        found.other_name,
        a,
        b,
        dtypes=_types(found),
        tolerance=tolerance,
        is_rescaled=is_rescaled,
        finds_rank=True,
    )


def _types(found: TensorDifference) -> tuple[torch.dtype, torch.dtype]:
    mine, theirs = (getattr(torch, name) for name in found.dtypes)
    return mine, theirs


def _candidates(spec: PermutationSpec, a: StateDict, b: StateDict, *, is_rescaled: bool) -> Iterator[Permutation]:
    """Orders of the channels of the other network: as stored, matched, and matched again by what fits best."""
    if is_rescaled:
        yield spec.identity()
    permutation: Permutation = {}
    for attempt in range(1 + ORDERS):
        generator = torch.Generator().manual_seed(attempt) if attempt else None
        permutation = _match(spec, a, b, is_rescaled=is_rescaled, generator=generator)
        yield permutation
        if attempt == 0:
            kept = _kept_in_place(spec, a, b, permutation, is_rescaled=is_rescaled)
            if any(not torch.equal(kept[axis], permutation[axis]) for axis in kept):
                yield kept
    permutation = spec.identity()
    for _ in range(SWEEPS):
        moved = _moved(spec, a, b, permutation, is_rescaled=is_rescaled)
        trust = {name: 1 / (TRUST + _gap(a[name], moved[name])) for name in spec.axes}
        permutation = _match(spec, a, b, is_rescaled=is_rescaled, weights=trust)
        yield _kept_in_place(spec, a, b, permutation, is_rescaled=is_rescaled)


def _match(
    spec: PermutationSpec,
    a: StateDict,
    b: StateDict,
    *,
    is_rescaled: bool,
    generator: torch.Generator | None = None,
    weights: Mapping[str, float] | None = None,
) -> Permutation:
    """Match the channels of the other network to those of the first.

    Args:
        spec: Symmetries.
        a: The first network.
        b: The other.
        is_rescaled: Whether scales are undone before.
        generator: For the order of the axes.
        weights: Weights of the tensors, whose scales count no longer then; a large new head would outweigh the rest.
    """
    if is_rescaled:
        a, b = canonical_scales(spec, a), canonical_scales(spec, b)
    mine, theirs = {name: a[name] for name in spec.axes}, {name: b[name] for name in spec.axes}
    if weights is not None:
        for name, x in mine.items():
            if x.is_floating_point():
                scale = float(x.double().norm()) * float(theirs[name].double().norm())
                mine[name] = x.double() * (weights[name] * x.numel() / scale if scale else 1.0)
    return match_weights(spec, mine, theirs, generator=generator)


def _moved(
    spec: PermutationSpec, a: StateDict, b: StateDict, permutation: Permutation, *, is_rescaled: bool
) -> StateDict:
    """The other network in the order, and with the scales, of the first."""
    moved = b | spec.apply({name: b[name] for name in spec.axes}, permutation)
    for _ in range(SWEEPS if is_rescaled else 0):
        moved = canonical_scales(spec, moved, like=a)
    return moved


def _kept_in_place(
    spec: PermutationSpec, a: StateDict, b: StateDict, permutation: Permutation, *, is_rescaled: bool
) -> Permutation:
    """The permutation without the axes that fit better as they are stored; axes with common parts stay together."""
    kept, identity = dict(permutation), spec.identity()
    groups = [(axes, {place.tensor for axis in axes for place in spec.occurrences[axis]}) for axes in _joined(spec)]

    def mean(order: Permutation, names: Iterable[str]) -> float:
        moved = _moved(spec, a, b, order, is_rescaled=is_rescaled)
        return sum(_gap(a[name], moved[name]) * a[name].numel() for name in names)

    for _ in range(SWEEPS):
        before = dict(kept)
        for axes, tensors in groups:
            if all(torch.equal(kept[axis], identity[axis]) for axis in axes):
                continue
            names = spec.axes if is_rescaled else tensors
            stored = {axis: identity[axis] for axis in axes}
            if mean(kept | stored, names) <= mean(kept, names):
                kept |= stored
        if all(torch.equal(kept[axis], before[axis]) for axis in kept):
            break
    return kept


def _joined(spec: PermutationSpec) -> list[list[str]]:
    """Axes that are only reordered together, since they share parts (the heads of queries, keys and values)."""
    groups = {axis: {axis} for axis in spec.occurrences}
    for generator in spec.generators.values():
        joined = set().union(*(groups[axis] for axis in generator.entries))
        groups |= dict.fromkeys(joined, joined)
    return [sorted(axes) for axes in {min(axes): axes for axes in groups.values()}.values()]


def _gap(a: Tensor, b: Tensor) -> float:
    """Distance of two tensors."""
    x, y = a.double(), b.double()
    scale = math.hypot(float(x.norm()), float(y.norm()))
    return float((x - y).norm()) / scale if scale else 0.0


def _mean_distance(tensors: Sequence[TensorDifference]) -> float:
    """Mean distance of the tensors, weighted by their sizes, in which no large one hides the others."""
    sized = [(x.size, x.distance) for x in weights_among(tensors)]
    return sum(size * distance for size, distance in sized) / max(1, sum(size for size, _ in sized))


def _plain(tensor: Tensor) -> Tensor:
    return readable(tensor.detach())


def _shuffle(tensor: Tensor) -> Tensor:
    """The same values in random order."""
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))
    return _plain(tensor).flatten()[order].view(tensor.shape)


def _placed(
    found: Difference,
    mine: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    by_chance: tuple[Sequence[TensorDifference], Sequence[TensorDifference]],
    tables: Set[str],
    sizes: tuple[int, int],
    alike: Callable[[], Likeness],
) -> Difference:
    """Classify the distance relative to the distance by chance.

    Args:
        found: The comparison.
        mine: The first network.
        moved: The other one, as it was compared.
        by_chance: Differences from its values in random order, before and after these were aligned.
        tables: Names of fixed tables.
        sizes: Numbers of weights.
        alike: Function that returns the likeness of the fingerprints.
    """
    found = replace(found, distance_by_chance=total_distance(by_chance[1]))
    if _has_part(found.tensors, tables, sizes):
        return replace(found, relation="partly equal")
    names = {x.name for x in _evidence(found.tensors, tables)}
    parts, trained = [], set(tables)
    for x, *chances in zip(found.tensors, *by_chance, strict=True):
        if x.name in names:
            parts.append((x.size, *_beside_table(mine[x.name], moved[x.name], x, *chances)))
            trained |= {x.name} if parts[-1][3] != (x.joint_norm or 1.0) else set()
    found = replace(found, tables=tuple(x.name for x in found.tensors if x.name in trained and len(x.shape) > 1))
    if not parts:
        return replace(found, relation="undecided")
    gap, chance = (math.hypot(*(part[place] for part in parts)) for place in (1, 2))
    means = [sum(part[0] * part[place] / part[3] for part in parts) for place in (1, 2)]
    shares = gap / chance if chance else math.nan, means[0] / means[1] if means[1] else math.nan
    # A new head with large weights does not hide that the rest is close, and the other way around.
    share = shares[0] if math.isnan(shares[1]) else min(shares)
    if share < UNRELATED <= shares[1] and alike() == "other":
        share = shares[1]  # only a few tensors with large weights are near
    return replace(found, relation="close" if share < CLOSE else "far" if share < UNRELATED else "unrelated")


def _beside_table(
    a: Tensor, b: Tensor, found: TensorDifference, before: TensorDifference, after: TensorDifference
) -> tuple[float, float, float]:
    """Difference of two matrices, the one by chance, and their norm; without a table from which both were trained."""
    x, y = without_table(a.double(), b.double()) if a.ndim > 1 and a.is_floating_point() else (a, b)
    if x is a or x.shape == a.shape:
        return found.difference_norm, after.difference_norm, found.joint_norm or 1.0
    gain = min(1.0, after.distance / before.distance) if before.distance > 0 else 1.0
    norm = math.hypot(float(x.norm()), float(y.norm()))
    return float((x - y).norm()), gain * norm, norm or 1.0


def _evidence(tensors: Sequence[TensorDifference], tables: Set[str]) -> list[TensorDifference]:
    """Tensors from which a relation can be told: matrices (if there are any) that are neither constant nor tables."""
    matrices = [x for x in tensors if x.holds_weights and len(x.shape) > 1]
    among = matrices or [x for x in tensors if x.holds_weights]
    return [x for x in among if x.name not in tables and not x.is_constant]


def _has_part(tensors: Sequence[TensorDifference], tables: Set[str], sizes: tuple[int, int]) -> bool:
    """Whether a tenth of the weights of one network is equal in both, in tensors from which that can be told."""
    equal = sum(x.size for x in _evidence(tensors, tables) if x.is_cast or x.is_rounding)
    return equal >= PART * min(sizes) > 0


def _doubted(found: Difference, find_likeness: Callable[[], Likeness]) -> Difference:
    """The comparison, or `undecided` if the fingerprints, which do not depend on the order of channels, are alike.

    A network that was not aligned, or not well, may seem unrelated to a reordered copy.
    """
    if found.relation not in ("far", "unrelated"):
        return found
    alike = find_likeness()
    is_unclear = alike in ("equal", "same") or math.isnan(found.distance)
    is_unclear |= alike == "related" and (found.unaligned is not None or found.relation == "unrelated")
    return replace(found, relation="undecided" if is_unclear else found.relation, likeness=alike)


def _is_identity(permutation: Mapping[str, Tensor]) -> bool:
    """Whether a permutation moves nothing."""
    return all(torch.equal(index, torch.arange(len(index))) for index in permutation.values())


def _has_low_rank(tensors: Sequence[TensorDifference]) -> bool:
    """Whether all tensors are the same but for changes of low rank."""
    others = [x for x in tensors if x.rank is None]
    return len(others) < len(tensors) and (not others or _same(others) is not None)


def _same(tensors: Sequence[TensorDifference]) -> Relation | None:
    """The relation, if they are the same network as stored or after one change, apart from counters.

    Vectors can be rounded to few values by chance: quantisation is told from matrices.
    """
    tensors = [x for x in tensors if x.holds_weights or x.shape] or list(tensors)
    if all(x.is_equal for x in tensors):
        return "equal"
    quantised = [x for x in tensors if x.is_quantised]
    if not all(x.is_same for x in tensors) or not _agree([x for x in tensors if x.is_cast]) or not _agree(quantised):
        return None
    if not quantised:
        return "cast" if all(x.is_cast for x in tensors) else "rounded"
    return "quantised" if any(len(x.shape) > 1 for x in quantised) else None


def _agree(tensors: Sequence[TensorDifference]) -> bool:
    """Whether one change explains the differences of all these tensors; some are equal without any."""
    changes = [set(x.changes) for x in tensors if x.changes]
    return not changes or bool(set.intersection(*changes))
