"""Fine-tune networks on images or texts and compare them with networks trained from scratch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from hf_sane.hub._publish import save_network
from hf_sane.merging._swa import StackAverage
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._modules import ModuleSettings, fresh_networks
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import LabelledData, Task
from hf_sane.networks._texts import TextData
from hf_sane.networks._training import train_stacked
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.sampling._baselines import SCRATCH_SEED
from hf_sane.workflows.judging import MetricSettings, TextSettings, accuracy_notes, recorded_accuracies
from hf_sane.workflows.networks import Network, NetworksResult, open_images, open_stack
from hf_sane.workflows.results import Table, optional_output
from hf_sane.workflows.shared import SourceSettings

RECORDED = (
    *("epochs", "learning_rate", "weight_decay", "optimizer", "schedule", "batch_size", "average_epochs", "networks"),
)


@dataclass(kw_only=True)
class FinetuneSettings(SourceSettings, ImageSettings, ModuleSettings, MetricSettings, TextSettings):
    """Settings of [`finetune`]."""

    networks: list[Network] = setting(
        "Networks of one architecture: folders, a folder that contains them, or Hub repo ids.", positional=True
    )
    output: Path | None = setting("New folder, with one subfolder per network.", short="-o")
    images: str | ImageData | None = setting(f"Images to train on: {IMAGE_KINDS}; by default 'digits'.", default=None)
    epochs: int = setting("Number of passes over the training images or texts.", default=5)
    learning_rate: float = setting("Peak learning rate.", default=1e-3)
    weight_decay: float = setting("Weight decay.", default=0.0)
    optimizer: Literal["adam", "sgd"] = setting("Optimizer.", default="adam")
    schedule: Literal["constant", "one_cycle"] = setting("Learning rate schedule.", default="constant")
    batch_size: int = setting("Batch size of each network.", default=32, least=1)
    train_limit: int | None = setting("Use at most this many training images or texts.", default=None, least=1)
    average_epochs: int = setting(
        "Average the weights of each network over the ends of this many last epochs (stochastic weight averaging); 0 "
        "for none.",
        default=0,
        least=0,
    )
    scratch: bool = setting("Also train the same number of networks from scratch.", default=True)
    seed: int = setting("Random seed for the order of images and for networks trained from scratch.", default=0)
    include_code: bool = setting("Save networks with their modelling code (for trust_remote_code).", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and self.texts is not None:
            raise ValueError("expected images (--images) or texts (--texts) to fine-tune on, got both; name one")
        if self.average_epochs == 1 or self.average_epochs > self.epochs:
            raise ValueError(
                f"expected average_epochs between 2 and the number of epochs, {self.epochs}, or 0, got "
                f"{self.average_epochs}"
            )

    def open_data(self) -> ImageData | TextData:
        """Open the images or texts to fine-tune on."""
        if self.texts is not None:
            return self.open_texts(self.networks, train_limit=self.train_limit)
        return open_images(self.images or "digits", train_limit=self.train_limit, **self.image_shape)


@dataclass(kw_only=True)
class FinetuneResult(NetworksResult):
    """Fine-tuned networks, in the order in which they were given.

    Attributes:
        names: Names of the networks and of their folders.
        curves: `{"networks" or "scratch": [epochs + 1][networks]}`: measurements, starting before training.
        measured: Name of the measured quantity.
        averaged: `{"networks" or "scratch": [networks]}`: measurements of averages over the last epochs, if any.
    """

    JSON: ClassVar[Any] = dict[str, dict[str, list[list[float]]]]
    JOB: ClassVar[str] = "fine-tuning"

    names: list[str]
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    measured: str = "test_accuracy"
    averaged: dict[str, list[float]] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Mean measurement at each epoch."""
        header = ("epoch", *(f"{name}: mean {self.measured.replace('_', ' ')}" for name in self.curves))
        rows = zip(*([sum(row) / len(row) for row in curve] for curve in self.curves.values()), strict=True)
        shown: list[list[Any]] = [[epoch, *row] for epoch, row in enumerate(rows)]
        if self.averaged:
            means = [sum(row) / len(row) for row in self.averaged.values()]
            shown.append([f"average of the last {self.record.arguments['average_epochs']}", *means])
        return [Table(header, shown)]

    def write(self, partial: Path) -> None:
        """Write one folder per network, with a card that names the network it was fine-tuned from."""
        short = [Path(name).name for name in self.names]
        final = self.averaged.get("networks", self.curves["networks"][-1])
        for index, (name, value) in enumerate(zip(short, final, strict=True)):
            results = {self.measured: value, "fine_tuning_epochs": self.record.arguments["epochs"]}
            save_network(
                partial / (name if len(set(short)) == len(short) else f"{index}_{name}"),
                self[index],
                replace(self.record, results=results),
                title=f"Sampled network {index}, fine-tuned",
                include_code=self.include_code,
                tokenizer=self.tokenizer,
            )
        super().write(partial)


def finetune(
    networks: Network | Sequence[Network] | NetworksResult, images: str | ImageData | None = None, **options: Any
) -> FinetuneResult:
    """Fine-tune networks on images or texts, together with the same number of networks trained from scratch.

    ```python
    tuned = hf_sane.finetune(sane.sample("org/zoo", num_samples=5), "digits", epochs=2)
    ```

    Args:
        networks: Networks of one architecture: the result of `sample`, modules, folders or Hub repo ids.
        images: Images, or a source for `load_images`; by default the digits, unless `texts=` is given.
        **options: Other fields of [`FinetuneSettings`].

    Raises:
        ValueError: If the networks have different architectures.
    """
    known: dict[str, Any] = {"output": None, "networks": networks, "images": images}
    if isinstance(networks, NetworksResult):
        known |= {"networks": networks.modules(), "tokenizer": networks.tokenizer}
    return run_finetune(FinetuneSettings(**{**known, **options}))


def usual_recipe() -> dict[str, Any]:
    """Optimizer, learning rate and weight decay by default."""
    known = {entry.name: entry.default for entry in fields(FinetuneSettings)}
    return {name: known[name] for name in ("optimizer", "learning_rate", "weight_decay")}


def run_finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tune networks on images or texts and report a metric at each epoch."""
    settings.register()
    given = as_arguments(settings)
    record = RunRecord.start(seed=settings.seed, arguments={name: given[name] for name in RECORDED} | settings.weights)
    with optional_output(settings.output, FinetuneResult.JOB) as output:
        stack, names = open_stack(settings.networks, **settings.weights)
        data = settings.open_data()
        record.data["texts" if isinstance(data, TextData) else "images"] = data.describe()
        if isinstance(data, TextData):
            data.set_padding(stack.config)
        curves: dict[str, list[list[float]]] = {}
        averaged: dict[str, list[float]] = {}
        task = settings.task(data)
        trained, curves["networks"], averaged["networks"] = _train(stack, data, task, settings)
        if settings.scratch:
            first = SCRATCH_SEED + settings.seed
            fresh = fresh_networks(stack.config, list(range(first, first + stack.num_models)))
            _, curves["scratch"], averaged["scratch"] = _train(fresh, data, task, settings)
        measured = task.label("test")
        averaged = averaged if settings.average_epochs else {}
        also = {f"{measured}_averaged": {name: [row] for name, row in averaged.items()}} if averaged else {}
        record.finish({measured: curves, **also})
        first_mean = sum(curves["networks"][0]) / stack.num_models if measured == "test_accuracy" else None
        result = FinetuneResult(
            record=record,
            notes=accuracy_notes(recorded_accuracies(names), first_mean),
            stack=trained,
            names=names,
            curves=curves,
            measured=measured,
            averaged=averaged,
            include_code=settings.include_code,
            tokenizer=data.tokenizer if isinstance(data, TextData) else None,
        )
        return output.write(result)


def _train(
    stack: StackedNetworks, data: LabelledData, task: Task, settings: FinetuneSettings
) -> tuple[StackedNetworks, list[list[float]], list[float]]:
    """Train networks together.

    Returns:
        The trained networks, or their averages over the last epochs; measurements `[epochs + 1][networks]`, starting
        before training; and those of the averages `[networks]`, empty without any.
    """
    hyper_parameters = HyperParameters.repeat(
        range(settings.seed, settings.seed + stack.num_models),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
    )
    average = StackAverage(stack.config)
    curve: list[list[float]] = []
    trained = stack
    for snapshot in train_stacked(
        stack.config,
        stack.tensors,
        data,
        hyper_parameters,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        schedule=settings.schedule,
        keep_epochs=range(settings.epochs + 1),
    ):
        trained = StackedNetworks(stack.config, snapshot.tensors)
        if len(curve) > settings.epochs - settings.average_epochs:
            average.add(snapshot.tensors)
        is_known = task.label("test") == "test_accuracy"  # on the same data that training measures
        curve.append((snapshot.test_accuracy if is_known else task.measure(trained, "test")[0]).tolist())
    if not average.count:
        return trained, curve, []
    means = average.finish(data, batch_size=max(2, settings.batch_size), seed=settings.seed)
    return means, curve, task.measure(means, "test")[0].tolist()


__all__ = ["FinetuneResult", "finetune"]
