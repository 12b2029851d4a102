"""Model soups: mixers that average ingredients, and the description of a soup."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_sane.merging._averaging import pour
from hf_sane.merging._ingredients import Ingredient
from hf_sane.networks._batchnorm import BATCH_SIZE, NUM_BATCHES, condition_module
from hf_sane.records._progress import tracked

Score = Callable[[nn.Module], float]


class Mixer(Protocol):
    """Loads any weighted average of its ingredients into one model."""

    @property
    def model(self) -> nn.Module:
        """The model that holds the last mixture."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ingredients."""

    def mix(self, weights: Sequence[float]) -> None:
        """Overwrite the model with the average; a weight of 1 gives that ingredient unchanged."""


@dataclass(frozen=True)
class CheckpointMixer:
    """Mixes checkpoints in weight space.

    Attributes:
        model: Model of their architecture; overwritten by every mixture.
        ingredients: From `open_ingredients`, aligned or not.
        images: `[n, C, H, W]` from which to re-estimate batch-norm statistics of mixtures; statistics are averaged
            like weights if `None`. Single ingredients keep their statistics.
        num_batches: Number of batches of the re-estimation.
        batch_size: Batch size of the re-estimation.
        seed: Random seed of the re-estimation: every mixture sees the same batches.
    """

    model: nn.Module
    ingredients: Sequence[Ingredient]
    images: Tensor | None = None
    num_batches: int = NUM_BATCHES
    batch_size: int = BATCH_SIZE
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ingredients."""
        return tuple(ingredient.name for ingredient in self.ingredients)

    def mix(self, weights: Sequence[float]) -> None:
        """Mix as in [`pour`], then re-estimate batch-norm statistics if requested."""
        pour(self.model, self.ingredients, weights)
        if self.images is not None and sum(weight > 0 for weight in weights) > 1:
            condition_module(
                self.model,
                self.images,
                num_batches=self.num_batches,
                batch_size=self.batch_size,
                generator=torch.Generator().manual_seed(self.seed),
            )


@dataclass(frozen=True)
class NamesMixer:
    """A mixer without a model, with which methods that need no scores choose weights before tensors are read.

    Attributes:
        names: Names of the ingredients.
    """

    names: tuple[str, ...]

    @property
    def model(self) -> nn.Module:
        """Raise an error, since there is no model.

        Raises:
            TypeError: Always.
        """
        raise TypeError("expected a merge method that needs no model; register it with needs_score=True")

    def mix(self, weights: Sequence[float]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class GreedyStep:
    """One step of the greedy recipe.

    Attributes:
        name: Ingredient that was tried.
        score: Score of the soup with it, on held-out data.
        kept: Whether it was kept.
    """

    name: str
    score: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """How a soup was made; the mixer's model holds its weights.

    Attributes:
        weights: Weight of every ingredient, by name, with sum 1; 0 for those left out.
        score: Score on held-out data; `None` if nothing was measured.
        ingredient_scores: Scores of the single ingredients, on the same data.
        steps: Steps of the greedy recipe, in order, starting with the best ingredient.
    """

    weights: dict[str, float]
    score: float | None = None
    ingredient_scores: dict[str, float] | None = None
    steps: tuple[GreedyStep, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The soup for run records, with a row per ingredient."""
        rows: dict[str, Any] = {}
        for name, weight in self.weights.items():
            score = {} if self.ingredient_scores is None else {"held_out_score": self.ingredient_scores[name]}
            rows[name] = {"weight": weight, **score}
        return {"held_out_score": self.score, "ingredients": rows}


def equal_weights(chosen: Sequence[int], count: int) -> list[float]:
    """Weights of the average of some of `count` ingredients."""
    return [1 / len(chosen) if index in chosen else 0.0 for index in range(count)]


def score_ingredients(mixer: Mixer, score: Score) -> list[float]:
    """Scores of the single ingredients.

    Raises:
        ValueError: If a score is NaN.
    """
    scores = []
    for index, name in enumerate(tracked(mixer.names, desc="measuring ingredients", unit="network")):
        mixer.mix(equal_weights([index], len(mixer.names)))
        value = score(mixer.model)
        if math.isnan(value):
            raise ValueError(f"the held-out score of {name} is NaN; leave the checkpoint out or choose another metric")
        scores.append(value)
    return scores
