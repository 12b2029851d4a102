"""Infer which networks were fine-tuned from which: train forests of small networks, fit a model, and evaluate it.

    python benchmarks/lineage_trees.py --output runs/benchmarks/lineage_trees.json

1. `fitted`: the weights of edges in `hf_sane.screening._trees`, fitted to some forests by maximum likelihood of their
   true edges; with each measure of direction, cross-validated over forests. The package holds the weights of the
   record, which a test compares.
2. `held_out`: precision and recall of edges in other forests, including one architecture that was not used for
   fitting, and imitations of MoTHer's trees and of the model atlas. Baselines are least arborescences of distances
   (L2, cosine) of the stored weights, with kurtosis for the direction and the best threshold on the fitting forests.
3. `calibration`: share of correct edges by confidence, on all held-out forests.

About half an hour on one core.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import torch
from forests import Forest, atlas_forest, mixed_forest, mother_forest, right_edges, true_edges
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.records._failures import run_script
from hf_sane.screening._lineage import Member, find_families
from hf_sane.screening._trees import (
    Geometry,
    edge_features,
    edge_probabilities,
    edge_scores,
    find_averages,
    laplacian,
    likeliest_forest,
    matrices,
    measure,
)
from hf_sane.symmetry._experts import Symmetries

SHAPE = ("near", "branch", "hub", "pressed")  # features in every fit
DIRECTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "norms": ("growth",),
    "kurtosis": ("kurtosis",),
    "spectra": ("spectra",),
    "norms and kurtosis": ("growth", "kurtosis"),
    "all": ("growth", "kurtosis", "spectra"),
}
SHIPPED = "norms and kurtosis"
ORPHAN = ("orphan", "apart")
PENALTY = 0.05  # penalty of squared weights
FOLDS = 4
BINS = 10
TURN = 0.5  # cost of an edge against the kurtosis in the baselines, as a share of the largest distance


@dataclass
class Family:
    """Data of a family in a forest for fitting and tracing."""

    forest: Forest
    names: list[str]
    copies: dict[str, str]
    found: Geometry
    averages: dict[int, tuple[int, ...]]
    features: dict[str, Tensor]
    apart: Tensor

    @property
    def truth(self) -> dict[int, int]:
        """Parent of each network, -1 for orphans; averages are omitted."""
        places = {self.forest.same(name): i for i, name in enumerate(self.names)}
        places |= {self.forest.same(name): self.names.index(kept) for name, kept in self.copies.items()}
        parents = {}
        for i, name in enumerate(self.names):
            if i not in self.averages and self.forest.kinds[self.forest.same(name)] != "soup":
                given = [places[x] for x in map(self.forest.same, self.forest.given_parents(name)) if x in places]
                parents[i] = next((x for x in given if x != i), -1)
        return parents


def families_of(forest: Forest) -> list[Family]:
    """Families of a forest."""
    spec = forest.spec
    families, _ = find_families(forest.tensors, lambda name: (Symmetries(spec), ""))
    return [_family(forest, members) for members in families]


def _family(forest: Forest, members: Sequence[Member]) -> Family:
    whole = measure([member.tensors for member in members])
    unique, copies = whole.unique()
    found = whole.of(unique)
    averages = find_averages(found)
    features, apart = edge_features(found, averages)
    ranks = torch.tensor([_log_rank(members[i].tensors) for i in unique], dtype=torch.float64)
    is_open = found.pressed == found.pressed.T
    features["spectra"] = torch.tanh((ranks[None, :] - ranks[:, None]) / found.distances) * is_open
    names = [members[i].name for i in unique]
    twins = {members[i].name: members[j].name for i, j in copies.items()}
    return Family(forest, names, twins, found, averages, features, apart)


def _log_rank(tensors: Mapping[str, Tensor]) -> float:
    """Mean logarithm of the effective rank of the matrices: the exponential of the entropy of their spectra."""
    ranks = []
    for name in matrices(tensors):
        squares = torch.linalg.svdvals(tensors[name].double().flatten(1)).square()
        shares = squares / squares.sum().clamp(min=1e-300)
        ranks.append(float(-(shares * shares.clamp(min=1e-300).log()).sum()))
    return float(np.mean(ranks))


def surprise(families: Sequence[Family], weights: Mapping[str, Any]) -> Tensor:
    """Negative logarithm of the probability of the true forests."""
    total = torch.zeros((), dtype=torch.float64)
    for family in families:
        truth, names = family.truth, [name for name in weights if name not in ORPHAN]
        hidden = [i for i in range(len(family.names)) if i not in truth]
        features = {name: family.features[name] for name in names}
        edges, orphans = edge_scores(features, family.apart, hidden, weights)
        total = total + torch.logdet(laplacian(edges, orphans)) - orphans[hidden].sum()
        total = total - sum(orphans[i] if parent < 0 else edges[parent, i] for i, parent in truth.items())
    return total


def fit(families: Sequence[Family], names: Sequence[str]) -> dict[str, float]:
    """Maximum likelihood weights of the features."""
    weights = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in (*names, *ORPHAN)}
    optimizer = torch.optim.LBFGS(list(weights.values()), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = surprise(families, weights) + PENALTY * sum(x.square() for x in weights.values())
        total.backward()
        return total

    optimizer.step(loss)
    return {name: float(x.detach()) for name, x in weights.items()}


def compare_directions(groups: Sequence[Sequence[Family]]) -> dict[str, float]:
    """Surprise per network for each measure of direction, cross-validated over forests."""
    found = {}
    for direction, extra in DIRECTIONS.items():
        total = count = 0.0
        for fold in range(FOLDS):
            kept = [family for i, group in enumerate(groups) if i % FOLDS != fold for family in group]
            left_out = [family for i, group in enumerate(groups) if i % FOLDS == fold for family in group]
            weights = fit(kept, (*SHAPE, *extra))
            with torch.no_grad():
                total += float(surprise(left_out, weights))
            count += sum(len(family.truth) for family in left_out)
        found[direction] = total / count
    return found


Edges = list[tuple[str, str, float]]  # child, parent, confidence; copies are excluded from the calibration


def traced(families: Sequence[Family], weights: Mapping[str, float], averaged: float) -> tuple[Edges, Edges]:
    """Inferred edges, and those between copies, whose direction cannot be determined."""
    edges: Edges = []
    copies: Edges = []
    for family in families:
        names = family.names
        copies += [(child, parent, 0.5) for child, parent in family.copies.items()]
        features = {name: x for name, x in family.features.items() if name in weights}
        scores, orphans = edge_scores(features, family.apart, family.averages, weights)
        sure, parents = edge_probabilities(scores, orphans), likeliest_forest(scores, orphans, family.averages)
        edges += [(names[child], names[parent], float(sure[parent, child])) for child, parent in parents.items()]
        edges += [(names[c], names[p], averaged) for c, parents in family.averages.items() for p in parents]
    return edges, copies


def quality(forests: Sequence[tuple[Forest, Edges]]) -> dict[str, float]:
    """Precision and recall of edges, and recall of pairs in either direction."""
    right = said = found = there = pairs = 0
    for forest, edges in forests:
        plain = [(child, parent) for child, parent, _ in edges]
        right += sum(right_edges(forest, plain))
        said += len(plain)
        truth = true_edges(forest)
        same = forest.same
        directed = {(same(child), same(parent)) for child, parent in plain}
        linked = {x for x, y in plain if same(x) == same(y)} | {y for x, y in plain if same(x) == same(y)}
        for child, parent in truth:
            if forest.kinds[child] == "copy":
                found, pairs = found + (child in linked), pairs + (child in linked)
            else:
                edge = same(child), same(parent)
                found, pairs = found + (edge in directed), pairs + (edge in directed or edge[::-1] in directed)
        there += len(truth)
    precision, recall = right / max(1, said), found / max(1, there)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "recall_of_pairs": pairs / there, "edges": there}


def stored_distances(forest: Forest, measure_of: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Distances between stored weights, and their kurtosis."""
    names = list(forest.tensors)
    keys = matrices(forest.tensors[names[0]])
    flat = torch.stack([torch.cat([forest.tensors[name][key].flatten() for key in keys]) for name in names]).double()
    if measure_of == "cosine":
        unit = flat / flat.norm(dim=1, keepdim=True)
        distances = 1 - unit @ unit.T
    else:
        scale = flat.square().sum(1)
        gaps = (scale[:, None] + scale[None, :] - 2 * flat @ flat.T).clamp(min=0)
        distances = (gaps / (scale[:, None] + scale[None, :])).sqrt()
    centred = flat - flat.mean(1, keepdim=True)
    kurtosis = centred.pow(4).mean(1) / centred.square().mean(1).square()
    return names, distances.numpy(), kurtosis.numpy()


def plain_trees(stored: tuple[list[str], np.ndarray, np.ndarray], threshold: float) -> Edges:
    """Least arborescence, as in MoTHer; networks further than the threshold from all others are roots."""
    names, distances, kurtosis = stored
    graph = networkx.DiGraph()
    for child in range(len(names)):
        graph.add_edge(-1, child, weight=threshold * (1 + TURN))
        for parent in range(len(names)):
            if parent != child and distances[parent, child] < threshold:
                turned = TURN * threshold * (kurtosis[parent] > kurtosis[child])
                graph.add_edge(parent, child, weight=distances[parent, child] + turned)
    tree = networkx.minimum_spanning_arborescence(graph)
    return [(names[child], names[parent], 1.0) for parent, child in tree.edges if parent >= 0]


def best_threshold(forests: Sequence[Forest], measure_of: str) -> float:
    """The threshold with the best F1."""
    stored = [stored_distances(forest, measure_of) for forest in forests]
    values = np.quantile(np.concatenate([distances.ravel() for _, distances, _ in stored]), np.linspace(0.02, 1, 30))

    def score(threshold: float) -> float:
        pairs = zip(forests, stored, strict=True)
        return quality([(forest, plain_trees(one, threshold)) for forest, one in pairs])["f1"]

    return float(max(values, key=score))


def calibration(forests: Sequence[tuple[Forest, Edges]]) -> dict[str, Any]:
    """Share of correct edges by confidence, expected calibration error and Brier score."""
    said, right = [], []
    for forest, edges in forests:
        said += [confidence for _, _, confidence in edges]
        right += right_edges(forest, [(child, parent) for child, parent, _ in edges])
    confidence, is_right = np.array(said), np.array(right, float)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "edges": int((places == i).sum()),
            "confidence": float(confidence[places == i].mean()),
            "right": float(is_right[places == i].mean()),
        }
        for i in range(BINS)
        if (places == i).any()
    ]
    error = sum(x["edges"] * abs(x["confidence"] - x["right"]) for x in bins) / len(confidence)
    base = float(is_right.mean())
    return {
        "edges": len(said),
        "ece": error,
        "brier": float(np.square(confidence - is_right).mean()),
        "brier_of_the_mean": base * (1 - base),
        "bins": bins,
    }


def strangers_right(groups: Sequence[Sequence[Family]]) -> float:
    """Share of pairs of networks from different families that are in fact unrelated."""
    right = total = 1
    for group in groups:
        forest = group[0].forest
        roots = [{_root(forest, name) for name in (*family.names, *family.copies)} for family in group]
        sizes = [len(family.names) + len(family.copies) for family in group]
        for i, mine in enumerate(roots):
            for theirs, size in zip(roots[:i], sizes[:i], strict=True):
                total += sizes[i] * size
                right += 0 if mine & theirs else sizes[i] * size
    return right / (total + 1)


def _root(forest: Forest, name: str) -> str:
    while forest.parents[name]:
        name = forest.parents[name][0]
    return name


def grow(options: argparse.Namespace) -> tuple[list[Forest], dict[str, list[Forest]]]:
    """Forests for fitting, and held-out ones."""
    size = {"roots": options.roots, "children": options.children}
    kinds = options.architectures
    fitting = [mixed_forest(kind, seed, **size) for seed in range(options.fitting) for kind in kinds]
    # Earlier seeds were seen while the features were still changing.
    seeds = range(4000, 4000 + options.held_out)
    others = {
        "mixed": [mixed_forest(kind, seed, **size) for seed in seeds for kind in kinds],
        "mixed, another architecture": [mixed_forest("deep mlp", seed, **size) for seed in seeds],
        "MoTHer, full": [mother_forest("mlp", 5000, change="full", trees=options.trees, fan=options.fan)],
        "MoTHer, LoRA": [mother_forest("mlp", 5001, change="lora", trees=options.trees, fan=options.fan)],
        "atlas": [atlas_forest("mlp", 6000 + i, fan=3 * options.fan) for i in range(2)],
    }
    return fitting, others


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--architectures", nargs="+", default=["mlp", "wide mlp", "cnn"])
    parser.add_argument("--fitting", type=int, default=6, help="forests of each architecture for fitting")
    parser.add_argument("--held-out", type=int, default=4, help="held-out forests of each architecture")
    parser.add_argument("--roots", type=int, default=3, help="of a forest")
    parser.add_argument("--children", type=int, default=12, help="of each root")
    parser.add_argument("--trees", type=int, default=5, help="of the imitation of MoTHer")
    parser.add_argument("--fan", type=int, default=4, help="children of each network there")
    options, record = start(parser, argv)
    fitting, others = grow(options)
    groups = [families_of(forest) for forest in fitting]
    everything = [family for group in groups for family in group]
    weights = fit(everything, (*SHAPE, *DIRECTIONS[SHIPPED]))
    found = [(family, c, p) for family in everything for c, parents in family.averages.items() for p in parents]
    right = sum(sum(right_edges(x.forest, [(x.names[c], x.names[p])])) for x, c, p in found)
    averaged = (right + 1) / (len(found) + 2)
    thresholds = {name: best_threshold(fitting, name) for name in ("L2", "cosine")}
    held_out: dict[str, Any] = {}
    pooled: list[tuple[Forest, Edges]] = []
    for name, forests in others.items():
        ours = []
        for forest in forests:
            edges, copies = traced(families_of(forest), weights, averaged)
            ours.append((forest, edges + copies))
            pooled.append((forest, edges))
        held_out[name] = {"networks": sum(len(x.tensors) for x in forests), "ours": quality(ours)}
        for kind, threshold in thresholds.items():
            plain = [(x, plain_trees(stored_distances(x, kind), threshold)) for x in forests]
            held_out[name][kind] = quality(plain)
        held_out[name]["calibration"] = calibration(pooled[-len(forests) :])
    results = {
        "fitted": {
            "networks": sum(len(forest.tensors) for forest in fitting),
            "weights": weights,
            "averaged": averaged,
            "strangers": strangers_right(groups),
            "thresholds": thresholds,
            "surprise": compare_directions(groups),
        },
        "held_out": held_out,
        "calibration": calibration(pooled),
    }
    return finish(record, results, options.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="lineage_trees.py")
