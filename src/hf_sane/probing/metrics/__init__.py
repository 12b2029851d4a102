"""Metrics of probes, as `evaluate` modules that travel with the package and load offline."""

from pathlib import Path
from typing import Literal, get_args

import evaluate

MetricName = Literal["r2_score", "kendall_tau", "mean_absolute_error"]


def load_metric(name: MetricName) -> evaluate.EvaluationModule:
    """Load one of this package's metrics.

    `load_metric(name).compute(predictions=[...], references=[...])` gives `{name: value}`; `add_batch` works too.

    Args:
        name: `"r2_score"`, `"kendall_tau"` or `"mean_absolute_error"`.

    Raises:
        ValueError: For another name.
    """
    if name not in get_args(MetricName):
        raise ValueError(f"expected one of the metrics {', '.join(get_args(MetricName))}, got {name!r}")
    return evaluate.load(str(Path(__file__).parent / name))
