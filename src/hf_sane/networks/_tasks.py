"""Tasks that networks are judged by: a metric on labelled examples, or a function of the user."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._metrics import BUILT_IN, EVALUATION_BATCH, Metric, module_logits
from hf_sane.networks._stacked import StackedNetworks, check_logits, example_losses, running_on
from hf_sane.networks._texts import TextData
from hf_sane.records._errors import place_of, shorten

# Judges a module; may also take `split`, which is "validation" or "test".
Judgement = Callable[..., float]


class LabelledData(Protocol):
    """Labelled images or texts for classification, in three splits."""

    @property
    def name(self) -> str:
        """Name in records and cards."""

    @property
    def num_classes(self) -> int:
        """Number of classes, `K`."""

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Inputs `[n, ...]` and labels `[n]` int64 of `"train"`, `"validation"` or `"test"`."""

    def describe(self) -> dict[str, Any]:
        """Facts for records and cards."""


class Task(ABC):
    """Judges networks, which are selected on the split `"validation"` and reported on `"test"`."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the measured quantity."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Whether higher values are better."""

    @property
    def is_split(self) -> bool:
        """Whether validation and test data differ; if not, values of selected networks are too good."""
        return True

    @abstractmethod
    def measure(self, networks: StackedNetworks, split: str) -> tuple[Tensor, Tensor]:
        """Values of the metric `[M]`, and losses `[M]` that break ties."""

    @abstractmethod
    def measure_one(self, network: nn.Module, split: str) -> float:
        """Value of the metric of one network."""

    def rank(self, networks: StackedNetworks, split: str = "validation") -> tuple[Tensor, Tensor]:
        """Losses and scores, both `[M]`; higher scores are better, and NaN ranks last."""
        values, losses = self.measure(networks, split)
        scores = values if self.higher_is_better else -values
        return losses, torch.where(scores.isnan(), -torch.inf, scores)

    def label(self, split: str) -> str:
        """Name of a measurement in results: `"test_accuracy"`, or `"my_metric"` if all splits are the same data."""
        return f"{split}_{self.metric}" if self.is_split else self.metric

    def best(self, values: Tensor) -> float:
        """The best of some values."""
        return (values.max() if self.higher_is_better else values.min()).item()

    @property
    def notes(self) -> list[str]:
        """Caveats about the measurements."""
        if self.is_split:
            return []
        return [
            f"{self.metric} is measured on the data used for selection, so values of selected networks are "
            "too good; let the function take split, 'validation' or 'test', to measure on other data"
        ]


@dataclass(frozen=True)
class Classification(Task):
    """A metric on labelled examples.

    Attributes:
        data: Examples in three splits.
        compare: The metric.
    """

    data: LabelledData
    compare: Metric = field(default_factory=Metric)

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.compare.name

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        return self.compare.higher_is_better

    @torch.no_grad()
    def measure(self, networks: StackedNetworks, split: str) -> tuple[Tensor, Tensor]:
        """Values of the metric, and cross-entropies.

        Raises:
            ValueError: If the networks cannot run on the data, or have fewer outputs than it has classes.
        """
        self._prepare(networks.config)
        inputs, labels = self.data.split(split)
        named: dict[str, Any] = {"num_classes": self.data.num_classes, "data": self.data.name}
        if self.metric == "accuracy":
            losses, correct = networks.per_image(inputs, labels, **named)
            return correct.float().mean(dim=1), losses.mean(dim=1)
        networks.check(inputs, **named)
        logits = torch.cat([networks.logits(part) for part in inputs.split(EVALUATION_BATCH)], dim=1)
        values = [self.compare(found, labels) for found in logits]
        return torch.tensor(values), example_losses(logits, labels[None]).mean(dim=1)

    def measure_one(self, network: nn.Module, split: str) -> float:
        """Value of the metric; errors as for [`measure`]."""
        self._prepare(network)
        inputs, labels = self.data.split(split)
        named = {"network": type(network).__name__, "data": self.data.name}
        with running_on(inputs, **named):
            logits = module_logits(network, inputs)
        check_logits(logits, inputs, self.data.num_classes, **named)
        return self.compare(logits, labels)

    def _prepare(self, network: object) -> None:
        if isinstance(self.data, TextData):
            self.data.set_padding(network)


@dataclass(frozen=True)
class OwnTask(Task):
    """A function of the user, which takes a module in evaluation mode and returns a number.

    If it takes `split`, it is called with `"validation"` for selection and with `"test"` for reports, and should use
    different data. Otherwise selection and reports use the same data, which is noted in results.

    Attributes:
        function: `function(module)` or `function(module, split)`.
        lower_is_better: Whether lower values are better.
    """

    function: Judgement
    lower_is_better: bool = False

    @property
    def higher_is_better(self) -> bool:
        """Direction of the function."""
        return not self.lower_is_better

    @property
    def metric(self) -> str:
        """Name of the function, changed if it clashes with the library's accuracy, which is always a share."""
        name = str(getattr(self.function, "__name__", type(self.function).__name__))
        return f"own_{name}" if name in BUILT_IN else name

    @property
    def is_split(self) -> bool:
        """Whether the function takes `split`."""
        try:
            return "split" in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # built-in functions may have no signature
            return False

    def measure(self, networks: StackedNetworks, split: str) -> tuple[Tensor, Tensor]:
        """Values of the function, one network after the other."""
        modules = map(networks.model, range(networks.num_models))
        values = torch.tensor([self.measure_one(module, split) for module in modules])
        return values, values if self.lower_is_better else -values

    def measure_one(self, network: nn.Module, split: str) -> float:
        """Value of the function.

        Raises:
            TypeError: If it is not a number.
            ValueError: If the function raises an error.
        """
        with modes_kept(network):
            network.eval()
            try:
                found = self.function(network, split=split) if self.is_split else self.function(network)
            except Exception as error:
                called = f"{self.metric}({type(network).__name__}{f', {split!r}' if self.is_split else ''})"
                kind, said = type(error).__name__, shorten(str(error))
                place = f" ({where})" if (where := place_of(error)) else ""
                raise ValueError(
                    f"expected a number from {called}, got {kind}{f': {said}' if said else ''}{place}; correct the "
                    "function, which takes a module and returns a number"
                ) from error
        try:
            return float(found.item() if isinstance(found, Tensor) else found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"expected a number from {self.metric}(module), got {type(found).__name__}; return one float"
            ) from error


@dataclass(frozen=True)
class SplitScore:
    """A task on one split, as a score of single modules: `score(model)`."""

    task: Task
    split: str

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        return self.task.higher_is_better

    @property
    def label(self) -> str:
        """Name in results, see [`Task.label`]."""
        return self.task.label(self.split)

    def __call__(self, model: nn.Module) -> float:
        """Score a model."""
        return self.task.measure_one(model, self.split)
