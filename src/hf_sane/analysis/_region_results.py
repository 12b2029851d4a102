"""Results of the analysis of regions in weight space."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

Place = Literal["corners", "line", "hull"]


@dataclass(frozen=True)
class GroupDistances:
    """Distances within and between the groups of one level.

    Attributes:
        table: Mean distance between networks, by label and label; NaN within a label of one network.
        mean_within: Mean over all pairs with the same label.
        mean_between: Mean over all pairs with different labels.
        ratio: `mean_within / mean_between`; 1 if labels are unrelated to positions.
        p_value: Share of random relabellings (including the true labels) with at most this ratio.
    """

    table: dict[str, dict[str, float]]
    mean_within: float
    mean_between: float
    ratio: float
    p_value: float

    @property
    def within(self) -> dict[str, float]:
        """The diagonal of the table."""
        return {label: row[label] for label, row in self.table.items()}

    def to_dict(self) -> dict[str, Any]:
        """The results in a form that JSON supports."""
        return asdict(self)


@dataclass(frozen=True)
class RegionAccuracy:
    """How often the nearest region of other networks is correct.

    Attributes:
        accuracy: Share of correct networks.
        chance: Share of the most frequent label.
        confusion: Number of networks, by true and predicted label.
    """

    accuracy: float
    chance: float
    confusion: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """The results in a form that JSON supports."""
        return asdict(self)


@dataclass(frozen=True)
class RegionScores:
    """Scores of points inside a region, of its corners, and of networks outside.

    Attributes:
        corners: Scores of the networks of the region, `[m]`.
        line: Scores of points between two of them.
        hull: Scores of points between all of them.
        outside: Scores of networks of other labels; may be empty.
        higher_is_better: Whether a higher score is better.
    """

    corners: Tensor
    line: Tensor
    hull: Tensor
    outside: Tensor
    higher_is_better: bool = True

    def better_than_outside(self, place: Place) -> float:
        """Probability that a point of the region scores better than a network outside; ties count half.

        This is the measure of Gueta et al. (section 4), who use losses. NaN if there are no networks outside.
        """
        return self._chance(getattr(self, place), self.outside)

    def better_than_corners(self, place: Place) -> float:
        """Probability that a point inside the region scores better than one of its corners; ties count half."""
        return self._chance(getattr(self, place), self.corners)

    def to_dict(self) -> dict[str, Any]:
        """Mean, smallest, largest and number of scores, and the probabilities, in a form that JSON supports."""
        found: dict[str, Any] = {}
        for name in ("corners", "line", "hull", "outside"):
            scores = getattr(self, name).double()
            found[name] = {"count": len(scores)}
            if len(scores):
                found[name] |= {"mean": scores.mean().item(), "min": scores.min().item(), "max": scores.max().item()}
        places: tuple[Place, ...] = ("corners", "line", "hull")
        found["better_than_outside"] = {place: self.better_than_outside(place) for place in places}
        found["better_than_corners"] = {place: self.better_than_corners(place) for place in places[1:]}
        return found

    def _chance(self, first: Tensor, second: Tensor) -> float:
        if not len(first) or not len(second):
            return math.nan
        difference = first.double()[:, None] - second.double()
        better = difference > 0 if self.higher_is_better else difference < 0
        return (better.double() + 0.5 * (difference == 0)).mean().item()
