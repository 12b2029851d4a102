"""Reconstruct family trees of networks from their weights alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import Tensor

from hf_sane.core._named_tensors import RenamedTensors, outlines
from hf_sane.core._types import StateDict
from hf_sane.records._errors import name_some, shorten
from hf_sane.records._progress import tracked
from hf_sane.screening._fingerprints import Fingerprint, fingerprint
from hf_sane.screening._float8 import Readable
from hf_sane.screening._index import likeness, signed_gap
from hf_sane.screening._names import pair_names
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.screening._tables import is_table, without_table
from hf_sane.screening._trees import (
    AVERAGED,
    EQUAL,
    EQUAL_PART,
    REPLACED,
    WEIGHTS,
    Geometry,
    edge_features,
    edge_probabilities,
    edge_scores,
    find_averages,
    likeliest_forest,
    matrices,
    measure,
)
from hf_sane.symmetry._experts import Symmetries
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._permutation import PermutationSpec

Change = Literal["copied", "partly copied", "fine-tuned", "pruned", "quantised", "averaged"]
MAX_DISTANCE = 0.5  # largest `|A - B| / sqrt(|A|^2 + |B|^2)` of relatives after alignment; 1 for independent networks
SPARSER = 0.01  # least share of zeros that only one of two networks has
EITHER = 0.5  # confidence in which of two copies came first
NEARER = 0.9  # of the distance, that is left if a network was aligned or a relative is nearer than another
MAX_HOMES = 3  # families, by the distance of fingerprints, with which a network is compared

Frame = Literal["stored", "canonical", "then rescaled"]
FindSymmetries = Callable[[str], tuple[Symmetries | None, str]]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a network was made from others.

    Attributes:
        child: Name of the network.
        parents: Its parent, or the networks of which it is the average.
        change: How one network was changed into the other.
        distance: `|A - B| / sqrt(|A|^2 + |B|^2)` from the first parent, over common matrices, after alignment.
        confidence: Probability that the parents are right, rather than the opposite direction or a path through
            another network. A half for copies, either of which can be the first.
    """

    child: str
    parents: tuple[str, ...]
    change: Change
    distance: float
    confidence: float

    @property
    def is_exact_copy(self) -> bool:
        """Whether the two are equal, up to order and scales, so that either can be the first."""
        return self.change == "copied" and self.confidence == EITHER


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Family trees of networks.

    Attributes:
        descents: Steps from parents to children; networks without one are roots.
        families: Groups of related networks.
        aligned: How networks were aligned to their family: `permuted`, or `permuted and rescaled`.
        unaligned: Reasons why the channels of networks were not matched.
        doubtful: Networks outside a network's family whose fingerprints are nevertheless similar to its own.
        skipped: Networks that could not be read, with the reason.
    """

    descents: tuple[Descent, ...]
    families: tuple[tuple[str, ...], ...]
    aligned: Mapping[str, str] = field(default_factory=dict)
    unaligned: Mapping[str, str] = field(default_factory=dict)
    doubtful: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def roots(self) -> tuple[str, ...]:
        """Networks without a parent among the others; a family has several if an ancestor was not given."""
        children = {descent.child for descent in self.descents}
        return tuple(name for family in self.families for name in family if name not in children)

    def ancestors(self, name: str) -> dict[str, float]:
        """All ancestors of a network, with the confidence in the path to each.

        Copies have the same ancestors, and are the ancestors of the same networks.
        """
        found: dict[str, float] = {}
        for descent in self.descents:
            if descent.child == name:
                share = 1.0 if descent.is_exact_copy else descent.confidence
                for parent in descent.parents:
                    found[parent] = max(found.get(parent, 0.0), descent.confidence)
                    for other, confidence in self.ancestors(parent).items():
                        found[other] = max(found.get(other, 0.0), confidence * share)
        copies = {x.child: x.parents[0] for x in self.descents if x.is_exact_copy}
        own = copies.get(name, name)
        for copy, original in copies.items():
            if original != own and original in found:
                found[copy] = max(found.get(copy, 0.0), found[original])
        return found

    def family_of(self, name: str) -> tuple[str, ...]:
        """The networks that one is related to, with itself."""
        return next(family for family in self.families if name in family)


@dataclass
class Member:
    """A network in the form in which it is compared: renamed, reordered and rescaled like the first of its family."""

    name: str
    tensors: Mapping[str, Tensor]
    print: Fingerprint


def trace_lineage(
    networks: Mapping[str, Mapping[str, Tensor]], find_symmetries: FindSymmetries = lambda name: (None, "")
) -> Lineage:
    """Find family trees of networks.

    A network is compared with the families whose fingerprints, which need no alignment, are nearest to its own, after
    its channels were matched to its nearest relative there. In a family, the weighted averages of others are found
    first; the rest is the most likely forest, whose edges a fitted model weighs ([`WEIGHTS`]): by distances and the
    direction of training, as MoTHer does (Horwitz et al. 2025).

    Args:
        networks: Tensors of each network by name, which are read one at a time.
        find_symmetries: Function that returns the permutation symmetries of a network, or why they are unknown.
    """
    families, found = find_families(networks, find_symmetries)
    return replace(
        found,
        descents=tuple(descent for family in families for descent in trace_family(family)),
        families=tuple(tuple(member.name for member in family) for family in families),
    )


def find_families(
    networks: Mapping[str, Mapping[str, Tensor]], find_symmetries: FindSymmetries
) -> tuple[list[list[Member]], Lineage]:
    """Related networks, aligned to each other, and which ones were or were not; see [`Lineage`], without descents."""
    families: list[list[Member]] = []
    aligned: dict[str, str] = {}
    unaligned: dict[str, str] = {}
    doubtful: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, str] = {}
    members: list[Member] = []
    for name, tensors in tracked(networks.items(), desc="fingerprints", unit="network"):
        try:
            member = Member(name, Readable(tensors), fingerprint(tensors))
            problem = _not_comparable(member.tensors)
        except (OSError, ValueError) as error:
            problem = shorten(error)
        if problem:
            skipped[name] = problem
        else:
            members.append(member)
    for place in tracked(_from_near_to_far(members), desc="families", unit="network"):
        me = members[place]
        homes = sorted(((*_nearest(me, family), family) for family in families), key=lambda home: home[0])
        for _, relative, family in [home for home in homes if home[0] < math.inf][:MAX_HOMES]:
            if (found := _align(me, relative, find_symmetries, unaligned)) is not None:
                me, how = found
                aligned |= {me.name: how} if how else {}
                family.append(me)
                break
        else:
            others = [other for family in families for other in family]
            if alike := tuple(other.name for other in others if likeness(me.print, other.print) != "other"):
                doubtful[me.name] = alike
            families.append([me])
    given = {name: place for place, name in enumerate(networks)}
    families = sorted((sorted(x, key=lambda me: given[me.name]) for x in families), key=lambda x: given[x[0].name])
    return families, Lineage(
        descents=(), families=(), aligned=aligned, unaligned=unaligned, doubtful=doubtful, skipped=skipped
    )


def _from_near_to_far(members: Sequence[Member]) -> list[int]:
    """An order in which each network is next that is nearest to one before it, by their fingerprints.

    It does not depend on the order in which they are given, but for copies: greedy families could otherwise do so.
    """
    found: list[int] = []
    gaps = dict.fromkeys(sorted(range(len(members)), key=lambda i: members[i].print.digest), math.inf)
    while gaps:
        place = min(gaps, key=gaps.__getitem__)  # of equal ones, the first
        del gaps[place]
        found.append(place)
        for other in gaps:
            gaps[other] = min(gaps[other], signed_gap(members[place].print, members[other].print))
    return found


def _not_comparable(tensors: Mapping[str, Tensor]) -> str:
    """Why a network cannot be compared; empty if it can."""
    names = matrices(tensors)
    if not names:
        return "it has no matrices of real numbers, which are compared"
    floats = [name for name, x in outlines(tensors).items() if x.is_floating_point()]
    if broken := [name for name in floats if not tensors[name].isfinite().all()]:
        return f"there are NaN or infinite weights in {name_some(broken)}"
    return ""


def _nearest(me: Member, family: Sequence[Member]) -> tuple[float, Member]:
    gaps = [(signed_gap(me.print, other.print), other) for other in family]
    return min(gaps, key=lambda pair: pair[0])


def _align(
    me: Member, other: Member, find_symmetries: FindSymmetries, unaligned: dict[str, str]
) -> tuple[Member, str] | None:
    """Reorder a network like a relative; `None` if it remains too far away."""
    pairs = pair_names(outlines(other.tensors), outlines(me.tensors))
    names = _all_names(pairs, me)
    renamed = replace(me, tensors=RenamedTensors(me.tensors, names))
    best, chosen, how = _compare(renamed.tensors, other.tensors), renamed, ""
    symmetries, reason = None, ""
    if best.whole > EQUAL:
        symmetries, reason = _common_symmetries(me, other, pairs, find_symmetries)
    if reason:
        unaligned[me.name] = reason
    if symmetries is not None and symmetries.spec.sizes:
        mine = symmetries.join({name: renamed.tensors[name] for name in names})
        theirs = symmetries.join({name: other.tensors[name] for name in pairs})
        spec = symmetries.spec
        for matched in get_args(Frame) if scalable_axes(spec) else ("stored",):
            is_rescaled = matched != "stored"
            moved = symmetries.split(_in_frame(spec, theirs, mine, matched))
            found = _compare(moved, other.tensors)
            if found.equal >= best.equal and (found.whole < NEARER * best.whole or found.kept < NEARER * best.kept):
                best, chosen = found, replace(me, tensors=moved)
                how = "permuted and rescaled" if is_rescaled else "permuted"
    if best.kept >= MAX_DISTANCE or (best.mean >= REPLACED and likeness(me.print, other.print) == "other"):
        return None
    return chosen, how


def _common_symmetries(
    me: Member, other: Member, pairs: Mapping[str, str], find_symmetries: FindSymmetries
) -> tuple[Symmetries | None, str]:
    """Symmetries of the tensors that two networks share, under the names of the other, if those of one are known."""
    found, reason = find_symmetries(other.name)
    if found is not None:
        return found.select({name: name for name in found.names if name in pairs}), ""
    mine, _ = find_symmetries(me.name)
    if mine is None:
        return None, reason
    known = set(mine.names)
    return mine.select({name: own for name, own in pairs.items() if own in known}), ""


def _all_names(pairs: Mapping[str, str], me: Member) -> dict[str, str]:
    """The names of all tensors of a network by those in its family; those of tensors without a counterpart are kept.

    They only lose or get the prefix that the paired names lose or get, so that the heads of several networks meet.
    """
    names = dict(pairs)
    theirs, mine = _prefixes(pairs)
    paired = set(pairs.values())
    for name in me.tensors:
        if name not in paired:
            new = theirs + name.removeprefix(mine) if name.startswith(mine) else name
            names[new if new not in names else f"{me.name}: {name}"] = name
    return names


def _prefixes(pairs: Mapping[str, str]) -> tuple[str, str]:
    """The prefixes of the paired names, before their common end."""
    for one, other in pairs.items():
        first, second = one.split("."), other.split(".")
        while first and second and first[-1] == second[-1]:
            first, second = first[:-1], second[:-1]
        return "".join(f"{x}." for x in first), "".join(f"{x}." for x in second)
    return "", ""


def _in_frame(spec: PermutationSpec, fixed: StateDict, moving: StateDict, matched: Frame) -> StateDict:
    """A network in the channel order (and with the scales) of another one.

    Channels are matched as they are stored, with canonical scales, or as they are stored before scales are undone:
    canonical scales help if those of the networks differ much, and hide which channels belong together if they do not.
    """
    a, b = (canonical_scales(spec, x) if matched == "canonical" else x for x in (fixed, moving))
    permutation = match_weights(spec, {name: a[name] for name in spec.axes}, {name: b[name] for name in spec.axes})
    moved = b | spec.apply({name: b[name] for name in spec.axes}, permutation)
    return moved if matched == "stored" else canonical_scales(spec, moved, like=fixed)


@dataclass(frozen=True)
class _Distances:
    """How far apart two networks are.

    Attributes:
        kept: Distance over common matrices, without those that were replaced if a tenth of the weights is equal.
        whole: Distance over all of them.
        mean: Mean distance of the matrices that were kept, by their sizes.
        equal: Number of equal weights.
    """

    kept: float
    whole: float
    mean: float
    equal: int


def _compare(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> _Distances:
    """Distances of two networks, in which fixed tables do not count and what was trained from one counts beside it."""
    every, found = [], []
    known, theirs = outlines(first), outlines(other)
    for name in matrices(first):
        if name in theirs and known[name].shape == theirs[name].shape:
            a, b = first[name], other[name]
            x, y = without_table(a.double(), b.double())
            part = a.numel(), float((x - y).square().sum()), float(x.square().sum() + y.square().sum())
            every.append(part)
            if not is_table(a) and not is_table(b):
                found.append(part)
    found = found or every
    size, whole = sum(part[0] for part in found), _total(found)
    equal = sum(numel for numel, gap, scale in found if gap <= EQUAL**2 * scale and scale)
    if equal >= EQUAL_PART * size > 0:
        found = [part for part in found if part[1] < REPLACED**2 * part[2]]
    mean = sum(numel * math.sqrt(gap / scale) for numel, gap, scale in found if scale)
    return _Distances(_total(found), whole, mean / max(1, sum(part[0] for part in found)), equal)


def _total(parts: Sequence[tuple[int, float, float]]) -> float:
    gap, scale = (sum(part[place] for part in parts) for place in (1, 2))
    return math.sqrt(gap / scale) if scale else math.inf


def trace_family(family: Sequence[Member]) -> list[Descent]:
    """The descents within one family, which do not depend on the order of its networks but for copies."""
    whole = measure([member.tensors for member in family])
    unique, copies = whole.unique()
    unique = sorted(unique, key=lambda place: family[place].print.digest)
    descents = [
        _descent(family, whole, child, (place,), "partly copied" if whole.partial[place, child] else "copied", EITHER)
        for child, place in copies.items()
    ]
    found = whole.of(unique)
    averages = find_averages(found)
    edges, orphans = edge_scores(*edge_features(found, averages), averages, WEIGHTS)
    sure, parents = edge_probabilities(edges, orphans), likeliest_forest(edges, orphans, averages)
    for child, made_from in averages.items():
        places = tuple(sorted(unique[parent] for parent in made_from))
        descents.append(_descent(family, whole, unique[child], places, "averaged", AVERAGED))
    for child, parent in parents.items():
        place = _nearest_head(whole, unique[parent], unique[child], copies)
        change = _change(whole, place, unique[child])
        descents.append(_descent(family, whole, unique[child], (place,), change, float(sure[parent, child])))
    return sorted(descents, key=lambda descent: [member.name for member in family].index(descent.child))


def _nearest_head(whole: Geometry, parent: int, child: int, copies: Mapping[int, int]) -> int:
    """Which of the networks that share a trunk the child has more of: its parent, or one of its partial copies."""
    best = parent
    for place, original in sorted(copies.items()):
        if original == parent and whole.partial[original, place]:
            has_more = whole.alike[place, child] - whole.alike[best, child]
            is_nearer = whole.distances[place, child] < NEARER * whole.distances[best, child]
            if has_more > 0 or (has_more == 0 and is_nearer):
                best = place
    return best


def _descent(
    family: Sequence[Member], found: Geometry, child: int, parents: tuple[int, ...], change: Change, confidence: float
) -> Descent:
    return Descent(
        child=family[child].name,
        parents=tuple(family[parent].name for parent in parents),
        change=change,
        distance=float(found.distances[parents[0], child]),
        confidence=confidence,
    )


def _change(found: Geometry, parent: int, child: int) -> Change:
    is_sparser = float(found.zeros[child, parent] - found.zeros[parent, child]) > SPARSER
    if (
        is_sparser
        and (found.pruned[parent, child] or not found.rounded[parent, child])
        and found.pressed[parent, child]
    ):
        return "pruned"
    if float(found.distances[parent, child]) < EQUAL:
        return "partly copied" if found.partial[parent, child] else "copied"
    return "quantised" if found.rounded[parent, child] else "fine-tuned"
