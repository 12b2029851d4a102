"""Settings of training runs: hyper-parameters, share and order of the images, learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

Optimizer = Literal["adam", "sgd"]
ONE_CYCLE_WARMUP, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4  # torch's OneCycleLR
SUBSET_STREAM = 2**32  # larger than any epoch; seeds what is drawn for a whole run


@dataclass(frozen=True, slots=True)
class HyperParameters:
    """Hyper-parameters of `M` networks, one entry per network in each field.

    Attributes:
        seeds: Seeds for the order of images and the data subset; >= 0.
        learning_rates: > 0.
        weight_decays: L2 penalty added to the gradient, >= 0, for both optimizers.
        optimizers: `"adam"` or `"sgd"` (with momentum).
        dropouts: In [0, 1).
        data_fractions: Share of the training images that a network ever sees, in (0, 1].

    Raises:
        ValueError: If the fields differ in length, are empty, or hold a value out of range.
    """

    seeds: Sequence[int]
    learning_rates: Sequence[float]
    weight_decays: Sequence[float]
    optimizers: Sequence[Optimizer]
    dropouts: Sequence[float]
    data_fractions: Sequence[float]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1 or not len(self.seeds):
            raise ValueError(f"expected one entry per network in every field, and at least one network, got {lengths}")
        checks: dict[str, list[Any]] = {
            "seeds must be >= 0": [seed for seed in self.seeds if seed < 0],
            "learning rates must be > 0": [rate for rate in self.learning_rates if not 0 < rate < math.inf],
            "weight decays must be >= 0": [decay for decay in self.weight_decays if not 0 <= decay < math.inf],
            "optimizers must be 'adam' or 'sgd'": [name for name in self.optimizers if name not in ("adam", "sgd")],
            "dropouts must lie in [0, 1)": [rate for rate in self.dropouts if not 0 <= rate < 1],
            "data fractions must lie in (0, 1]": [share for share in self.data_fractions if not 0 < share <= 1],
        }
        if bad := {rule: values for rule, values in checks.items() if values}:
            raise ValueError("; ".join(f"{rule}, got {values[:5]}" for rule, values in bad.items()))

    @classmethod
    def repeat(
        cls,
        seeds: Iterable[int],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        optimizer: Optimizer = "adam",
        dropout: float = 0.0,
        data_fraction: float = 1.0,
    ) -> "HyperParameters":
        """The same hyper-parameters for every seed."""
        chosen = tuple(seeds)
        n = len(chosen)
        return cls(
            chosen, (learning_rate,) * n, (weight_decay,) * n, (optimizer,) * n, (dropout,) * n, (data_fraction,) * n
        )

    @classmethod
    def concatenate(cls, parts: Sequence["HyperParameters"]) -> "HyperParameters":
        """The entries of several, one after the other."""
        return cls(**{field.name: [x for part in parts for x in getattr(part, field.name)] for field in fields(cls)})

    def __len__(self) -> int:
        return len(self.seeds)

    def select(self, index: Sequence[int]) -> "HyperParameters":
        """The entries of the networks in `index`."""
        return HyperParameters(**{field.name: [getattr(self, field.name)[i] for i in index] for field in fields(self)})


def image_order(seed: int, epoch: int, num_images: int, data_fraction: float, length: int) -> np.ndarray:
    """Indices of the training images that a network sees in one epoch, in order: int64 `[length]`.

    Random orders of the network's own subset are concatenated; a pure function of the arguments.
    """
    subset = data_subset(seed, num_images, data_fraction)
    generator = np.random.default_rng([seed, epoch])
    orders = [generator.permutation(subset) for _ in range(math.ceil(length / len(subset)))]
    return np.concatenate(orders)[:length]


def data_subset(seed: int, num_images: int, data_fraction: float) -> np.ndarray:
    """Indices of the training images that a network may see: int64 `[max(1, round(data_fraction * num_images))]`."""
    if data_fraction == 1:
        return np.arange(num_images)
    size = max(1, round(data_fraction * num_images))
    return np.random.default_rng([seed, SUBSET_STREAM]).permutation(num_images)[:size]


def one_cycle_factor(step: int, total: int) -> float:
    """Learning-rate factor at `step` of `total`: cosine from 1/25 to 1 and down to 4e-6, as torch's OneCycleLR."""
    peak = max(ONE_CYCLE_WARMUP * total - 1, 1e-9)
    last = max(total - 1, peak + 1e-9)
    start, end, share = (
        (ONE_CYCLE_START, 1.0, step / peak) if step <= peak else (1.0, ONE_CYCLE_END, (step - peak) / (last - peak))
    )
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
