"""Who was fine-tuned from whom: trees of networks, from their weights alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import networkx
import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._progress import tracked
from hf_sane.screening._differences import is_rounded
from hf_sane.screening._fingerprints import Fingerprint, fingerprint
from hf_sane.screening._index import RELATED, signed_gap
from hf_sane.screening._names import outlines, pair_names
from hf_sane.screening._scaling import canonical_scales, scalable_axes
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._permutation import PermutationSpec

Change = Literal["copied", "fine-tuned", "pruned", "quantised", "averaged"]
MAX_DISTANCE = 0.5  # of `|A - B| / sqrt(|A|^2 + |B|^2)` after alignment, which is 1 for independent networks
COPY = 1e-3  # distance that rounding to 16 bits may leave
ON_THE_LINE = 0.02  # of the distance of two networks, that their average may be off the line between them
ENDS = 0.05  # of that line, where a network is no average of the two
SPARSER = 0.01  # share of zeros that one network has and the other has not
SURE = 0.98  # confidence where the weights were visibly changed in one direction
SLOPE = 5.0  # of the log-odds of a direction, in the growth of the squared norm over the squared distance
DIRECTION_WEIGHT = 0.5  # of the direction, against distance, in the cost of an edge
MAX_MATCHED_VALUES = 2 * 10**8  # of a network whose channels are matched


@dataclass(frozen=True, kw_only=True)
class Descent:
    """What a network was made from.

    Attributes:
        child: The network.
        parents: One, or two if it is their average.
        change: What was done.
        distance: `|A - B| / sqrt(|A|^2 + |B|^2)` from the first parent, over common matrices, after alignment.
        confidence: That the parent is the parent and not the child.
    """

    child: str
    parents: tuple[str, ...]
    change: Change
    distance: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Trees of networks.

    Attributes:
        descents: How networks were made from each other; those that are missing here are roots.
        roots: Networks without a parent among the others, each of a family of its own.
        aligned: What was done to compare a network with its family: `permuted`, or `permuted and rescaled`.
    """

    descents: tuple[Descent, ...]
    roots: tuple[str, ...]
    aligned: Mapping[str, str] = field(default_factory=dict)

    def ancestors(self, name: str) -> dict[str, float]:
        """All networks that one was made from, with the confidence in the way to them."""
        found: dict[str, float] = {}
        for descent in self.descents:
            if descent.child == name:
                for parent in descent.parents:
                    found[parent] = max(found.get(parent, 0.0), descent.confidence)
                    for other, confidence in self.ancestors(parent).items():
                        found[other] = max(found.get(other, 0.0), confidence * descent.confidence)
        return found

    def root_of(self, name: str) -> str:
        """The root of the tree of a network."""
        return next((root for root in self.roots if root == name or root in self.ancestors(name)), name)


@dataclass
class _Member:
    """A network as compared with its family: renamed, reordered and rescaled like the first of them."""

    name: str
    tensors: Mapping[str, Tensor]
    print: Fingerprint


def trace_lineage(
    networks: Mapping[str, Mapping[str, Tensor]],
    find_spec: Callable[[str], PermutationSpec | None] = lambda name: None,
) -> Lineage:
    """Find trees of networks.

    Families are found by fingerprints, which need no alignment; the channels of each member are then matched to its
    nearest relative. In a family, a network on the line between two others is their average. The others form the
    arborescence of least cost (Chu & Liu 1965; Edmonds 1967), as in MoTHer (Horwitz et al. 2025): distances, and how
    little the weights say that an edge runs this way.

    Args:
        networks: Tensors by name, of each; read one at a time.
        find_spec: The permutation symmetries of a network, if they are known.
    """
    families: list[list[_Member]] = []
    aligned: dict[str, str] = {}
    for name, tensors in tracked(networks.items(), desc="families", unit="network"):
        me = _Member(name, tensors, fingerprint(tensors))
        homes = sorted((_nearest(me, family) for family in families), key=lambda home: home[0])
        for gap, relative in homes:
            if gap < RELATED and (found := _align(me, relative, find_spec)) is not None:
                me, how = found
                aligned |= {name: how} if how else {}
                next(family for family in families if relative in family).append(me)
                break
        else:
            families.append([me])
    descents = [descent for family in families for descent in _tree(family)]
    children = {descent.child for descent in descents}
    return Lineage(
        descents=tuple(descents), roots=tuple(name for name in networks if name not in children), aligned=aligned
    )


def _nearest(me: _Member, family: Sequence[_Member]) -> tuple[float, _Member]:
    gaps = [(signed_gap(me.print, other.print), other) for other in family]
    return min(gaps, key=lambda pair: pair[0])


def _align(
    me: _Member, other: _Member, find_spec: Callable[[str], PermutationSpec | None]
) -> tuple[_Member, str] | None:
    """Bring a network into the order of a relative; `None` if it stays too far away."""
    pairs = pair_names(outlines(other.tensors), outlines(me.tensors))
    renamed = replace(me, tensors=_Renamed(me.tensors, pairs))
    stored = _distance(renamed.tensors, other.tensors)
    best, how = (stored, renamed), ""
    size = sum(tensor.numel() for tensor in outlines(other.tensors).values())
    spec = find_spec(other.name) if stored > COPY and size <= MAX_MATCHED_VALUES else None
    if spec is not None and all(name in pairs for name in spec.axes):
        mine = {name: renamed.tensors[name] for name in pairs}
        theirs = {name: other.tensors[name] for name in pairs}
        for is_rescaled in (False, True) if scalable_axes(spec) else (False,):
            moved = _in_frame(spec, theirs, mine, is_rescaled=is_rescaled)
            distance = _distance(moved, other.tensors)
            if distance < 0.9 * best[0]:
                best = distance, replace(me, tensors=moved)
                how = "permuted and rescaled" if is_rescaled else "permuted"
    return (best[1], how) if best[0] < MAX_DISTANCE else None


def _in_frame(spec: PermutationSpec, fixed: StateDict, moving: StateDict, *, is_rescaled: bool) -> StateDict:
    """A network in the order (and with the scales) of another one."""
    a, b = (canonical_scales(spec, x) if is_rescaled else x for x in (fixed, moving))
    permutation = match_weights(spec, {name: a[name] for name in spec.axes}, {name: b[name] for name in spec.axes})
    moved = b | spec.apply({name: b[name] for name in spec.axes}, permutation)
    return canonical_scales(spec, moved, like=fixed) if is_rescaled else moved


class _Renamed(Mapping[str, Tensor]):
    """Tensors under the names of another network."""

    def __init__(self, tensors: Mapping[str, Tensor], pairs: Mapping[str, str]) -> None:
        self._tensors, self._pairs = tensors, pairs
        known = outlines(tensors)
        self.outlines = {name: known[stored] for name, stored in pairs.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._pairs[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def _matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, x in outlines(tensors).items() if x.ndim > 1 and x.is_floating_point()]


def _distance(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    gap = scale = 0.0
    for name in _matrices(first):
        if name in other:
            a, b = first[name].double(), other[name].double()
            gap, scale = gap + float((a - b).square().sum()), scale + float(a.square().sum() + b.square().sum())
    return math.sqrt(gap / scale) if scale else math.inf


@dataclass
class _Geometry:
    """Squared distances, squared norms and zeros of a family, over the matrices that each pair has."""

    gaps: Tensor  # [M, M]
    norms: Tensor  # [M, M]: of the first, over what both have
    zeros: Tensor  # [M, M]: share of the first
    rounded: Tensor  # [M, M] bool: whether the other one is the first, rounded

    def distance(self, i: int, j: int) -> float:
        """As in [`Descent`]."""
        scale = float(self.norms[i, j] + self.norms[j, i])
        return math.sqrt(max(0.0, float(self.gaps[i, j])) / scale) if scale else 0.0

    def direction(self, i: int, j: int) -> float:
        """Confidence that `j` was made from `i` and not the other way around.

        What training adds is nearly orthogonal to the weights that it is added to, since there are many of them. Thus
        `|B|^2 - |A|^2` is about `|B - A|^2` if `B` was made from `A`, and about minus that if `A` was made from `B`.
        Pruning and rounding are seen in the weights.
        """
        sparser = float(self.zeros[j, i] - self.zeros[i, j])
        if abs(sparser) > SPARSER:
            return SURE if sparser > 0 else 1 - SURE
        if self.rounded[i, j] != self.rounded[j, i]:
            return SURE if self.rounded[i, j] else 1 - SURE
        gap = float(self.gaps[i, j])
        growth = float(self.norms[j, i] - self.norms[i, j]) / gap if gap > 0 else 0.0
        return 1 / (1 + math.exp(-SLOPE * max(-2.0, min(2.0, growth))))

    def change(self, parent: int, child: int) -> Change:
        """What was done."""
        if float(self.zeros[child, parent] - self.zeros[parent, child]) > SPARSER:
            return "pruned"
        if self.distance(parent, child) < COPY:
            return "copied"
        return "quantised" if self.rounded[parent, child] else "fine-tuned"


def _geometry(family: Sequence[_Member]) -> _Geometry:
    count = len(family)
    found = _Geometry(*(torch.zeros(count, count, dtype=torch.float64) for _ in range(4)))
    shared, rounded = torch.zeros(count, count), torch.zeros(count, count)
    matrices = torch.zeros(count, count)
    for name in dict.fromkeys(name for member in family for name in _matrices(member.tensors)):
        here = {i: x.tensors[name].double() for i, x in enumerate(family) if name in x.tensors}
        here = {i: x for i, x in here.items() if x.shape == next(iter(here.values())).shape}
        for i, a in here.items():
            for j, b in here.items():
                if i == j:
                    continue
                found.norms[i, j] += float(a.square().sum())
                found.zeros[i, j] += float((a == 0).sum())
                shared[i, j] += a.numel()
                matrices[i, j] += 1
                gap = float((a - b).square().sum())
                found.gaps[i, j] += gap
                is_near = gap < 0.1 * float(a.square().sum())
                rounded[i, j] += bool(is_near and not torch.equal(a, b) and is_rounded(a, b))
    found.zeros /= shared.clamp(min=1)
    found.rounded = (matrices > 0) & (rounded > 0.5 * matrices)
    return found


def _tree(family: Sequence[_Member]) -> list[Descent]:
    """The descents in one family."""
    if len(family) < 2:
        return []
    found, count = _geometry(family), len(family)
    averages = {child: parents for child in range(count) if (parents := _line(found, child))}
    # Two networks cannot each be an average that the other takes part in.
    averages = {c: p for c, p in averages.items() if not any(c in averages.get(parent, ()) for parent in p)}
    graph, top = networkx.DiGraph(), -1
    unit = math.sqrt(float(found.gaps.max()) or 1.0)
    for child in range(count):
        graph.add_edge(top, child, weight=0.0 if child in averages else 10.0 * count)
        for parent in range(count):
            if parent != child and child not in averages and found.norms[parent, child] > 0:
                length = math.sqrt(max(0.0, float(found.gaps[parent, child]))) / unit
                doubt = 1 - found.direction(parent, child)
                graph.add_edge(parent, child, weight=length * (1 + DIRECTION_WEIGHT * doubt) + 1e-6 * doubt)
    tree = _without_circles(graph, averages)
    descents = []
    for child in range(count):
        parents = averages.get(child) or tuple(parent for parent in tree.predecessors(child) if parent != top)
        if parents:
            is_average = child in averages
            descents.append(
                Descent(
                    child=family[child].name,
                    parents=tuple(family[parent].name for parent in parents),
                    change="averaged" if is_average else found.change(parents[0], child),
                    distance=found.distance(parents[0], child),
                    confidence=SURE if is_average else found.direction(parents[0], child),
                )
            )
    return descents


def _without_circles(graph: networkx.DiGraph, averages: Mapping[int, tuple[int, int]]) -> networkx.DiGraph:
    """The arborescence of least cost in which no average is an ancestor of what it was made from."""
    while True:
        tree = networkx.minimum_spanning_arborescence(graph)
        whole = networkx.DiGraph([*tree.edges, *((p, c) for c, parents in averages.items() for p in parents)])
        try:
            circle = networkx.find_cycle(whole)
        except networkx.NetworkXNoCycle:
            return tree
        graph.remove_edges_from([next(edge for edge in circle if edge[0] in averages)])


def _line(found: _Geometry, child: int) -> tuple[int, int] | None:
    """The two networks of which one is the weighted average, if it is."""
    best: tuple[float, tuple[int, int]] | None = None
    others = [i for i in range(len(found.gaps)) if i != child and found.distance(i, child) > COPY]
    for place, p in enumerate(others):
        for q in others[place + 1 :]:
            whole = float(found.gaps[p, q])
            if whole <= 0:
                continue
            share = (float(found.gaps[p, child]) + whole - float(found.gaps[q, child])) / (2 * whole)
            off = math.sqrt(max(0.0, float(found.gaps[p, child]) - share**2 * whole) / whole)
            if ENDS < share < 1 - ENDS and off < ON_THE_LINE and (best is None or off < best[0]):
                best = off, (p, q)
    return best[1] if best else None
