"""Measure the linear structure that training runs share: how much of some runs the components of others explain."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hf_sane.records._errors import name_some
from hf_sane.records._progress import tracked

SHUFFLES = 5  # draws for the chance level
RESAMPLES = 1000  # resamples of held-out networks, for intervals
LEAST_GAIN = 0.02
NEGLIGIBLE = 1e-10  # relative to the largest eigenvalue; smaller ones are rounding errors


@dataclass(frozen=True)
class SharedStructure:
    """Held-out variance in principal components, for growing numbers of components.

    Attributes:
        directions: Numbers of components.
        explained: Share of the variance of held-out networks, around the training mean, that they explain.
        intervals: 95% bootstrap intervals over the held-out networks.
        chance: The same share for components of training networks whose values were shuffled within each tensor,
            independently for each network, which preserves only the scale of every tensor.
    """

    directions: tuple[int, ...]
    explained: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    chance: tuple[float, ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """Share explained of the variance that chance does not explain, `(explained - chance) / (1 - chance)`."""
        return tuple(
            (found - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")
            for found, by_chance in zip(self.explained, self.chance, strict=True)
        )

    @property
    def best(self) -> int:
        """Index of the number of components with the largest gain."""
        return max(range(len(self.gains)), key=lambda i: -1.0 if math.isnan(self.gains[i]) else self.gains[i])

    @property
    def is_shared(self) -> bool:
        """Whether these components explain more than chance, beyond the interval and with a gain of at least 2%."""
        low, _ = self.intervals[self.best]
        return low > self.chance[self.best] and self.gains[self.best] >= LEAST_GAIN

    def to_dict(self) -> dict[str, list[float] | list[int] | list[list[float]]]:
        """All attributes, and the gains, for a record."""
        return {
            "directions": list(self.directions),
            "explained": list(self.explained),
            "intervals": [list(interval) for interval in self.intervals],
            "chance": list(self.chance),
            "gains": list(self.gains),
        }


def shared_structure(
    training: Mapping[str, Tensor], held_out: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, SharedStructure]:
    """Measure how much of held-out networks the principal components of training networks explain.

    With `X` the training networks minus their mean and `X X^T = U S^2 U^T`, the first `k` components are the rows of
    `S^-1 U^T X`; the share that they explain of held-out networks `Y`, minus the same mean, is `|Y V^T|^2 / |Y|^2`.
    Only products of networks are needed, which are sums over tensors, so that weights are not copied.

    Args:
        training: Weights `{tensor: [n, *shape]}`, one network per run.
        held_out: Weights `{tensor: [m, *shape]}` of other runs.
        seed: Random seed of shuffles and intervals.

    Returns:
        The structure of whole networks under the name `""`, and of each tensor that varies under its own.

    Raises:
        ValueError: If there are fewer than three training networks or two held-out networks, or nothing varies.
    """
    count, others = len(next(iter(training.values()))), len(next(iter(held_out.values())))
    if count < 3 or others < 2:
        raise ValueError(
            f"expected at least 3 training and 2 held-out networks, got {count} and {others}; use a larger zoo"
        )
    if bad := [name for side in (training, held_out) for name, tensor in side.items() if not tensor.isfinite().all()]:
        raise ValueError(f"NaN or infinite weights in {name_some(bad)}; leave these networks out of the zoo")
    generator = torch.Generator().manual_seed(seed)
    names = tracked(training, desc="structure", unit="tensor")
    products = {name: _Products.of(training[name], held_out[name], generator) for name in names}
    varying = {name: found for name, found in products.items() if found.varies}
    if not varying:
        raise ValueError("no weight differs between the networks; expected trained networks of several runs")
    whole = functools.reduce(_Products.__add__, varying.values())
    return {name: found.structure(generator) for name, found in {"": whole, **varying}.items()}


@dataclass(frozen=True)
class _Products:
    """Products of networks, which are sums over tensors: first of the networks, then of shuffled ones.

    Attributes:
        training: `X X^T`, `[1 + SHUFFLES, n, n]` float64.
        crossed: `Y X^T`, `[1 + SHUFFLES, m, n]`.
        totals: Squared norms of `Y`, `[m]`.
    """

    training: Tensor
    crossed: Tensor
    totals: Tensor

    @classmethod
    def of(cls, training: Tensor, held_out: Tensor, generator: torch.Generator) -> Self:
        """Products of one tensor, over all networks."""
        training, held_out = training.flatten(1).double(), held_out.flatten(1).double()
        mean = training.mean(dim=0)
        centred, others = training - mean, held_out - mean
        draws = [centred]
        for _ in range(SHUFFLES):
            order = torch.rand(centred.shape, generator=generator).argsort(dim=1)
            draws.append(centred.gather(1, order))
        pairs = [(draw @ draw.T, others @ draw.T) for draw in draws]
        return cls(
            torch.stack([own for own, _ in pairs]),
            torch.stack([crossed for _, crossed in pairs]),
            others.square().sum(dim=1),
        )

    def __add__(self, other: "_Products") -> "_Products":
        return _Products(self.training + other.training, self.crossed + other.crossed, self.totals + other.totals)

    @property
    def varies(self) -> bool:
        """Whether training networks differ from each other, and held-out networks from their mean."""
        return bool(self.training[0].any() and self.totals.any())

    def structure(self, generator: torch.Generator) -> SharedStructure:
        """Shares of the totals in the leading components, and their intervals."""
        count = self.training.shape[-1] - 1  # the mean removes one direction
        directions = [*(2**power for power in range(count.bit_length()) if 2**power < count), count]
        parts = [
            _explained(own, crossed)[:, [number - 1 for number in directions]]
            for own, crossed in zip(self.training, self.crossed, strict=True)
        ]
        shares = torch.stack(parts).sum(dim=1) / self.totals.sum()
        drawn = torch.randint(len(self.totals), (RESAMPLES, len(self.totals)), generator=generator)
        resampled = parts[0][drawn].sum(dim=1) / self.totals[drawn].sum(dim=1, keepdim=True)
        low, high = resampled.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        return SharedStructure(
            tuple(directions),
            tuple(shares[0].tolist()),
            tuple(zip(low.tolist(), high.tolist(), strict=True)),
            tuple(shares[1:].mean(dim=0).tolist()),
        )


def _explained(training: Tensor, crossed: Tensor) -> Tensor:
    """Squared norm of every held-out network in the leading `k` components, `[m, n]` for `k = 1 ... n`."""
    values, vectors = torch.linalg.eigh(training)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > NEGLIGIBLE * values[0]
    scale = torch.where(kept, values, 1.0).rsqrt() * kept
    return (crossed @ vectors * scale).square().cumsum(dim=1)
