"""Metrics of regression in float64: R2, Kendall's tau and the mean absolute error, also as a module of `evaluate`.

All predictions are scored by these functions. `evaluate.load(path_of_this_file)` works offline and loads
[`RegressionMetrics`], too.
"""

import math
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from torch import Tensor

DESCRIPTION = """Scores of predicted numbers.
r2: 1 - MSE / variance of the references; 1 is perfect, 0 is as good as predicting their mean, and below 0 is worse.
kendall_tau: tau-b, the share of pairs in the right order minus the share in the wrong order, corrected for ties; the
usual score for ranking networks by accuracy.
mae: mean absolute difference, in units of the references."""
CITATION = "Kendall, M. G. (1945). The treatment of ties in ranking problems. Biometrika 33(3)."
INPUTS = "predictions: list of floats; references: list of floats of the same length, not all equal."


def r2_score(predictions: np.ndarray, references: np.ndarray) -> float:
    """`1 - sum (p - r)^2 / sum (r - mean r)^2` of predictions `[n]` and references `[n]`.

    Raises:
        ValueError: If the references are all equal or empty.
    """
    references = np.asarray(references, dtype=np.float64)
    if not len(references) or np.ptp(references) == 0:
        raise ValueError(f"R2 requires references that vary, got {len(references)} without variance")
    errors = np.asarray(predictions, dtype=np.float64) - references
    return float(1 - np.sum(errors**2) / np.sum((references - references.mean()) ** 2))


def r2_of_errors(errors: Tensor, references: Tensor) -> Tensor:
    """Compute [`r2_score`] for many predictions at once.

    Args:
        errors: `[..., n, T]`, predictions minus references of `T` properties.
        references: `[n, T]`; the result is NaN or minus infinity for properties whose references are all equal.

    Returns:
        `[..., T]`.
    """
    return 1 - errors.square().sum(dim=-2) / (references - references.mean(dim=0)).square().sum(dim=0)


def kendall_tau(predictions: np.ndarray, references: np.ndarray, *, without_order: float = math.nan) -> float:
    """`tau_b = (P - Q) / sqrt((P + Q + T) (P + Q + U))` over concordant, discordant and tied pairs.

    Args:
        predictions: `[n]`.
        references: `[n]`, not all equal.
        without_order: Result if one value is predicted for all, so that there is no order.

    Raises:
        ValueError: If the references are all equal or empty.
    """
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if not len(references) or np.ptp(references) == 0:
        raise ValueError(f"Kendall's tau requires values that vary, got {len(references)} references without variance")
    if np.ptp(predictions) == 0:
        return without_order
    return float(stats.kendalltau(predictions, references).statistic)


def mean_absolute_error(predictions: np.ndarray, references: np.ndarray) -> float:
    """`mean |p - r|` of predictions `[n]` and references `[n]`.

    Raises:
        ValueError: If there are no predictions.
    """
    errors = np.asarray(predictions, dtype=np.float64) - np.asarray(references, dtype=np.float64)
    if not len(errors):
        raise ValueError("the mean absolute error requires at least one pair, got none")
    return float(np.abs(errors).mean())


def regression_scores(
    predictions: np.ndarray, references: np.ndarray, *, ordered_by: np.ndarray | None = None
) -> dict[str, float]:
    """All three metrics, as `{"r2", "kendall_tau", "mae"}`.

    Args:
        predictions: `[n]`.
        references: `[n]`, not all equal.
        ordered_by: Values `[n]`, not all equal, with which tau compares the predictions instead of the references.

    Raises:
        ValueError: If the references are all equal or empty.
    """
    return {
        "r2": r2_score(predictions, references),
        "kendall_tau": kendall_tau(predictions, references if ordered_by is None else ordered_by),
        "mae": mean_absolute_error(predictions, references),
    }


class RegressionMetrics(evaluate.Metric):
    """[`regression_scores`] as an `evaluate` metric: `compute(predictions=..., references=...)`, `add_batch`."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(DESCRIPTION, citation=CITATION, features=features, inputs_description=INPUTS)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return regression_scores(predictions, references)
