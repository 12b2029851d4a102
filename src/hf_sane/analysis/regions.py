"""Knowledge as regions in weight space: where networks of one data set or task lie, and what lies between them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from hf_sane.core.matching import match_many
from hf_sane.core.permutation import PermutationSpec
from hf_sane.core.types import StateDict

Metric = Literal["euclidean", "cosine"]
Rule = Literal["centroid", "neighbour"]
Projection = Literal["tsne", "umap", "pca"]


@dataclass(frozen=True)
class GroupDistances:
    """Distances within and between the groups of one level.

    Attributes:
        within: Label to the mean distance between two of its networks.
        mean_within: Over all pairs of one label.
        mean_between: Over all pairs of different labels.
        ratio: `mean_within / mean_between`; 1 where labels say nothing about places.
        p_value: Share of random relabellings (and the labels themselves) with a ratio as small as this.
    """

    within: dict[str, float]
    mean_within: float
    mean_between: float
    ratio: float
    p_value: float


@dataclass(frozen=True)
class RegionAccuracy:
    """How often the nearest region is the right one, every network judged by the others.

    Attributes:
        accuracy: Share of networks.
        chance: Share of the largest label.
        confusion: True label to predicted label to number of networks.
    """

    accuracy: float
    chance: float
    confusion: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RegionScores:
    """What lies inside a region, measured beside its corners and beside what lies outside.

    Attributes:
        corners: Scores of the networks of the region, `[m]`.
        line: Of points between two of them.
        hull: Of points between all of them.
        outside: Of networks of other labels.
    """

    corners: Tensor
    line: Tensor
    hull: Tensor
    outside: Tensor


@dataclass(frozen=True)
class RegionMap:
    """Networks as labelled points, in weight space or in the latent space of an autoencoder.

    After Gueta et al. 2023 (arXiv:2302.04863): networks fine-tuned on one data set lie in one region, networks of one task
    in a wider one, and points within a region do as well as its corners. There all networks descend from one; here they
    may be aligned first, see [`from_networks`].

    Attributes:
        points: `[M, P]` float, one network each.
        labels: Level (`"data set"`, `"task"`, ...) to the label of every network, `M` each.
        runs: Training run of every network; those of one run are never compared with each other. All different if empty.

    Raises:
        ValueError: For fewer than two networks, points that are not `[M, P]` or not finite, or another number of labels.
    """

    points: Tensor
    labels: Mapping[str, Sequence[str]]
    runs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) < 2:
            raise ValueError(f"a map needs at least two networks as points [M, P], got {list(self.points.shape)}")
        if bad := (~self.points.isfinite().all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"networks {bad} are not finite (NaN or infinite weights); leave them out")
        counts = {level: len(found) for level, found in self.labels.items()} | (
            {"runs": len(self.runs)} if self.runs else {}
        )
        if not self.labels or any(count != len(self.points) for count in counts.values()):
            raise ValueError(f"expected labels of {len(self.points)} networks on at least one level, got {counts}")

    @classmethod
    def from_networks(
        cls,
        tensors: Mapping[str, Tensor],
        labels: Mapping[str, Sequence[str]],
        *,
        spec: PermutationSpec | None = None,
        reference: StateDict | None = None,
        runs: Sequence[str] = (),
    ) -> "RegionMap":
        """Place networks by their weights, aligned to one of them.

        Args:
            tensors: `{name: [M, *shape]}` of one architecture; integer tensors are left out.
            labels: As in the class.
            spec: Permutation symmetries, to align by; weights are taken as they are when `None`.
            reference: Network to align to; the first one when `None`.
            runs: As in the class.

        Raises:
            ValueError: As in the class, or if the weights do not fit the spec.
        """
        if spec is not None:
            fixed = reference or {name: tensor[0] for name, tensor in tensors.items()}
            tensors = spec.apply(tensors, match_many(spec, fixed, tensors), batch_dims=1)
        floating = [tensor.flatten(1) for tensor in tensors.values() if tensor.is_floating_point()]
        return cls(torch.cat(floating, dim=1), labels, runs)

    def distances(self, metric: Metric = "euclidean") -> Tensor:
        """Distances between all networks, `[M, M]` float64; `cosine` is one minus the cosine of the angle.

        Raises:
            ValueError: For another metric, or cosines with a network of zeros.
        """
        points = self.points.double()
        if metric == "euclidean":
            return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        if metric != "cosine":
            raise ValueError(f"expected the metric 'euclidean' or 'cosine', got {metric!r}")
        norms = points.norm(dim=1)
        if not norms.all():
            raise ValueError("a network of zeros has no direction; use metric='euclidean'")
        return 1 - (points @ points.mT) / (norms[:, None] * norms)

    def group_distances(
        self,
        level: str,
        *,
        metric: Metric = "euclidean",
        num_shuffles: int = 999,
        generator: torch.Generator | None = None,
    ) -> GroupDistances:
        """Compare distances within and between the groups of a level.

        Whether the ratio means anything is judged by shuffling labels, between runs where there are several networks of one.

        Args:
            level: Of `labels`.
            metric: Of distances.
            num_shuffles: Random relabellings, >= 1.
            generator: CPU source of randomness; the global one when `None`.

        Raises:
            KeyError: If there is no such level.
            ValueError: If there are no pairs within, or none between groups, or `num_shuffles < 1`.
        """
        if num_shuffles < 1:
            raise ValueError(f"num_shuffles must be at least 1, got {num_shuffles}")
        names, codes = self._codes(level)
        distances, comparable = self.distances(metric), self._comparable()
        same = codes[:, None] == codes
        if not (comparable & same).any() or not (comparable & ~same).any():
            raise ValueError(
                f"level {level!r} needs at least two networks with one label and two labels, got {len(names)} labels for "
                f"{len(codes)} networks"
            )

        def ratio(codes: Tensor) -> float:
            same = codes[:, None] == codes
            return (distances[comparable & same].mean() / distances[comparable & ~same].mean()).item()

        observed = ratio(codes)
        runs = self._run_codes()
        first = torch.stack([codes[runs == run][0] for run in range(int(runs.max()) + 1)])
        hits = sum(
            ratio(first[torch.randperm(len(first), generator=generator)][runs]) <= observed * (1 + 1e-12)
            for _ in range(num_shuffles)
        )
        within = {}
        for code, name in enumerate(names):
            pairs = comparable & (codes[:, None] == code) & (codes == code)
            within[name] = distances[pairs].mean().item() if pairs.any() else math.nan
        return GroupDistances(
            within,
            distances[comparable & same].mean().item(),
            distances[comparable & ~same].mean().item(),
            observed,
            (1 + hits) / (1 + num_shuffles),
        )

    def classify(self, level: str, *, rule: Rule = "centroid") -> RegionAccuracy:
        """Assign every network to the nearest region, without itself and its run.

        Args:
            level: Of `labels`.
            rule: `"centroid"`: the region whose mean is nearest; `"neighbour"`: that of the nearest network.

        Raises:
            KeyError: If there is no such level.
            ValueError: For another rule, or a label of one run only, which could never be found.
        """
        if rule not in ("centroid", "neighbour"):
            raise ValueError(f"expected the rule 'centroid' or 'neighbour', got {rule!r}")
        names, codes = self._codes(level)
        runs = self._run_codes()
        if lonely := [name for code, name in enumerate(names) if len(runs[codes == code].unique()) < 2]:
            raise ValueError(f"labels {lonely} of level {level!r} have one training run only; each needs two")
        confusion = {name: dict.fromkeys(names, 0) for name in names}
        points, comparable = self.points.double(), self._comparable()
        for index, row in enumerate(comparable):
            others = points[row]
            if rule == "centroid":
                centres = torch.stack([others[codes[row] == code].mean(dim=0) for code in range(len(names))])
                found = int((centres - points[index]).norm(dim=1).argmin())
            else:
                found = int(codes[row][(others - points[index]).norm(dim=1).argmin()])
            confusion[names[int(codes[index])]][names[found]] += 1
        hits = sum(row[name] for name, row in confusion.items())
        return RegionAccuracy(hits / len(codes), codes.bincount().max().item() / len(codes), confusion)

    def interior(
        self,
        level: str,
        label: str,
        num_points: int,
        *,
        kind: Literal["line", "hull"],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points within a region: `[num_points, P]`.

        Args:
            level: Of `labels`.
            label: Region.
            num_points: How many.
            kind: `"line"`: on the line between two networks drawn at random, anywhere on it; `"hull"`: averages of all
                networks with weights drawn evenly from the simplex.
            generator: CPU source of randomness; the global one when `None`.

        Raises:
            KeyError: If there is no such level.
            ValueError: If fewer than two networks have the label, or for another kind.
        """
        names, codes = self._codes(level)
        corners = self.points[codes == names.index(label)] if label in names else self.points[:0]
        if len(corners) < 2:
            raise ValueError(
                f"expected at least two networks with {level} {label!r}, got {len(corners)} (labels: {names})"
            )
        if kind not in ("line", "hull"):
            raise ValueError(f"expected 'line' or 'hull', got {kind!r}")
        if kind == "hull":
            drawn = -torch.rand(num_points, len(corners), generator=generator, dtype=torch.float64).log()
            return ((drawn / drawn.sum(dim=1, keepdim=True)) @ corners.double()).to(corners)
        pairs = torch.stack([torch.randperm(len(corners), generator=generator)[:2] for _ in range(num_points)])
        share = torch.rand(num_points, 1, generator=generator, dtype=corners.dtype)
        return share * corners[pairs[:, 0]] + (1 - share) * corners[pairs[:, 1]]

    def score_region(
        self,
        level: str,
        label: str,
        score: Callable[[Tensor], Tensor],
        *,
        num_points: int = 20,
        generator: torch.Generator | None = None,
    ) -> RegionScores:
        """Measure points inside a region beside its corners and beside networks outside.

        Args:
            level: Of `labels`.
            label: Region.
            score: Points `[k, P]` to scores `[k]`, on the region's own task: decode and run the networks.
            num_points: On lines, and in the hull.
            generator: CPU source of randomness; the global one when `None`.

        Raises:
            KeyError, ValueError: As in [`interior`].
        """
        line = self.interior(level, label, num_points, kind="line", generator=generator)
        hull = self.interior(level, label, num_points, kind="hull", generator=generator)
        inside = torch.tensor([found == label for found in self.labels[level]])
        outside = self.points[~inside]
        return RegionScores(
            corners=score(self.points[inside]),
            line=score(line),
            hull=score(hull),
            outside=score(outside) if len(outside) else torch.empty(0),
        )

    def project(self, method: Projection = "tsne", *, seed: int = 0) -> Tensor:
        """Coordinates of a picture, `[M, 2]` float32; distances between far points mean little in t-SNE and UMAP.

        Args:
            method: `"tsne"` (scikit-learn), `"umap"` (umap-learn, not among the dependencies) or `"pca"`.
            seed: Of the random start.

        Raises:
            ValueError: For another method, or fewer than four networks.
            ImportError: If UMAP is not installed.
        """
        if len(self.points) < 4:
            raise ValueError(f"a picture needs at least four networks, got {len(self.points)}")
        if method == "pca":
            centred = self.points.double() - self.points.double().mean(dim=0)
            left, values, _ = torch.linalg.svd(centred, full_matrices=False)
            return (left[:, :2] * values[:2]).float()
        if method == "tsne":
            from sklearn.manifold import TSNE

            perplexity = min(30.0, (len(self.points) - 1) / 3)
            found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
                self.points.float().numpy()
            )
            return torch.from_numpy(found).float()
        if method != "umap":
            raise ValueError(f"expected the method 'tsne', 'umap' or 'pca', got {method!r}")
        if find_spec("umap") is None:
            raise ImportError("UMAP is not installed; pip install umap-learn, or use method='tsne'")
        from umap import UMAP

        neighbours = min(15, len(self.points) - 1)
        found = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(self.points.float().numpy())
        return torch.from_numpy(found).float()

    def _codes(self, level: str) -> tuple[list[str], Tensor]:
        """Labels of a level, in order of first appearance, and their index for every network."""
        if level not in self.labels:
            raise KeyError(f"no level {level!r}; this map has {', '.join(map(repr, self.labels))}")
        names = list(dict.fromkeys(self.labels[level]))
        return names, torch.tensor([names.index(label) for label in self.labels[level]])

    def _run_codes(self) -> Tensor:
        if not self.runs:
            return torch.arange(len(self.points))
        names = list(dict.fromkeys(self.runs))
        return torch.tensor([names.index(run) for run in self.runs])

    def _comparable(self) -> Tensor:
        """Pairs of networks of different runs, bool `[M, M]`."""
        runs = self._run_codes()
        return runs[:, None] != runs


__all__ = ["GroupDistances", "RegionAccuracy", "RegionMap", "RegionScores"]
