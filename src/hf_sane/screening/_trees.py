"""Which network of a family was made from which: averages, and the most likely trees of the others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx
import numpy as np
import torch
from scipy.optimize import nnls
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from hf_sane.core._named_tensors import outlines
from hf_sane.screening._grids import is_rounded
from hf_sane.screening._tables import is_table
from hf_sane.screening._tensor_differences import COARSE

SAME = 1e-5  # distance that reordering and rescaling leave between copies
EQUAL = 2e-3  # largest distance due to rounding to 16 bits
EQUAL_PART, REPLACED = 0.1, 0.9  # share of equal weights beside which matrices that are this far apart are new
ON_THE_LINE = 0.02  # of the distance to its parents, that an average may be off them
LEAST_SHARE = 0.05  # of an average
NEARER = 0.5  # of the distance of its parents, up to which something can be made from an average
FAR = 10.0  # in place of an infinite distance
SPARE = 1e-6  # of a squared distance, that pruning may leave to what it keeps
# Of the log-odds of an edge; fitted by benchmarks/lineage_trees.py to forests that were grown for it, and a test
# compares them with its record.
WEIGHTS: Mapping[str, float] = {
    "near": -1.33,  # log of the distance over that of the nearest network, its own pruned and rounded copies aside
    "branch": 1.79,  # whether the two are joined in the undirected tree of least length
    "hub": 0.46,  # log of the ratio of the numbers of other branches there
    "pressed": 3.61,  # whether the child is the parent, pruned or rounded: 1; the other way around: -1
    "growth": -0.36,  # tanh of half the growth of the squared norm over the squared distance
    "kurtosis": 1.75,  # tanh of the growth of the logarithm of the kurtosis over the distance
    "orphan": 0.71,  # that the parent was not given
    "apart": 0.54,  # log of the distance of the nearest network, for an orphan
}
EDGE_WEIGHTS = ("near", "branch", "hub", "pressed", "growth", "kurtosis")
AVERAGED = 0.99  # share of the averages found there whose parents were right


@dataclass(frozen=True)
class Geometry:
    """How the networks of a family lie to each other, over the matrices that each pair has: `[M, M]` all.

    Attributes:
        gaps: Squared distances.
        norms: Squared norms of the first.
        zeros: Share of zeros of the first.
        kurtosis: Mean logarithm of the kurtosis of the first.
        pressed: Whether the second is the first, pruned or rounded.
        rounded: Whether it is the first, rounded: in few distinct values, of which zero may be one.
        pruned: Whether it is the first with zeros, and all its other values are those of the first.
        partial: Whether one of the two has matrices that the other lacks, or new ones.
        alike: Number of matrices that are nearer than independent ones.
        held: Number of matrices of the first.
    """

    gaps: Tensor
    norms: Tensor
    zeros: Tensor
    kurtosis: Tensor
    pressed: Tensor
    rounded: Tensor
    pruned: Tensor
    partial: Tensor
    alike: Tensor
    held: Tensor

    @property
    def distances(self) -> Tensor:
        """`|A - B| / sqrt(|A|^2 + |B|^2)`; far where nothing is shared, and from itself."""
        scale = self.norms + self.norms.T
        found = torch.where(scale > 0, (self.gaps / scale.clamp(min=1e-300)).sqrt(), FAR)
        return found.fill_diagonal_(FAR)

    def unique(self) -> tuple[list[int], dict[int, int]]:
        """One of each group of copies, and which of those the others are copies of.

        The one with the fewest matrices, and the first of these, of which the others are whole or partial copies.
        """
        near = self.distances
        groups: list[list[int]] = []
        for i in range(len(near)):
            home = next((group for group in groups if near[i, group[0]] < SAME), None)
            if home is None:
                groups.append([i])
            else:
                home.append(i)
        unique, copies = list[int](), dict[int, int]()
        for group in groups:
            first = min(group, key=lambda i: float(self.held[i, i]))
            unique.append(first)
            originals = [first]
            for i in group:
                if i != first:
                    whole = (j for j in originals if near[i, j] < SAME and not self.partial[i, j])
                    copies[i] = next(whole, first)
                    originals += [i] if self.partial[i, first] else []
        return unique, copies

    def of(self, places: Sequence[int]) -> "Geometry":
        """That of some of the networks."""
        return Geometry(**{name: value[list(places)][:, list(places)] for name, value in vars(self).items()})


def measure(family: Sequence[Mapping[str, Tensor]]) -> Geometry:
    """Compare the networks of a family matrix by matrix, but for fixed tables, which say nothing."""
    count = len(family)
    zeros, kurtosis, sizes, shared = torch.zeros(4, count, count, dtype=torch.float64)
    pressed, rounded, pruned = torch.zeros(3, count, count, dtype=torch.float64)
    parts = []  # squared distances and norms by matrix, and its size
    held = torch.zeros(count, dtype=torch.float64)
    every = dict.fromkeys((name, tensors[name].shape) for tensors in family for name in matrices(tensors))
    compared = [key for key in every if not all(map(is_table, _with(family, *key).values()))] or list(every)
    for name, shape in compared:
        here = {i: x.double() for i, x in _with(family, name, shape).items()}
        held[list(here)] += 1
        is_coarse = {i: is_rounded(x, x) for i, x in here.items()}
        facts = {i: (float(x.square().sum()), float((x == 0).sum()), _log_kurtosis(x)) for i, x in here.items()}
        gaps, norms = torch.zeros(2, count, count, dtype=torch.float64)
        for i, a in here.items():
            for j, b in here.items():
                if i == j:
                    continue
                norm, none, tail = facts[i]
                gap = float((a - b).square().sum())
                for total, value in ((gaps, gap), (norms, norm), (zeros, none), (kurtosis, tail)):
                    total[i, j] += value
                shared[i, j] += 1
                sizes[i, j] += a.numel()
                if 0 < gap < norm:
                    is_round = gap < 0.1 * norm and (_is_cast(a, b) or (is_coarse[j] and is_rounded(a, b)))
                    is_cut = _is_pruned(a, b, gap)
                    rounded[i, j] += is_round
                    pruned[i, j] += is_cut
                    pressed[i, j] += is_round or is_cut
        parts.append((gaps, norms, shape.numel()))
    alike = torch.stack([(a + a.T > 0) & (gap < REPLACED**2 * (a + a.T)) for gap, a, _ in parts]).double().sum(0)
    gaps, norms, are_new = _without_new(parts, sizes)
    return Geometry(
        gaps,
        norms,
        zeros / sizes.clamp(min=1),
        kurtosis / shared.clamp(min=1),
        (shared > 0) & (pressed > 0.5 * shared),
        (shared > 0) & (rounded > 0.5 * shared),
        (shared > 0) & (pruned > 0.5 * shared),
        are_new | (shared < torch.maximum(held[:, None], held[None, :])),
        alike,
        held[:, None].expand(count, count),
    )


def _with(family: Sequence[Mapping[str, Tensor]], name: str, shape: torch.Size) -> dict[int, Tensor]:
    """A matrix of those networks that have it."""
    return {i: x[name] for i, x in enumerate(family) if name in x and outlines(x)[name].shape == shape}


def _without_new(parts: Sequence[tuple[Tensor, Tensor, int]], sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances and norms of all matrices but new ones, and whether there are new ones.

    Matrices that are as far apart as independent ones are new if at least a tenth of the weights is equal.
    """
    near = [gap <= EQUAL**2 * (norm + norm.T) for gap, norm, _ in parts]
    is_there = [norm + norm.T > 0 for _, norm, _ in parts]
    equal = sum((size * (a & b) for a, b, (_, _, size) in zip(near, is_there, parts, strict=True)), torch.zeros(()))
    has_trunk = (equal >= EQUAL_PART * sizes) & (sizes > 0)
    gaps, norms, are_new = torch.zeros_like(sizes), torch.zeros_like(sizes), torch.zeros_like(has_trunk)
    for gap, norm, _ in parts:
        is_new = has_trunk & (gap > REPLACED**2 * (norm + norm.T))
        gaps, norms, are_new = gaps + gap * ~is_new, norms + norm * ~is_new, are_new | is_new
    return gaps, norms, are_new


def matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of what is compared."""
    return [name for name, x in outlines(tensors).items() if x.ndim > 1 and x.is_floating_point()]


def _log_kurtosis(values: Tensor) -> float:
    centred = values - values.mean()
    variance = float(centred.square().mean())
    return math.log(float(centred.pow(4).mean()) / variance**2) if variance > 0 else 0.0


def _is_cast(a: Tensor, b: Tensor) -> bool:
    return any(torch.equal(a.to(dtype).double(), b) for dtype in COARSE)


def _is_pruned(a: Tensor, b: Tensor, gap: float) -> bool:
    kept = b != 0
    return bool((a[~kept] != 0).any()) and float((a - b)[kept].square().sum()) < SPARE * gap


def find_averages(found: Geometry) -> dict[int, tuple[int, ...]]:
    """Networks that are weighted averages of others, with those."""
    count = len(found.gaps)
    averages = {child: parents for child in range(count) if (parents := _average(found, child))}
    # Networks cannot be averages of each other, neither directly nor through others.
    graph = networkx.DiGraph([(parent, child) for child, parents in averages.items() for parent in parents])
    circular = {i for part in networkx.strongly_connected_components(graph) if len(part) > 1 for i in part}
    return {child: parents for child, parents in averages.items() if child not in circular}


def _average(found: Geometry, child: int) -> tuple[int, ...]:
    """Of which others one is the average: `sum w_i P_i` with positive shares of sum 1 is nearest to it."""
    near = found.distances[:, child]
    others = [i for i in range(len(near)) if SAME < near[i] < FAR]
    for _ in range(2):  # again without those that hardly take part
        if len(others) < 2:
            return ()
        shares, off = _shares(found, child, others)
        others = [i for i, share in zip(others, shares, strict=True) if share > LEAST_SHARE]
    return tuple(others) if len(others) > 1 and off < ON_THE_LINE else ()


def _shares(found: Geometry, child: int, others: list[int]) -> tuple[np.ndarray, float]:
    """Shares of the best average, and its distance from the child over that of its parents."""
    gaps = found.gaps[others][:, others].numpy()
    own = found.gaps[others, child].numpy()
    gram = (own[:, None] + own[None, :] - gaps) / 2  # of the differences to the child
    values, vectors = np.linalg.eigh(gram)
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    weight = 1e3 * math.sqrt(own.max())  # of the condition that the shares have sum 1
    shares, _ = nnls(np.vstack([factor, np.full(len(others), weight)]), np.append(np.zeros(len(others)), weight))
    return shares, math.sqrt(max(0.0, float(shares @ gram @ shares)) / float(shares @ own))


def edge_features(found: Geometry, averages: Mapping[int, tuple[int, ...]]) -> tuple[dict[str, Tensor], Tensor]:
    """Evidence for each edge from `i` to `j`, by the names of [`WEIGHTS`], and for a `j` whose parent is missing.

    Returns:
        `{name: [M, M]}` and `[M]`.
    """
    near = found.distances
    if len(near) < 2:
        return {name: torch.zeros_like(near) for name in EDGE_WEIGHTS}, torch.zeros(len(near))
    for child, parents in averages.items():
        # Its parents are known, and a common ancestor of those is as near as they are: nothing of that is an edge.
        strange = near[child] > NEARER * near[child, list(parents)].min()
        near[child, strange] = near[strange, child] = FAR
    # What a network was pruned or rounded to says nothing of how near its parent is.
    least = near.masked_fill(found.pressed.T & ~found.pressed, FAR).min(0).values
    tree = torch.from_numpy(minimum_spanning_tree(near.numpy()).toarray()) > 0
    branch = (tree | tree.T).double()
    degree = branch.sum(0)
    hub = torch.log((degree[:, None] - branch + 1) / (degree[None, :] - branch + 1))
    pressed = found.pressed.double() - found.pressed.T.double()
    is_open = pressed == 0  # pruning and rounding change norms and kurtosis, too
    growth = (found.norms.T - found.norms) / found.gaps.clamp(min=1e-300)
    tails = (found.kurtosis.T - found.kurtosis) / near
    features = {
        "near": torch.log(near / least[None, :]).clamp(0, 4),
        "branch": branch,
        "hub": hub,
        "pressed": pressed,
        "growth": torch.tanh(growth / 2) * is_open,
        "kurtosis": torch.tanh(tails) * is_open,
    }
    return features, torch.log(least)


def edge_scores(
    features: Mapping[str, Tensor], apart: Tensor, averages: Iterable[int], weights: Mapping[str, float | Tensor]
) -> tuple[Tensor, Tensor]:
    """Log-weights `[M, M]` of edges and `[M]` of orphans: the probability of a forest is the product over its edges.

    Averages have no other parents.
    """
    edges = sum((weights[name] * x for name, x in features.items()), torch.zeros(()))
    edges = edges.masked_fill(torch.eye(len(apart), dtype=torch.bool), -math.inf)
    known = torch.zeros(len(apart), dtype=torch.bool)
    known[list(averages)] = True
    return edges.masked_fill(known, -math.inf), weights["orphan"] + weights["apart"] * apart


def laplacian(edges: Tensor, orphans: Tensor) -> Tensor:
    """The matrix whose determinant is the sum over all forests (Tutte's matrix-tree theorem; Koo et al. 2007)."""
    weights = edges.exp()
    return torch.diag(orphans.exp() + weights.sum(0)) - weights


def edge_probabilities(edges: Tensor, orphans: Tensor) -> Tensor:
    """Share `[M, M]` of the forests, by their probability, that hold each edge."""
    inverse = torch.linalg.inv(laplacian(edges, orphans))
    return (edges.exp() * (inverse.diagonal()[None, :] - inverse.T)).clamp(0, 1)


def likeliest_forest(edges: Tensor, orphans: Tensor, averages: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    """The most likely parent of each child, as a whole (Chu & Liu 1965; Edmonds 1967).

    No average is an ancestor of what it was made from.
    """
    graph, top, count = networkx.DiGraph(), -1, len(orphans)
    for child in range(count):
        graph.add_edge(top, child, weight=-float(orphans[child]))
        for parent in range(count):
            if edges[parent, child] > -math.inf:
                graph.add_edge(parent, child, weight=-float(edges[parent, child]))
    known = [(parent, child) for child, parents in averages.items() for parent in parents]
    while True:
        tree = networkx.minimum_spanning_arborescence(graph)
        try:
            circle = networkx.find_cycle(networkx.DiGraph([*tree.edges, *known]))
        except networkx.NetworkXNoCycle:
            return {child: parent for parent, child in tree.edges if parent != top}
        graph.remove_edge(*next(edge for edge in circle if edge[0] in averages and tree.has_edge(*edge)))
