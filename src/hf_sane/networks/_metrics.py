"""Metrics of classifiers: accuracy, cross-entropy, or any metric of `evaluate`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import call_arguments, logits_of

if TYPE_CHECKING:
    import evaluate

# Built-in metrics, and whether higher is better.
BUILT_IN = {"accuracy": True, "cross_entropy": False}
EVALUATION_BATCH = 256
OFFICIAL_METRICS = "evaluate-metric"  # on the Hub, maintained by Hugging Face


@dataclass(frozen=True)
class Metric:
    """A metric that compares logits with true classes: `metric(logits, labels)`.

    Attributes:
        source: `"accuracy"`, `"cross_entropy"`, or a module of `evaluate` that compares predicted with true classes.
        options: Additional arguments of its `compute`, such as `{"average": "macro"}` for F1.
        higher_is_better: Whether higher values are better; must be set for losses, since modules do not tell.

    Raises:
        ValueError: If the name is unknown, or `higher_is_better` is wrong for a built-in metric.
    """

    source: "str | evaluate.EvaluationModule" = "accuracy"
    options: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            return
        if self.source not in BUILT_IN:
            raise ValueError(
                f"expected {' or '.join(map(repr, BUILT_IN))} or an evaluate module, got {self.source!r}; load "
                "others with load_metric or evaluate.load"
            )
        if self.higher_is_better != BUILT_IN[self.source]:
            raise ValueError(
                f"higher_is_better of {self.source!r} is {BUILT_IN[self.source]}, got {self.higher_is_better}"
            )

    @property
    def name(self) -> str:
        """Name in results."""
        return self.source if isinstance(self.source, str) else str(self.source.name)

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        """Compare logits `[n, K]` with classes `[n]` int64.

        Raises:
            ValueError: If the metric returns several values, none of them under its name, or no number.
        """
        predicted = logits.argmax(dim=1)
        if self.source == "accuracy":  # non-finite logits count as wrong
            return ((predicted == labels) & logits.isfinite().all(dim=1)).float().mean().item()
        if self.source == "cross_entropy":
            return F.cross_entropy(logits.float(), labels).item()
        assert not isinstance(self.source, str)
        found = self.source.compute(predictions=predicted.tolist(), references=labels.tolist(), **self.options)
        return _single_value(self.name, found or {})


@torch.no_grad()
def module_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits `[n, K]` of a module in evaluation mode, batch by batch; the module's own mode is restored."""
    with modes_kept(model):
        model.eval()
        calls = map(call_arguments, inputs.split(EVALUATION_BATCH))
        return torch.cat([logits_of(model(*positional, **named)) for positional, named in calls])


def load_metric(metric: str, *, options: Mapping[str, Any] | None = None, lower_is_better: bool = False) -> Metric:
    """Find a metric by name.

    Args:
        metric: `"accuracy"` or `"cross_entropy"` (built in, offline), or a metric of `evaluate`, whose script is run:
            the name of a metric in `evaluate-metric` on the Hub, or the path (absolute, or starting with `./`) of a
            script.
        options: Additional arguments of the metric.
        lower_is_better: Whether lower values of an `evaluate` metric are better; known for the built-in metrics.

    Raises:
        FileNotFoundError: If there is no such metric.
        ValueError: If the metric is in another repository.
    """
    if metric in BUILT_IN:
        return Metric(metric, higher_is_better=BUILT_IN[metric])
    import evaluate  # a slow import that built-in metrics do not need

    return Metric(evaluate.load(_metric_source(metric)), dict(options or {}), not lower_is_better)


def _metric_source(metric: str) -> str:
    """The path or name to pass to `evaluate`, which runs the script that it finds.

    By itself, it would prefer a folder with the metric's name in the working directory, and accept any repository.
    """
    path = Path(metric)
    if path.suffix == ".py" or path.is_absolute() or metric.startswith((".", "~")) or len(path.parts) > 2:
        return str(path.expanduser())
    name = metric if len(path.parts) == 2 else f"{OFFICIAL_METRICS}/{metric}"
    if not name.startswith(f"{OFFICIAL_METRICS}/") or Path(name).exists():
        raise ValueError(
            f"metrics are scripts that are run; expected the name of one of {OFFICIAL_METRICS} on the Hub, or "
            f"the path of your own script, starting with './', got {metric!r}; read a script before you use "
            "its path"
        )
    return name


def _single_value(name: str, found: Mapping[str, Any]) -> float:
    value = next(iter(found.values())) if len(found) == 1 else found.get(name)
    if not isinstance(value, int | float | np.number):
        raise ValueError(
            f"the metric {name!r} returned {dict(found)}: expected one number to select by; see its options"
        )
    return float(value)
