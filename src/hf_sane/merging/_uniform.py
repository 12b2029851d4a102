"""Uniform soups: the average of all ingredients."""

from hf_sane.merging._averaging import uniform_weights
from hf_sane.merging._soups import Mixer, Score, Soup, score_ingredients


def uniform_soup(mixer: Mixer, score: Score | None = None, *, higher_is_better: bool = True) -> Soup:
    """Average all ingredients with equal weights (Wortsman et al. 2022, arXiv:2203.05482, section 2).

    Args:
        mixer: Mixer whose model holds the soup afterwards.
        score: Function that measures a model on held-out data, see `ImageScore`; if given, ingredients are measured,
            too.
        higher_is_better: Whether higher values of the score are better, which is not used here.
    """
    weights = uniform_weights(mixer.names)
    scores = None if score is None else score_ingredients(mixer, score)
    mixer.mix(weights)
    return Soup(
        weights=dict(zip(mixer.names, weights, strict=True)),
        score=None if score is None else score(mixer.model),
        ingredient_scores=None if scores is None else dict(zip(mixer.names, scores, strict=True)),
    )
