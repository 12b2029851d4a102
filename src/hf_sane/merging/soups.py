"""Model soups: one network from several, uniform or chosen greedily on held-out data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_sane.merging.averaging import pour, uniform_weights
from hf_sane.merging.ingredients import Ingredient
from hf_sane.networks.batchnorm import BATCH_SIZE, NUM_BATCHES, condition_module

Score = Callable[[nn.Module], float]


class Mixer(Protocol):
    """Something that can put any weighted average of its ingredients into one model."""

    @property
    def model(self) -> nn.Module:
        """Holds the last mixture."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the ingredients."""

    def mix(self, weights: Sequence[float]) -> None:
        """Overwrite the model with the average; a weight of 1 gives that ingredient, untouched."""


@dataclass(frozen=True)
class CheckpointMixer:
    """Mixes checkpoints in weight space.

    Attributes:
        model: Of their architecture; overwritten by every mixture.
        ingredients: From `open_ingredients`, aligned or not.
        images: `[n, C, H, W]` to re-estimate batch-norm statistics of mixtures from; statistics are averaged like
            weights when `None`. Single ingredients keep theirs.
        num_batches: Of the re-estimation.
        batch_size: Of the re-estimation.
        seed: Of the re-estimation: every mixture sees the same batches.
    """

    model: nn.Module
    ingredients: Sequence[Ingredient]
    images: Tensor | None = None
    num_batches: int = NUM_BATCHES
    batch_size: int = BATCH_SIZE
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the ingredients."""
        return tuple(ingredient.name for ingredient in self.ingredients)

    def mix(self, weights: Sequence[float]) -> None:
        """See [`pour`]; then batch-norm statistics, if they are to be re-estimated."""
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
class GreedyStep:
    """One try of the greedy recipe.

    Attributes:
        name: Ingredient that was tried.
        score: Of the soup with it, on held-out data.
        kept: Whether it stayed.
    """

    name: str
    score: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """How a soup was made; the mixer's model holds its weights.

    Attributes:
        weights: Of every ingredient, by name; 0 for those left out. Their sum is 1.
        score: On held-out data; `None` when nothing was measured.
        ingredient_scores: Of the single ingredients, on the same data.
        steps: Tries of the greedy recipe, in order; the first is the best ingredient.
    """

    weights: dict[str, float]
    score: float | None = None
    ingredient_scores: dict[str, float] | None = None
    steps: tuple[GreedyStep, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For run records: a row per ingredient."""
        rows: dict[str, Any] = {}
        for name, weight in self.weights.items():
            score = {} if self.ingredient_scores is None else {"held_out_score": self.ingredient_scores[name]}
            rows[name] = {"weight": weight, **score}
        return {"held_out_score": self.score, "ingredients": rows}


def uniform_soup(mixer: Mixer, score: Score | None = None) -> Soup:
    """Average all ingredients with equal weights (Wortsman et al. 2022, arXiv:2203.05482, section 2).

    Args:
        mixer: Its model holds the soup afterwards.
        score: Measures a model on held-out data, see `ImageScore`; with it, ingredients are measured, too.
    """
    weights = uniform_weights(mixer.names)
    scores = None if score is None else _score_ingredients(mixer, score)
    mixer.mix(weights)
    return Soup(
        weights=dict(zip(mixer.names, weights, strict=True)),
        score=None if score is None else score(mixer.model),
        ingredient_scores=None if scores is None else dict(zip(mixer.names, scores, strict=True)),
    )


def greedy_soup(mixer: Mixer, score: Score, *, higher_is_better: bool = True) -> Soup:
    """Average the ingredients that help on held-out data (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Ingredients are tried from the best to the worst; one stays if the soup with it is at least as good as without. The
    soup starts as the best ingredient, so it never ends below it on the held-out data. On other data it may.

    Args:
        mixer: Its model holds the soup afterwards.
        score: Measures a model on held-out data, see `ImageScore`. The same model must give the same value.
        higher_is_better: `False` for losses.

    Raises:
        ValueError: If the score of an ingredient is not a number.
    """
    scores = _score_ingredients(mixer, score)

    def score_of(chosen: Sequence[int]) -> float:
        mixer.mix(_weights_of(chosen, len(scores)))
        return score(mixer.model)

    chosen, best, steps = select_greedily(scores, score_of, higher_is_better=higher_is_better)
    weights = _weights_of(chosen, len(scores))
    mixer.mix(weights)
    return Soup(
        weights=dict(zip(mixer.names, weights, strict=True)),
        score=best,
        ingredient_scores=dict(zip(mixer.names, scores, strict=True)),
        steps=tuple(GreedyStep(mixer.names[index], value, kept) for index, value, kept in steps),
    )


def select_greedily(
    scores: Sequence[float], score_of: Callable[[Sequence[int]], float], *, higher_is_better: bool
) -> tuple[list[int], float, list[tuple[int, float, bool]]]:
    """The greedy recipe on indices, whatever the ingredients are.

    Args:
        scores: Of the single ingredients; ties are tried in the given order.
        score_of: Score of the equal-weighted average of some ingredients; NaN counts as worse than anything.
        higher_is_better: `False` for losses.

    Returns:
        Indices chosen, in the order they joined; the score of their average; and every try: index, score, kept.
    """
    sign = 1 if higher_is_better else -1
    order = sorted(range(len(scores)), key=lambda index: -sign * scores[index])
    chosen, best = [order[0]], scores[order[0]]
    steps = [(order[0], best, True)]
    for index in order[1:]:
        value = score_of([*chosen, index])
        kept = sign * value >= sign * best  # False for NaN
        if kept:
            chosen, best = [*chosen, index], value
        steps.append((index, value, kept))
    return chosen, best, steps


def _weights_of(chosen: Sequence[int], count: int) -> list[float]:
    return [1 / len(chosen) if index in chosen else 0.0 for index in range(count)]


def _score_ingredients(mixer: Mixer, score: Score) -> list[float]:
    scores = []
    for index, name in enumerate(mixer.names):
        mixer.mix(_weights_of([index], len(mixer.names)))
        value = score(mixer.model)
        if math.isnan(value):
            raise ValueError(f"the held-out score of {name} is NaN; leave the checkpoint out or choose another metric")
        scores.append(value)
    return scores


__all__ = ["CheckpointMixer", "GreedyStep", "Mixer", "Score", "Soup", "greedy_soup", "select_greedily", "uniform_soup"]
