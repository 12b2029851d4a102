"""Registered merge methods, which determine the weights of a soup's ingredients.

A method is a decorated function, in any module that is imported before the method is used:

```python
@register_merge_method("best", needs_score=True)
def best_alone(mixer, score, *, higher_is_better=True):
    scores = score_ingredients(mixer, score)
    best = scores.index(max(scores) if higher_is_better else min(scores))
    weights = equal_weights([best], len(scores))
    mixer.mix(weights)  # the mixer's model holds the soup
    return Soup(dict(zip(mixer.names, weights)), scores[best], dict(zip(mixer.names, scores)))
```
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Protocol

from hf_sane.merging._greedy import greedy_soup
from hf_sane.merging._soups import Mixer, Score, Soup
from hf_sane.merging._uniform import uniform_soup
from hf_sane.networks._tasks import SplitScore
from hf_sane.records._registry import Registry


class MergeMethod(Protocol):
    """Mixes a soup in the model of `mixer` and describes it; see [`uniform_soup`] and [`greedy_soup`]."""

    def __call__(self, mixer: Mixer, score: Score | None, *, higher_is_better: bool = True) -> Soup:
        """Mix a soup. `score` measures a model on held-out data, and is `None` without data."""


@dataclass(frozen=True, slots=True)
class RegisteredMethod:
    """A merge method, and whether it works without held-out data."""

    run: MergeMethod
    needs_score: bool


MERGE_METHODS: Registry[RegisteredMethod] = Registry("merge method")


def register_merge_method(name: str, *, needs_score: bool = False) -> Callable[[MergeMethod], MergeMethod]:
    """Add a merge method under a name that `hf_sane.soup` and `hf-sane soup --method` then accept.

    Args:
        name: Name of the method; must be new.
        needs_score: Whether it requires held-out data. Otherwise it may be called with a mixer without a model.

    Raises:
        ValueError: If the name is taken.
    """

    def register(method: MergeMethod) -> MergeMethod:
        MERGE_METHODS.add(name, RegisteredMethod(method, needs_score))
        return method

    return register


register_merge_method("uniform")(uniform_soup)
register_merge_method("greedy", needs_score=True)(greedy_soup)


def measured_soup(method: str, mixer: Mixer, scores: Mapping[str, SplitScore]) -> tuple[Soup, dict[str, Any]]:
    """Make a soup in the model of a mixer; measure it and its best ingredient.

    Args:
        method: Name of a registered merge method.
        mixer: Mixer whose model holds the soup afterwards.
        scores: Scores on `validation` data, for selection, and on `test` data; empty without data.

    Returns:
        The soup, and results for the run record.
    """
    held_out = scores.get("validation")
    higher_is_better = held_out is None or held_out.higher_is_better
    made = MERGE_METHODS.find(method).run(mixer, held_out, higher_is_better=higher_is_better)
    results: dict[str, Any] = {"ingredients": made.to_dict()["ingredients"]}
    if held_out is not None and made.ingredient_scores is not None:
        test = scores["test"]
        results |= {held_out.label: made.score, test.label: test(mixer.model)}
        best = (max if higher_is_better else min)(made.ingredient_scores.items(), key=itemgetter(1))[0]
        mixer.mix([float(name == best) for name in mixer.names])
        results |= {"best_ingredient": best, f"best_ingredient_{test.label}": test(mixer.model)}
        mixer.mix(list(made.weights.values()))
        results["steps"] = [asdict(step) for step in made.steps]
    return made, results
