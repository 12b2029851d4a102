"""Greedy soups: the average of the ingredients that help on held-out data."""

from collections.abc import Callable, Sequence

from hf_sane.merging._soups import GreedyStep, Mixer, Score, Soup, equal_weights, score_ingredients
from hf_sane.records._progress import tracked


def greedy_soup(mixer: Mixer, score: Score | None, *, higher_is_better: bool = True) -> Soup:
    """Average the ingredients that help on held-out data (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Ingredients are tried from the best to the worst; one stays if the soup with it is at least as good as without. The
    soup starts as the best ingredient, so it never ends below it on the held-out data. On other data it may.

    Args:
        mixer: Its model holds the soup afterwards.
        score: Measures a model on held-out data, see `ImageScore`. The same model must give the same value.
        higher_is_better: `False` for losses.

    Raises:
        ValueError: Without a score, or if that of an ingredient is not a number.
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
    """The greedy recipe on indices, whatever the ingredients are.

    Args:
        scores: Scores of the single ingredients; ties are tried in the given order.
        score_of: Score of the equal-weighted average of some ingredients; NaN counts as worse than anything.
        higher_is_better: `False` for losses.

    Returns:
        Indices chosen, in the order they joined; the score of their average; and every try: index, score, kept.
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
