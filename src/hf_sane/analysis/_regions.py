"""Regions in weight space: positions of networks trained on one data set or task, and points between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_sane.analysis._projection import Projection, project
from hf_sane.analysis._region_networks import align_networks, flatten_networks
from hf_sane.analysis._region_results import GroupDistances, RegionAccuracy, RegionScores
from hf_sane.core._distances import square_distances
from hf_sane.core._types import StateDict
from hf_sane.records._errors import name_some
from hf_sane.symmetry._permutation import PermutationSpec

Metric = Literal["euclidean", "cosine"]
Rule = Literal["centroid", "neighbour"]
NAMED = 5  # labels or networks to list in an error


@dataclass(frozen=True)
class RegionMap:
    """Networks as labelled points, in weight space or in the latent space of an autoencoder.

    After Gueta et al. 2023 (arXiv:2302.04863): networks fine-tuned on one data set form a region, networks of one task
    a wider region, and points within a region perform as well as its corners. There, all networks descend from one
    network; here, they may be aligned first, see [`from_networks`]. `hf_sane.map_regions` also maps latents of
    a SANE, and adapters.

    Attributes:
        points: `[M, P]` float, one network each.
        labels: `M` labels by level (`"data set"`, `"task"`, ...).
        runs: Training run of every network; networks of one run are not compared with each other. All different if
            empty.

    Raises:
        ValueError: If there are fewer than two networks, points are not `[M, P]` or not finite, or the number of
            labels differs.
    """

    points: Tensor
    labels: Mapping[str, Sequence[str]]
    runs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) < 2 or not self.points.shape[1]:
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
        """Map networks by their weights, aligned to one of them.

        Args:
            tensors: `{name: [M, *shape]}` of one architecture (see [`stack_networks`]); integer tensors are left out.
            labels: As in the class.
            spec: Permutation symmetries for alignment; no alignment if `None`.
            reference: Network to align to; the first one if `None`.
            runs: As in the class.

        Raises:
            ValueError: As in the class, if networks differ in number between tensors, or do not fit the spec.
        """
        if spec is not None:
            tensors = align_networks(tensors, spec, reference)
        return cls(flatten_networks(tensors), labels, runs)

    def distances(self, metric: Metric = "euclidean") -> Tensor:
        """Distances between all networks, `[M, M]` float64, exactly 0 for equal ones.

        `cosine` is one minus the cosine of the angle.

        Raises:
            ValueError: If the metric is unknown, or is cosine and a network is all zeros.
        """
        points = self.points.double()
        if metric == "euclidean":
            return square_distances(points, points).sqrt()
        if metric != "cosine":
            raise ValueError(f"expected the metric 'euclidean' or 'cosine', got {metric!r}")
        norms = points.norm(dim=1)
        if not norms.all():
            raise ValueError("a network of zeros has no direction; use metric='euclidean'")
        directions = points / norms[:, None]
        return square_distances(directions, directions) / 2  # of unit vectors, it is one minus the cosine

    def group_distances(
        self,
        level: str,
        *,
        metric: Metric = "euclidean",
        num_shuffles: int = 999,
        generator: torch.Generator | None = None,
    ) -> GroupDistances:
        """Compare distances within and between the groups of a level.

        Significance is estimated by shuffling labels, where networks of one run keep a common label.

        Args:
            level: Level of `labels`.
            metric: Metric of distances.
            num_shuffles: Number of random relabellings, >= 1.
            generator: CPU source of randomness; the global one if `None`.

        Raises:
            KeyError: If there is no such level.
            ValueError: If there are no pairs within, or none between groups, a run has several labels, or
                `num_shuffles < 1`.
        """
        if num_shuffles < 1:
            raise ValueError(f"num_shuffles must be at least 1, got {num_shuffles}")
        names, codes = self._codes(level)
        distances, comparable = self.distances(metric), self._comparable()
        same = codes[:, None] == codes
        if not (comparable & same).any() or not (comparable & ~same).any():
            raise ValueError(
                f"level {level!r} needs at least two networks with one label and two labels, got {len(names)} "
                f"labels for {len(codes)} networks"
            )
        runs = self._run_codes()
        first = torch.stack([codes[runs == run][0] for run in range(int(runs.max()) + 1)])
        if (first[runs] != codes).any():
            raise ValueError(
                f"training runs have several labels on level {level!r}; shuffling requires one label per run"
            )
        # Sums over label pairs: [L, M] @ [M, M] @ [M, L], much faster than masks for many relabellings.
        weighed, counted = distances * comparable, comparable.double()

        def ratio(codes: Tensor) -> float:
            sums, counts = _between_labels(weighed, codes), _between_labels(counted, codes)
            inside, pairs = sums.trace(), counts.trace()
            return ((inside / pairs) / ((sums.sum() - inside) / (counts.sum() - pairs))).item()

        observed = ratio(codes)
        hits = sum(
            ratio(first[torch.randperm(len(first), generator=generator)][runs]) <= observed * (1 + 1e-12)
            for _ in range(num_shuffles)
        )
        means = _between_labels(weighed, codes) / _between_labels(counted, codes)  # 0 / 0 is NaN
        return GroupDistances(
            {name: dict(zip(names, row, strict=True)) for name, row in zip(names, means.tolist(), strict=True)},
            distances[comparable & same].mean().item(),
            distances[comparable & ~same].mean().item(),
            observed,
            (1 + hits) / (1 + num_shuffles),
        )

    def nearest(self, points: Tensor, level: str, *, rule: Rule = "centroid") -> list[str]:
        """Name the nearest region of new networks, given as points of the map.

        Args:
            points: `[K, P]`.
            level: Level of `labels`.
            rule: `"centroid"`: the region whose mean is nearest; `"neighbour"`: that of the nearest network.

        Returns:
            `K` labels.

        Raises:
            KeyError: If there is no such level.
            ValueError: If the rule is unknown, points have another size or are not finite, or the level has only one
                label.
        """
        names, codes = self._regions(level, rule)
        if points.ndim != 2 or points.shape[1] != self.points.shape[1] or not points.isfinite().all():
            raise ValueError(
                f"expected finite points [K, {self.points.shape[1]}], got {list(points.shape)}; represent "
                "networks like those of the map"
            )
        known = self.points.double()
        return [names[_nearest(point, known, codes, len(names), rule)] for point in points.double()]

    def classify(self, level: str, *, rule: Rule = "centroid") -> RegionAccuracy:
        """Assign every network to the nearest region of networks from other runs.

        Args:
            level: Level of `labels`.
            rule: Rule, see [`nearest`].

        Raises:
            KeyError: If there is no such level.
            ValueError: If the rule is unknown, the level has only one label, or a label has only one run and could
                never be found.
        """
        names, codes = self._regions(level, rule)
        runs = self._run_codes()
        if lonely := [name for code, name in enumerate(names) if len(runs[codes == code].unique()) < 2]:
            raise ValueError(
                f"expected two training runs for every label of level {level!r}, got one for "
                f"{name_some(lonely, NAMED)}"
            )
        if rule == "neighbour":
            distances = self.distances().masked_fill(~self._comparable(), torch.inf)
            found = codes[distances.argmin(dim=1)]
        else:
            found = self._nearest_centroids(codes, runs, len(names))
        confusion = {name: dict.fromkeys(names, 0) for name in names}
        for true, predicted in zip(codes.tolist(), found.tolist(), strict=True):
            confusion[names[true]][names[predicted]] += 1
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
            level: Level of `labels`.
            label: Region.
            num_points: Number of points, >= 1.
            kind: `"line"`: random points on the lines between two random networks of different runs; `"hull"`:
                averages of all networks with weights drawn uniformly from the simplex, which concentrate around the
                mean if there are many corners.
            generator: CPU source of randomness; the global one if `None`.

        Raises:
            KeyError: If there is no such level.
            ValueError: If fewer than two runs have the label, the kind is unknown, or `num_points < 1`.
        """
        if kind not in ("line", "hull"):
            raise ValueError(f"expected 'line' or 'hull', got {kind!r}")
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        names, codes = self._codes(level)
        inside = codes == names.index(label) if label in names else torch.zeros(len(codes), dtype=torch.bool)
        corners, pairs = self.points[inside], self._comparable()[inside][:, inside].nonzero()
        if not len(pairs):
            raise ValueError(
                f"expected at least two networks with {level} {label!r}, of different runs, got {len(corners)} "
                f"(labels: {names[:NAMED]})"
            )
        if kind == "hull":
            drawn = -(1 - torch.rand(num_points, len(corners), generator=generator, dtype=torch.float64)).log()
            return ((drawn / drawn.sum(dim=1, keepdim=True)) @ corners.double()).to(corners)
        chosen = pairs[torch.randint(len(pairs), (num_points,), generator=generator)]
        share = torch.rand(num_points, 1, generator=generator, dtype=corners.dtype)
        return share * corners[chosen[:, 0]] + (1 - share) * corners[chosen[:, 1]]

    def score_region(
        self,
        level: str,
        label: str,
        score: Callable[[Tensor], Tensor],
        *,
        num_points: int = 20,
        generator: torch.Generator | None = None,
    ) -> RegionScores:
        """Score points inside a region, its corners, and networks outside.

        Args:
            level: Level of `labels`.
            label: Region.
            score: Function from points `[k, P]` to scores `[k]` on the region's own task, higher is better: see
                [`LabelledNetworks.accuracy`].
            num_points: Number of points on lines, and in the hull.
            generator: CPU source of randomness; the global one if `None`.

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
        """Coordinates for plots, `[M, 2]` float32; see [`project`]."""
        return project(self.points, method, seed=seed)

    def _codes(self, level: str) -> tuple[list[str], Tensor]:
        """Labels of a level, in order of first appearance, and their index for every network."""
        if level not in self.labels:
            raise KeyError(f"no level {level!r}; this map has {', '.join(map(repr, self.labels))}")
        names = list(dict.fromkeys(self.labels[level]))
        return names, torch.tensor([names.index(label) for label in self.labels[level]])

    def _regions(self, level: str, rule: Rule) -> tuple[list[str], Tensor]:
        """Like `_codes`, for a level with at least two labels."""
        if rule not in ("centroid", "neighbour"):
            raise ValueError(f"expected the rule 'centroid' or 'neighbour', got {rule!r}")
        names, codes = self._codes(level)
        if len(names) < 2:
            raise ValueError(f"level {level!r} has only the label {names[0]!r}; nearest regions require two labels")
        return names, codes

    def _nearest_centroids(self, codes: Tensor, runs: Tensor, num_labels: int) -> Tensor:
        """Index `[M]` of the label whose mean is nearest, without networks of the same run."""
        points, members = self.points.double(), torch.nn.functional.one_hot(codes, num_labels).double()
        sums, counts = members.mT @ points, members.sum(dim=0)
        found = torch.empty_like(codes)
        for run in runs.unique():
            own = runs == run
            centres = (sums - members[own].mT @ points[own]) / (counts - members[own].sum(dim=0))[:, None]
            found[own] = torch.cdist(points[own], centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        return found

    def _run_codes(self) -> Tensor:
        if not self.runs:
            return torch.arange(len(self.points))
        names = {run: code for code, run in enumerate(dict.fromkeys(self.runs))}
        return torch.tensor([names[run] for run in self.runs])

    def _comparable(self) -> Tensor:
        """Pairs of networks of different runs, bool `[M, M]`."""
        runs = self._run_codes()
        return runs[:, None] != runs


def _nearest(point: Tensor, others: Tensor, codes: Tensor, num_labels: int, rule: Rule) -> int:
    """Index of the label whose region is nearest to a point `[P]`."""
    if rule == "neighbour":
        return int(codes[(others - point).norm(dim=1).argmin()])
    centres = torch.stack([others[codes == code].mean(dim=0) for code in range(num_labels)])
    return int((centres - point).norm(dim=1).argmin())


def _between_labels(values: Tensor, codes: Tensor) -> Tensor:
    """Sums of `[M, M]` values over pairs of labels: `[L, L]`."""
    members = torch.nn.functional.one_hot(codes).to(values)
    return members.mT @ values @ members
