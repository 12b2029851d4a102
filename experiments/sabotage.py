"""Sabotage networks, and find and mend the layer: scores of layers, and replacements for one layer without data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from children_prompts import Children, Code, Family
from torch import Tensor

from hf_sane.core._layout import Layout

FAULTS = ("zeroed", "flipped", "scaled", "rank_1")
FACTORS = (0.25, 4.0)  # of scaled channels
SHARES = (0.5, 1.0)  # of the channels of a layer that are hit
RIDGE = 0.1  # of the conditional mean, in mean variances
WHOLE = 64  # principal components of whole networks


@dataclass(frozen=True)
class Sabotage:
    """A fault of a network: its kind, the layer, and the share of its channels."""

    fault: str
    layer: int
    share: float


def draw_sabotages(count: int, layers: int, seed: int) -> list[Sabotage]:
    """Faults in turn, each in a random layer; a random half of its channels, or all, are hit. Rank 1 hits all."""
    generator = np.random.default_rng([seed, count])
    found = []
    for i in range(count):
        fault, layer = FAULTS[i % len(FAULTS)], int(generator.integers(layers))
        share = 1.0 if fault == "rank_1" else float(generator.choice(SHARES))
        found.append(Sabotage(fault, layer, share))
    return found


def sabotage(tokens: Tensor, layout: Layout, faults: Sequence[Sabotage], seed: int) -> Tensor:
    """Tokens `[M, N, D]` of networks with one fault each. A row of a layer is a channel with its bias."""
    generator = np.random.default_rng([seed, len(faults), 1])
    broken = tokens.clone()
    for i, fault in enumerate(faults):
        part = layout.token_slices[fault.layer]
        own = broken[i, part]
        if fault.fault == "rank_1":
            u, s, v = torch.linalg.svd(own, full_matrices=False)
            own[:] = s[0] * u[:, :1] @ v[:1]
            continue
        hit = generator.permutation(len(own))[: max(1, round(fault.share * len(own)))]
        factor = {"zeroed": 0.0, "flipped": -1.0, "scaled": float(generator.choice(FACTORS))}[fault.fault]
        own[torch.from_numpy(hit)] *= factor
    return broken


def nearest_ancestor(family: Family, tokens: Tensor) -> Tensor:
    """The ancestor of each network, by the median distance of tokens, which a broken layer hardly moves."""
    gaps = (tokens.unsqueeze(1) - family.ancestors).square().sum(dim=3)  # [M, A, N]
    return gaps.median(dim=2).values.argmin(dim=1)


LayerScore = Callable[[Tensor, Tensor], Tensor]  # changes [M, N, D], ancestors [M] -> scores [M, L]


def by_layer(errors: Tensor, layout: Layout) -> Tensor:
    """Logarithm of the mean of errors of tokens `[M, N]` in each layer, `[M, L]`."""
    return torch.stack([errors[:, part].mean(dim=1) for part in layout.token_slices], dim=1).clamp_min(1e-12).log()


def layer_scores(family: Family, codes: dict[str, Code]) -> dict[str, LayerScore]:
    """Raw scores of layers, by name: residuals of codes, distances, norms and spectra."""
    layout, train = family.layout, family.splits["train"]
    counts = range(len(family.ancestors))
    mean = torch.stack([train.changes[train.ancestor == a].mean(dim=0) for a in counts])

    def residual(code: Code) -> LayerScore:
        def score(changes: Tensor, ancestor: Tensor) -> Tensor:
            with torch.no_grad():
                decoded = code.decode(code.encode(changes, ancestor), ancestor)
            return by_layer(((decoded - changes) * layout.weight_mask).square().sum(dim=2), layout)

        return score

    def distance(changes: Tensor, ancestor: Tensor) -> Tensor:
        return by_layer(changes.square().sum(dim=2), layout)

    def to_average(changes: Tensor, ancestor: Tensor) -> Tensor:
        return by_layer((changes - mean[ancestor]).square().sum(dim=2), layout)

    def norms(changes: Tensor, ancestor: Tensor) -> Tensor:
        tokens = changes + family.ancestors[ancestor]
        return by_layer(tokens.square().sum(dim=2), layout)

    found: dict[str, LayerScore] = {name: residual(code) for name, code in codes.items()}
    return {**found, "ancestor": distance, "average": to_average, "norms": norms}


@dataclass(frozen=True)
class Detector:
    """Scores of layers in standard deviations over healthy training networks.

    Attributes:
        score: Raw scores.
        mean: `[L]`.
        std: `[L]`.
        two_sided: Whether low values are suspicious, too.
    """

    score: LayerScore
    mean: Tensor
    std: Tensor
    two_sided: bool = False

    @classmethod
    def fit(cls, score: LayerScore, train: Children, *, two_sided: bool = False) -> "Detector":
        """Measure healthy training networks."""
        found = score(train.changes, train.ancestor)
        return cls(score, found.mean(dim=0), found.std(dim=0).clamp_min(1e-6), two_sided)

    def __call__(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Suspicion of every layer, `[M, L]`; of a network it is the largest."""
        z = (self.score(changes, ancestor) - self.mean) / self.std
        return z.abs() if self.two_sided else z


class SpectrumDetector:
    """The largest deviation of a singular value of a layer from those of healthy training networks."""

    def __init__(self, family: Family) -> None:
        self.family = family
        train = family.splits["train"]
        known = self.values(train.changes, train.ancestor)
        self.moments = [(values.mean(dim=0), values.std(dim=0).clamp_min(1e-4)) for values in known]

    def values(self, changes: Tensor, ancestor: Tensor) -> list[Tensor]:
        """Logarithms of singular values of each layer."""
        tokens = changes + self.family.ancestors[ancestor]
        parts = (tokens[:, part] for part in self.family.layout.token_slices)
        return [torch.linalg.svdvals(part).clamp_min(1e-4).log() for part in parts]

    def __call__(self, changes: Tensor, ancestor: Tensor) -> Tensor:
        """Suspicion of every layer, `[M, L]`."""
        pairs = zip(self.values(changes, ancestor), self.moments, strict=True)
        return torch.stack([((v - mean) / std).abs().amax(dim=1) for v, (mean, std) in pairs], dim=1)


def area_under_curve(healthy: Tensor, broken: Tensor) -> float:
    """Probability that a broken network is more suspicious than a healthy one."""
    above = (broken.unsqueeze(1) > healthy).double() + 0.5 * (broken.unsqueeze(1) == healthy).double()
    return above.mean().item()


Repair = Callable[[Tensor, Tensor, Tensor], Tensor]  # changes [M, N, D], ancestors [M], layers [M] -> changes


class LayerRepairs:
    """Replacements for one layer of each network, from what is known about healthy training networks."""

    def __init__(self, family: Family, codes: dict[str, Code]) -> None:
        self.family, self.codes = family, codes
        train = family.splits["train"]
        counts = range(len(family.ancestors))
        self.mean = torch.stack([train.changes[train.ancestor == a].mean(dim=0) for a in counts])

    def masks(self, layers: Tensor) -> Tensor:
        """`[M, N, 1]`, true in the layer that is replaced."""
        masks = torch.zeros(len(layers), self.family.layout.num_tokens, 1, dtype=torch.bool)
        for i, layer in enumerate(layers.tolist()):
            masks[i, self.family.layout.token_slices[layer]] = True
        return masks

    def all(self) -> dict[str, Repair]:
        """Every method by name."""
        found: dict[str, Repair] = {
            "ancestor": lambda changes, ancestor, layers: torch.zeros_like(changes),
            "average": lambda changes, ancestor, layers: self.mean[ancestor],
            "nearest": self.nearest,
            "linear_conditional": self.conditional,
        }
        for name, code in self.codes.items():
            found[f"{name}_projection"] = self.projection(code, from_average=False)
            found[f"{name}_filled"] = self.projection(code, from_average=True)
        return {name: self.replacing(method) for name, method in found.items()}

    def replacing(self, method: Repair) -> Repair:
        """Keep all layers but one."""

        def repair(changes: Tensor, ancestor: Tensor, layers: Tensor) -> Tensor:
            return torch.where(self.masks(layers), method(changes, ancestor, layers), changes)

        return repair

    def nearest(self, changes: Tensor, ancestor: Tensor, layers: Tensor) -> Tensor:
        """The training child of the same ancestor whose other layers are nearest."""
        train, masks = self.family.splits["train"], self.masks(layers)
        found = torch.empty_like(changes)
        for i in range(len(changes)):
            own = train.changes[train.ancestor == ancestor[i]]
            gaps = ((own - changes[i]) * ~masks[i]).square().flatten(1).sum(dim=1)
            found[i] = own[gaps.argmin()]
        return found

    def conditional(self, changes: Tensor, ancestor: Tensor, layers: Tensor) -> Tensor:
        """The mean of the layer given all others, if siblings are normally distributed in principal directions."""
        train, masks = self.family.splits["train"], self.masks(layers)
        found = torch.empty_like(changes)
        for number in ancestor.unique():
            own = train.changes[train.ancestor == number].flatten(1)
            mean = own.mean(dim=0)
            _, scale, directions = torch.linalg.svd(own - mean, full_matrices=False)
            directions, variance = directions[:WHOLE], (scale[:WHOLE].square() / len(own)).clamp_min(1e-12)
            noise = (own - mean - (own - mean) @ directions.T @ directions).square().mean().clamp_min(1e-12)
            for i in (ancestor == number).nonzero().flatten().tolist():
                kept = ~masks[i].expand(-1, changes.shape[2]).flatten()
                part = directions[:, kept]
                gram = part @ part.T / noise + torch.diag(1 / variance)
                point = torch.linalg.solve(gram, part @ (changes[i].flatten() - mean)[kept] / noise)
                found[i] = (mean + point @ directions).view_as(changes[i])
        return found

    def projection(self, code: Code, *, from_average: bool) -> Repair:
        """Decode what the code reads: the broken network, or the average sibling's layer in its place."""

        def project(changes: Tensor, ancestor: Tensor, layers: Tensor) -> Tensor:
            given = torch.where(self.masks(layers), self.mean[ancestor], changes) if from_average else changes
            with torch.no_grad():
                return code.decode(code.encode(given, ancestor), ancestor)

        return project
