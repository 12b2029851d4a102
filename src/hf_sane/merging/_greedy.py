"""Greedy soups: the average of the ingredients that help on held-out data."""

from collections.abc import Callable, Sequence

from hf_sane.merging._soups import GreedyStep, Mixer, Score, Soup, equal_weights, score_ingredients
from hf_sane.records._progress import tracked


def greedy_soup(mixer: Mixer, score: Score | None, *, higher_is_better: bool = True) -> Soup:
    """Average the ingredients that help on held-out data (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Ingredients are tried from the best to the worst, and each is kept if the soup with it is at least as good as
    without. Since the soup starts with the best ingredient, it is never worse on the held-out data; on other data it
    may be.

    Args:
        mixer: Mixer whose model holds the soup afterwards.
        score: Function that measures a model on held-out data, see `ImageScore`. It must be deterministic.
        higher_is_better: Whether higher values of the score are better; `False` for losses.

    Raises:
        ValueError: If there is no score, or that of an ingredient is NaN.
    """
    if score is None:
        raise ValueError("a greedy soup is selected on held-out data, got no score; pass one, or make a uniform soup")
    scores, measure = score_ingredients(mixer, score), score

    def score_of(chosen: Sequence[int]) -> float:
        mixer.mix(equal_weights(chosen, len(scores)))
        return measure(mixer.model)

    chosen, best, steps = select_greedily(scores, score_of, higher_is_better=higher_is_better)
    weights = equal_weights(chosen, len(scores))
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
    """Apply the greedy recipe to indices, independently of what the ingredients are.

    Args:
        scores: Scores of the single ingredients; ties are tried in the given order.
        score_of: Function that scores the equal-weighted average of some ingredients; NaN counts as the worst.
        higher_is_better: Whether higher scores are better; `False` for losses.

    Returns:
        Chosen indices, in the order in which they were added; the score of their average; and every step: index,
        score, kept.
    """
    sign = 1 if higher_is_better else -1
    order = sorted(range(len(scores)), key=lambda index: -sign * scores[index])
    chosen, best = [order[0]], scores[order[0]]
    steps = [(order[0], best, True)]
    for index in tracked(order[1:], desc="greedy soup", unit="network"):
        value = score_of([*chosen, index])
        kept = sign * value >= sign * best  # False for NaN
        if kept:
            chosen, best = [*chosen, index], value
        steps.append((index, value, kept))
    return chosen, best, steps
