"""Scores for the selection of soups: any classification metric on held-out images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_sane.models.modes_sane import modes_kept

# Computed here, without a download: whether more is better.
BUILT_IN = {"accuracy": True, "cross_entropy": False}
EVALUATION_BATCH = 256
OFFICIAL_METRICS = "evaluate-metric"  # on the Hub: maintained by Hugging Face


@dataclass(frozen=True)
class ImageScore:
    """Measures an image classifier on held-out images: `score(model)`.

    Attributes:
        images: `[n, C, H, W]`, on the device of the model. Never those that the result is reported on.
        labels: `[n]` int64.
        metric: `"accuracy"`, `"cross_entropy"`, or a module of `evaluate` that compares predicted with true classes.
        options: Further arguments of its `compute`, such as `{"average": "macro"}` for F1.
        higher_is_better: Whether higher values of the metric are better; must be set for losses, since a module does
            not know.

    Raises:
        ValueError: Without held-out images, with another number of labels, for an unknown name, or for a built-in
            metric that is said to run the wrong way.
    """

    images: Tensor
    labels: Tensor
    metric: str | evaluate.EvaluationModule = "accuracy"
    options: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not len(self.images) or len(self.images) != len(self.labels):
            raise ValueError(
                f"expected held-out images with one label each, got {len(self.images)} images and {len(self.labels)} "
                "labels; without held-out data there is nothing to select by"
            )
        if not isinstance(self.metric, str):
            return
        if self.metric not in BUILT_IN:
            raise ValueError(
                f"expected {' or '.join(map(repr, BUILT_IN))} or an evaluate module, got {self.metric!r}; load "
                "others with load_score or evaluate.load"
            )
        if self.higher_is_better != BUILT_IN[self.metric]:
            raise ValueError(
                f"higher_is_better of {self.metric!r} is {BUILT_IN[self.metric]}, got {self.higher_is_better}"
            )

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """Score a model in evaluation mode.

        Raises:
            ValueError: If the metric gives several values, none of them under its name, or no number.
        """
        with modes_kept(model):
            model.eval()
            parts = [model(batch) for batch in self.images.split(EVALUATION_BATCH)]
        logits = torch.cat([part if isinstance(part, Tensor) else part.logits for part in parts])
        predicted = logits.argmax(dim=1)
        if self.metric == "accuracy":  # logits that are not finite count as wrong
            return ((predicted == self.labels) & logits.isfinite().all(dim=1)).float().mean().item()
        if self.metric == "cross_entropy":
            return F.cross_entropy(logits.float(), self.labels).item()
        assert isinstance(self.metric, evaluate.EvaluationModule)
        found = self.metric.compute(predictions=predicted.tolist(), references=self.labels.tolist(), **self.options)
        return _single_value(self.metric.name, found or {})


def load_score(
    metric: str,
    images: Tensor,
    labels: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    lower_is_better: bool = False,
) -> ImageScore:
    """Find a metric by name.

    Args:
        metric: `"accuracy"` or `"cross_entropy"` (computed here, offline), or a metric of `evaluate`, whose script is
            run: the name of one in `evaluate-metric` on the Hub, or a path (absolute, or from `./`) of a script.
        images: Held out, `[n, C, H, W]`.
        labels: `[n]` int64.
        options: Further arguments of the metric.
        lower_is_better: Whether lower values of an `evaluate` metric are better; known for the other two.

    Raises:
        FileNotFoundError: If there is no such metric.
        ValueError: Without held-out images, or for a metric in somebody's repository.
    """
    if metric in BUILT_IN:
        return ImageScore(images, labels, metric, higher_is_better=BUILT_IN[metric])
    module = evaluate.load(_metric_source(metric))
    return ImageScore(images, labels, module, dict(options or {}), not lower_is_better)


def _metric_source(metric: str) -> str:
    """What to ask `evaluate` for, which runs the script that it finds.

    It would prefer a folder of the working directory that has the name of a metric, and take repositories of anybody.
    """
    path = Path(metric)
    if path.suffix == ".py" or path.is_absolute() or metric.startswith((".", "~")) or len(path.parts) > 2:
        return str(path.expanduser())
    name = metric if len(path.parts) == 2 else f"{OFFICIAL_METRICS}/{metric}"
    if not name.startswith(f"{OFFICIAL_METRICS}/") or Path(name).exists():
        raise ValueError(
            f"a metric is a script that is run; expected one of {OFFICIAL_METRICS} on the Hub by its name alone, or "
            f"the path of a script of yours that starts with './', got {metric!r}; read a script before you name "
            "its path"
        )
    return name


def _single_value(name: str, found: Mapping[str, Any]) -> float:
    value = next(iter(found.values())) if len(found) == 1 else found.get(name)
    if not isinstance(value, int | float | np.number):
        raise ValueError(f"the metric {name!r} gives {dict(found)}: expected one number to select by; see its options")
    return float(value)


__all__ = ["BUILT_IN", "ImageScore", "load_score"]
