"""Coefficient of determination."""

from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = """R2 = 1 - MSE / variance of the references: 1 is perfect, 0 is as good as predicting the mean, below 0
is worse than that."""
INPUTS = """predictions: list of floats; references: list of floats, of the same length, not all equal."""


def r2_score(predictions: np.ndarray, references: np.ndarray) -> float:
    """`1 - sum (p - r)^2 / sum (r - mean r)^2`, in float64.

    Args:
        predictions: `[n]`.
        references: `[n]`, not all equal.

    Raises:
        ValueError: If the references are all equal, or there are none.
    """
    references = np.asarray(references, dtype=np.float64)
    if not len(references) or np.ptp(references) == 0:
        raise ValueError(f"R2 needs references that differ, got {len(references)} without variance")
    errors = np.asarray(predictions, dtype=np.float64) - references
    return float(1 - np.sum(errors**2) / np.sum((references - references.mean()) ** 2))


class R2Score(evaluate.Metric):
    """R2 as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(DESCRIPTION, citation="", features=features, inputs_description=INPUTS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"r2_score": r2_score(predictions, references)}
