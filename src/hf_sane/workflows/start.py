"""Start from a few labelled images: sample around trained networks, fine-tune, compare with simpler ways."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from tqdm import tqdm

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.cards._tables import fact_text, markdown_table, result_tables
from hf_sane.hub._onnx import ONNX_FILE, export_onnx, require_onnx
from hf_sane.hub._publish import find_anchors, save_network
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._escaping import markdown_text
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import CheckedSettings, as_arguments, setting
from hf_sane.records._sources import hub_id
from hf_sane.sampling._baselines import SCRATCH_SEED
from hf_sane.sampling._heads import FittedHeads, fit_heads
from hf_sane.workflows.finetune import finetune
from hf_sane.workflows.networks import open_images, open_stack
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.sample import TRAINING_ONLY, SampleResult, sample
from hf_sane.workflows.sane import BUNDLE, SANE, open_sane

SCHEMES = ("kaiming_uniform", "kaiming_normal", "uniform", "normal")  # of networks from scratch
KINDS = {"sampled": "sampled, fine-tuned", "anchors": "anchors, fine-tuned", "scratch": "from scratch"}
# What cards say about networks that were not sampled.
ORIGINS = {
    "anchors": "that was trained on other images, and then fine-tuned on these",
    "scratch": "that was trained on these images from a random initialisation",
}
REPORT_FILE = "report.md"
FEW = 16  # training images per step, so that few images make many steps


@dataclass(kw_only=True)
class StartSettings(CheckedSettings):
    """Settings of [`start`]."""

    images: str | ImageData = setting(f"Your labelled images: {IMAGE_KINDS}.")
    output: Path | None = setting("New folder for the best network, with its card and the run record.", short="-o")
    source: str | Path | SANE | None = setting(
        "SANE that brings networks to sample around (folder or Hub repo id); by default the one in this package, for "
        "colour or grey images of 32 pixels.",
        default=None,
        option="--from",
    )
    num_candidates: int = setting("Number of networks to draw and judge in each round.", default=60, least=2)
    num_starts: int = setting("Networks of each kind to fine-tune; the best is chosen.", default=4, least=1)
    bandwidth: list[float] = setting("Kernel widths to choose from.", factory=lambda: [0.1, 0.3, 0.5])
    epochs: int = setting("Passes over the training images in fine-tuning.", default=40, least=1)
    learning_rate: list[float] = setting("Learning rates to choose from.", factory=lambda: [1e-3, 3e-3, 1e-2])
    train_limit: int | None = setting("Use at most this many training images.", default=None, least=1)
    onnx: bool = setting("Also write the network as an ONNX file (requires hf_sane[onnx]).", default=False)
    seed: int = setting("Random seed.", default=0)
    include_code: bool = setting("Save the network with its modelling code (for trust_remote_code).", default=False)
    progress_bar: bool = setting("Show a progress bar.", default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.num_starts > self.num_candidates:
            raise ValueError(
                f"expected at least twice as many candidates as starts, got num_candidates {self.num_candidates} and "
                f"num_starts {self.num_starts}"
            )
        if self.onnx:
            require_onnx()


@dataclass(kw_only=True)
class StartResult(Result):
    """The network that is best on validation images, and what it was compared with.

    Attributes:
        network: The network, in evaluation mode.
        kind: Where it started: `"sampled"`, `"anchors"` or `"scratch"`.
        comparison: `{kind: {measurement: value}}`, of the best network of each kind.
        verdict: Sentences about which kind is best, on which images.
        data: The images.
        include_code: Whether the modelling code is saved along.
        onnx: Whether an ONNX file is saved along.
    """

    JOB: ClassVar[str] = "start"

    network: nn.Module
    kind: str
    comparison: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    data: ImageData
    include_code: bool = False
    onnx: bool = False

    def summary(self) -> list[str]:
        """The verdict."""
        return self.verdict

    def tables(self) -> list[Table]:
        """The kinds of networks, and which one is kept."""
        columns = ("validation_accuracy", "test_accuracy", "learning_rate")
        header = ("networks", *(name.replace("_", " ") for name in columns), "kept")
        rows = [
            [KINDS[kind], *(row[name] for name in columns), kind == self.kind] for kind, row in self.comparison.items()
        ]
        return [Table(header, rows)]

    def write(self, partial: Path) -> None:
        """Write the network with its card, the report, the ONNX file, and the run record."""
        chosen = self.comparison[self.kind]
        epochs = self.record.arguments["epochs"]
        results = {**chosen, "fine_tuning_epochs": epochs, "compared": self.comparison}
        save_network(
            partial / "network",
            self.network,
            replace(self.record, results=results),
            title=f"Network for {self.data.name}",
            base_model=hub_id(self.record.arguments["source"]),
            include_code=self.include_code,
            origin=ORIGINS.get(self.kind),
        )
        (partial / REPORT_FILE).write_text(self.to_markdown(), encoding="utf-8")
        if self.onnx:
            export_onnx(self.network, self.data.test_images[[0, 0]], partial / ONNX_FILE)
        super().write(partial)

    def to_markdown(self) -> str:
        """The report: who wins on which images, before and after fine-tuning."""
        lines = "\n".join(f"- {line}" for line in (*self.verdict, *self.notes))
        (table,) = self.tables()
        rows = [[fact_text(cell) for cell in row] for row in table.rows]
        before = {"before fine-tuning": self.record.results["before_fine_tuning"]}
        return (
            f"# Networks for {markdown_text(self.data.name)}\n\n{lines}\n\n"
            f"{markdown_table(table.header, rows, numbers=True)}\n\n"
            f"With a fitted last layer, on test images:\n\n{result_tables(before)}\n\n"
            "The network is in `network/`; settings and versions are in `run.json`.\n"
        )


def start(images: str | Path | ImageData, **options: Any) -> StartResult:
    """Make a network for a few labelled images, starting from networks that were trained on others.

    ```python
    found = hf_sane.start("my_images", output="my_network")
    print(found)
    ```

    Args:
        images: Images, or a source for `load_images`: a folder with one folder of image files per class.
        **options: Other fields of [`StartSettings`].

    Raises:
        ValueError: If the images do not fit the networks, or the SANE brings none along.
    """
    given = str(images) if isinstance(images, Path) else images
    return run_start(StartSettings(**{"output": None, "images": given, **options}))


def run_start(settings: StartSettings) -> StartResult:
    """Make a network for a few labelled images.

    Networks that were trained on other images are sampled around, in rounds, with classifiers fitted to your training
    images. Sampled networks, the best of those that they were sampled around, and networks from scratch are then
    fine-tuned for the same number of steps, each kind with the learning rate that is best for it. Validation images
    decide; test images only measure.
    """
    record = RunRecord.start(seed=settings.seed, arguments=as_arguments(settings))
    with optional_output(settings.output, StartResult.JOB) as output:
        sane = open_sane(settings.source or BUNDLE)
        anchors, names = _open_anchors(sane)
        data = _fitting_images(settings, anchors.config)  # type: ignore[arg-type]
        record.data["images"] = data.describe()
        with tqdm(total=1 + len(settings.learning_rate), disable=not settings.progress_bar, desc="sampling") as bar:
            sampled = _sample(settings, sane, anchors, data)
            starts = _starts(settings, sampled, anchors, data)
            comparison, networks = _finetune(settings, starts, data, bar)
        kind = max(comparison, key=lambda name: _merit(comparison[name]))
        chosen = {name: sampled.record.arguments[name] for name in ("method", "bandwidth")}
        record.arguments |= {"anchors": names, **chosen}
        before = sampled.record.results["networks"]
        verdict = _verdict(kind, comparison, data)
        record.finish({"kind": kind, "verdict": verdict, "compared": comparison, "before_fine_tuning": before})
        result = StartResult(
            record=record,
            notes=[_caution(data)],
            network=networks[kind],
            kind=kind,
            comparison=comparison,
            verdict=verdict,
            data=data,
            include_code=settings.include_code,
            onnx=settings.onnx,
        )
        return output.write(result)


def _open_anchors(sane: SANE) -> tuple[StackedNetworks, list[str]]:
    """The networks that an autoencoder brings along, best first, and their names."""
    folder = find_anchors(sane.source or "", revision=sane.revision, subfolder=sane.subfolder) if sane.source else None
    if folder is None:
        raise ValueError(
            f"expected a SANE that brings networks to sample around, got {sane.source or 'one'} without any; save it "
            "with some: sane.save_pretrained(folder, anchors=[network, ...])"
        )
    stack, names = open_stack([folder], ignored=TRAINING_ONLY)
    return stack, [Path(name).name for name in names]


def _fitting_images(settings: StartSettings, config: ZooConfig) -> ImageData:
    """Images in the size and with the channels of the networks."""
    size = getattr(config, "image_size", None)
    data = open_images(settings.images, image_size=size, train_limit=settings.train_limit)
    if size is not None:
        data = data.resized(size)
    return data.with_channels(config.num_channels)


def _sample(settings: StartSettings, sane: SANE, anchors: StackedNetworks, data: ImageData) -> SampleResult:
    """Networks around the anchors, and around the best of these where that gives better ones on validation images."""
    return sample(
        [anchors.model(index) for index in range(anchors.num_models)],
        sane,
        images=data,
        evaluate=FittedHeads(data),
        method="bootstrap",
        num_samples=settings.num_starts,
        num_candidates=settings.num_candidates,
        bandwidth=settings.bandwidth,
        seed=settings.seed,
    )


def _starts(
    settings: StartSettings, sampled: SampleResult, anchors: StackedNetworks, data: ImageData
) -> dict[str, StackedNetworks]:
    """As many networks of each kind to fine-tune, those from other tasks with a fitted classifier."""
    fitted = fit_heads(anchors, data)
    loss, accuracy = fitted.evaluate(*data.split("validation"))
    order = sorted(range(anchors.num_models), key=lambda i: (-accuracy[i].item(), loss[i].item()))
    heads = fit_heads(sampled.stack, data)
    seeds = [SCRATCH_SEED + settings.seed + index for index in range(settings.num_starts)]
    schemes = [SCHEMES[index % len(SCHEMES)] for index in range(settings.num_starts)]
    assert isinstance(heads.config, ZooConfig)
    fresh = StackedNetworks.initialize(heads.config, seeds, schemes)
    return {"sampled": heads, "anchors": fitted.select(order[: settings.num_starts]), "scratch": fresh}


def _finetune(
    settings: StartSettings, starts: dict[str, StackedNetworks], data: ImageData, bar: tqdm
) -> tuple[dict[str, dict[str, float]], dict[str, nn.Module]]:
    """Fine-tune all networks with every learning rate; measurements and network of the best of each kind."""
    modules = [stack.model(index) for stack in starts.values() for index in range(stack.num_models)]
    kinds = [kind for kind, stack in starts.items() for _ in range(stack.num_models)]
    recipe: dict[str, Any] = {"epochs": settings.epochs, "schedule": "one_cycle", "batch_size": FEW}
    rows: dict[str, dict[str, float]] = {}
    networks: dict[str, nn.Module] = {}
    for rate in settings.learning_rate:
        bar.set_description("fine-tuning")
        bar.update()
        tuned = finetune(modules, data, learning_rate=rate, scratch=False, seed=settings.seed, **recipe)
        loss, accuracy = tuned.stack.evaluate(*data.split("validation"))
        test = tuned.stack.evaluate(*data.split("test"))[1]
        for index, kind in enumerate(kinds):
            row = {
                "validation_accuracy": accuracy[index].item(),
                "test_accuracy": test[index].item(),
                "learning_rate": rate,
                "validation_loss": loss[index].item(),
            }
            if kind not in rows or _merit(row) > _merit(rows[kind]):
                rows[kind], networks[kind] = row, tuned[index]
    bar.update()
    return rows, networks


def _merit(row: dict[str, float]) -> tuple[float, float]:
    """What is better on validation images: accuracy, then loss; a loss that is not a number is worst."""
    loss = row["validation_loss"]
    return row["validation_accuracy"], -loss if loss == loss else -torch.inf


def _verdict(kind: str, comparison: dict[str, dict[str, float]], data: ImageData) -> list[str]:
    """How the images were split, which network is kept, and which kind wins on the test images."""
    count = {split: len(data.split(split)[1]) for split in ("train", "validation", "test")}
    best = comparison[kind]["validation_accuracy"]
    ties = [KINDS[k] for k, row in comparison.items() if k != kind and row["validation_accuracy"] == best]
    test = {k: row["test_accuracy"] for k, row in comparison.items()}
    first, second = sorted(test, key=lambda k: -test[k])[:2]
    reached = ", ".join(f"{KINDS[k]} {fact_text(test[k])}" for k in sorted(test, key=lambda k: -test[k]))
    margin = test[first] - test[second]
    winner = f"{KINDS[first]} wins" if margin > _chance(data) else "no kind wins by more than chance"
    return [
        f"{count['train']} images to train on, {count['validation']} to choose by (validation), {count['test']} to "
        "report on (test)",
        f"kept: {KINDS[kind]}, best on the {count['validation']} validation images ({fact_text(best)}"
        + (f"; as accurate there, with a larger loss: {' and '.join(ties)})" if ties else ")"),
        f"on the {count['test']} test images, {winner}: {reached}",
    ]


def _chance(data: ImageData) -> float:
    """By how much accuracies on the test images differ by chance: two standard errors, at most."""
    return 1 / len(data.test_labels) ** 0.5


def _caution(data: ImageData) -> str:
    count = len(data.test_labels)
    return f"{count} test images: accuracies that differ by less than {_chance(data):.2f} may do so by chance"


__all__ = ["StartResult", "StartSettings", "start"]
