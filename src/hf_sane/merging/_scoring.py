"""Score models for the selection of soups by any classification metric on held-out images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_sane.networks._metrics import Metric, module_logits
from hf_sane.networks._stacked import check_logits, running_on

if TYPE_CHECKING:
    import evaluate


@dataclass(frozen=True)
class ImageScore:
    """Measures an image classifier on held-out images: `score(model)`.

    Attributes:
        images: `[n, C, H, W]`, on the device of the model. Must not be the images used for reports.
        labels: `[n]` int64.
        metric: `"accuracy"`, `"cross_entropy"`, or a module of `evaluate` that compares predicted with true classes.
        options: Additional arguments of its `compute`, such as `{"average": "macro"}` for F1.
        higher_is_better: Whether higher values of the metric are better; must be set for losses, since modules do not
            specify it.

    Raises:
        ValueError: If there are no held-out images, or the number of labels differs; also as in [`Metric`].
    """

    images: Tensor
    labels: Tensor
    metric: "str | evaluate.EvaluationModule" = "accuracy"
    options: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not len(self.images) or len(self.images) != len(self.labels):
            raise ValueError(
                f"expected held-out images with one label each, got {len(self.images)} images and {len(self.labels)} "
                "labels; selection requires held-out data"
            )
        self._compare()  # which validates the name

    def __call__(self, model: nn.Module) -> float:
        """Score a model in evaluation mode.

        Raises:
            ValueError: If the metric returns several values, none of them under its name, or no number; if the model
                cannot run on the images, or has fewer outputs than there are classes.
        """
        named = {"network": type(model).__name__, "data": "the images"}
        with running_on(self.images, **named):
            logits = module_logits(model, self.images)
        check_logits(logits, self.images, int(self.labels.max()) + 1, **named)
        return self._compare()(logits, self.labels)

    def _compare(self) -> Metric:
        return Metric(self.metric, self.options, self.higher_is_better)
