"""Rank correlation."""

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats

DESCRIPTION = """Kendall's tau-b between predictions and references: the share of pairs in the right order minus the
share in the wrong order, corrected for ties. The usual score for ranking networks by accuracy."""
CITATION = """Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33(3)."""
INPUTS = """predictions: list of floats; references: list of floats, of the same length; neither all equal."""


def kendall_tau(predictions: np.ndarray, references: np.ndarray) -> float:
    """`tau_b = (P - Q) / sqrt((P + Q + T) (P + Q + U))` over concordant, discordant and tied pairs.

    Args:
        predictions: `[n]`.
        references: `[n]`.

    Raises:
        ValueError: If all predictions, or all references, are equal.
    """
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if not len(references) or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        raise ValueError(f"Kendall's tau needs values that differ, got {len(references)} pairs with all values equal")
    return float(stats.kendalltau(predictions, references).statistic)


class KendallTau(evaluate.Metric):
    """Kendall's tau-b as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(DESCRIPTION, citation=CITATION, features=features, inputs_description=INPUTS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"kendall_tau": kendall_tau(predictions, references)}
