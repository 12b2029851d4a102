"""Mean absolute error."""

from typing import Any

import datasets
import evaluate
import numpy as np

DESCRIPTION = """Mean absolute difference between predictions and references, in units of the references."""
INPUTS = """predictions: list of floats; references: list of floats, of the same length."""


def mean_absolute_error(predictions: np.ndarray, references: np.ndarray) -> float:
    """`mean |p - r|`, in float64.

    Args:
        predictions: `[n]`.
        references: `[n]`.

    Raises:
        ValueError: If there are none.
    """
    errors = np.asarray(predictions, dtype=np.float64) - np.asarray(references, dtype=np.float64)
    if not len(errors):
        raise ValueError("the mean absolute error needs at least one pair, got none")
    return float(np.abs(errors).mean())


class MeanAbsoluteError(evaluate.Metric):
    """Mean absolute error as an `evaluate` metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(DESCRIPTION, citation="", features=features, inputs_description=INPUTS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"mean_absolute_error": mean_absolute_error(predictions, references)}
