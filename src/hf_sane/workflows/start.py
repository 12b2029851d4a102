"""Start from a few labelled images: sample around trained networks, fine-tune, and compare with baselines."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.cards._tables import fact_text, markdown_table, result_tables
from hf_sane.hub._onnx import ONNX_FILE, export_onnx, require_onnx
from hf_sane.hub._publish import save_network
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._image_settings import TrainLimitSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._escaping import markdown_text
from hf_sane.records._progress import progress, quietly
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import ProgressSettings, SeedSettings, as_arguments, setting
from hf_sane.records._sources import hub_id
from hf_sane.sampling._baselines import SCRATCH_SEED
from hf_sane.sampling._heads import FittedHeads, fit_heads
from hf_sane.workflows.judging import FAR_BELOW
from hf_sane.workflows.networks import open_images, open_stack
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.sample import TRAINING_ONLY, SampleResult, row_titles, sample
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.shared import BUNDLE, SaneSettings

SCHEMES = ("kaiming_uniform", "kaiming_normal", "uniform", "normal")  # title of networks trained from scratch
KINDS = {"sampled": "sampled, fine-tuned", "anchors": "anchors, fine-tuned", "scratch": "from scratch"}
# How cards describe networks that were not sampled.
ORIGINS = {
    "anchors": "that was trained on other images and then fine-tuned on these",
    "scratch": "that was trained on these images from a random initialisation",
}
REPORT_FILE = "report.md"
FEW = 16  # training images per step; small, so that few images give many steps


@dataclass(kw_only=True)
class StartSettings(SaneSettings, TrainLimitSettings, SeedSettings, ProgressSettings):
    """Settings of [`start`]."""

    images: str | ImageData = setting(f"Your labelled images: {IMAGE_KINDS}.")
    output: Path | None = setting("New folder for the best network, its card and the run record.", short="-o")
    sane: str | Path | SANE | None = setting(
        "SANE that comes with networks to sample around (folder or Hub repo id); by default the built-in one, for "
        "colour or greyscale images of 32 pixels.",
        default=None,
        formerly=("--from", "from_", "source"),
    )
    num_candidates: int = setting("Number of networks to draw and evaluate in each round.", default=60, least=2)
    num_starts: int = setting("Number of networks of each kind to fine-tune; the best is kept.", default=4, least=1)
    bandwidth: list[float] = setting("Kernel widths to choose from.", factory=lambda: [0.1, 0.3, 0.5])
    epochs: int = setting("Number of passes over the training images in fine-tuning.", default=40, least=1)
    learning_rate: list[float] = setting("Learning rates to choose from.", factory=lambda: [1e-3, 3e-3, 1e-2])
    onnx: bool = setting("Also write the network as an ONNX file (requires hf_sane[onnx]).", default=False)
    include_code: bool = setting("Save the network with its modelling code (for trust_remote_code).", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.num_starts > self.num_candidates:
            raise ValueError(
                f"expected at least twice as many candidates as starts, got num_candidates {self.num_candidates} and "
                f"num_starts {self.num_starts}"
            )
        if self.onnx:
            require_onnx()


class StartJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        kind: Start of the network that was kept.
        verdict: Sentences on the split of the images, the network that was kept, and the kind that wins.
        compared: Accuracy, loss and learning rate of each kind of start after fine-tuning.
        before_fine_tuning: Accuracy of the sampled networks before fine-tuning.
    """

    kind: Literal["sampled", "anchors", "scratch"]
    verdict: list[str]
    compared: dict[str, dict[str, float]]
    before_fine_tuning: dict[str, dict[str, float]]


@dataclass(kw_only=True)
class StartResult(Result):
    """The best network on validation images, and its comparison with the others.

    Attributes:
        network: The network, in evaluation mode.
        kind: How it was initialised: `"sampled"`, `"anchors"` or `"scratch"`.
        comparison: `{kind: {measurement: value}}`, for the best network of each kind.
        verdict: Sentences that say which kind is best, and on which images.
        data: The images.
        include_code: Whether to save the modelling code.
        onnx: Whether to save an ONNX file.
    """

    JSON: ClassVar[Any] = StartJson
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
        """The kinds of networks, and which one was kept."""
        columns = ("validation_accuracy", "test_accuracy", "learning_rate")
        header = ("networks", *(name.replace("_", " ") for name in columns), "kept")
        rows = [
            [KINDS[kind], *(row[name] for name in columns), kind == self.kind] for kind, row in self.comparison.items()
        ]
        return [Table(header, rows)]

    def write(self, partial: Path) -> None:
        """Write the network with its card, the report, the ONNX file and the run record."""
        chosen = self.comparison[self.kind]
        epochs = self.record.arguments["epochs"]
        results = {**chosen, "fine_tuning_epochs": epochs, "compared": self.comparison}
        save_network(
            partial / "network",
            self.network,
            replace(self.record, results=results),
            title=f"Network for {self.data.name}",
            base_model=hub_id(self.record.arguments["sane"]),
            include_code=self.include_code,
            origin=ORIGINS.get(self.kind),
        )
        (partial / REPORT_FILE).write_text(self.to_markdown(), encoding="utf-8")
        if self.onnx:
            export_onnx(self.network, self.data.test_images[[0, 0]], partial / ONNX_FILE)
        super().write(partial)

    def to_markdown(self) -> str:
        """The report: which kind wins on which images, before and after fine-tuning."""
        lines = "\n".join(f"- {line}" for line in (*self.verdict, *self.notes))
        (table,) = self.tables()
        rows = [[fact_text(cell) for cell in row] for row in table.rows]
        before = {"before fine-tuning": row_titles(self.record.results["before_fine_tuning"])}
        return (
            f"# Networks for {markdown_text(self.data.name)}\n\n{lines}\n\n"
            f"{markdown_table(table.header, rows, numbers=True)}\n\n"
            f"With only the last layer fitted, on test images:\n\n{result_tables(before)}\n\n"
            "The network is in `network/`; settings and versions are in `run.json`.\n"
        )


def start(images: str | Path | ImageData, **options: Any) -> StartResult:
    """Make a network for a few labelled images, starting from networks that were trained on other images.

    ```python
    found = hf_sane.start("my_images", output="my_network")
    print(found)
    ```

    Args:
        images: Images, or a source for `load_images`: a folder with one subfolder of image files per class.
        **options: Other fields of [`StartSettings`].

    Raises:
        ValueError: If the images do not fit the networks, or the SANE comes without networks.
    """
    return run_start(StartSettings(**{"output": None, "images": images, **options}))


def run_start(settings: StartSettings) -> StartResult:
    """Make a network for a few labelled images.

    New networks are sampled, in rounds, around networks that were trained on other images, with classifiers fitted to
    your training images. The sampled networks, the best of the networks that they were sampled around, and networks
    trained from scratch are then fine-tuned for the same number of steps, each kind with its best learning rate.
    Validation images select; test images only evaluate.
    """
    record = RunRecord.start(seed=settings.seed, arguments=as_arguments(settings))
    with optional_output(settings.output, StartResult.JOB) as output:
        sane = open_sane(settings.sane or BUNDLE, **settings.sane_place)
        anchors, names = _open_anchors(sane)
        data = _fitting_images(settings, anchors.config)  # type: ignore[arg-type]
        record.data["images"] = data.describe()
        with quietly(not settings.progress_bar):
            sampled = _sample(settings, sane, anchors, data)
            starts = _starts(settings, sampled, anchors, data)
            comparison, networks = _finetune(settings, starts, data)
        kind = max(comparison, key=lambda name: _merit(comparison[name]))
        chosen = {name: sampled.record.arguments[name] for name in ("method", "bandwidth")}
        record.arguments |= {"anchors": names, **chosen}
        before = sampled.record.results["networks"]
        verdict = _verdict(kind, comparison, data)
        record.finish({"kind": kind, "verdict": verdict, "compared": comparison, "before_fine_tuning": before})
        result = StartResult(
            record=record,
            notes=_notes(comparison[kind]["test_accuracy"], data, sane.record),
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
    """The networks that come with an autoencoder, sorted from best to worst, and their names."""
    stack, names = open_stack(sane.anchors(), ignored=TRAINING_ONLY)
    return stack, [Path(name).name for name in names]


def _fitting_images(settings: StartSettings, config: ZooConfig) -> ImageData:
    """The images, with the size and channels that the networks expect."""
    size = getattr(config, "image_size", None)
    data = open_images(settings.images, image_size=size, train_limit=settings.train_limit)
    if size is not None:
        data = data.resized(size)
    return data.with_channels(config.num_channels)


def _sample(settings: StartSettings, sane: SANE, anchors: StackedNetworks, data: ImageData) -> SampleResult:
    """Networks sampled around the anchors, then around the best so far as long as validation results improve."""
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
    """The same number of networks of each kind to fine-tune; those from other tasks get a fitted classifier."""
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
    settings: StartSettings, starts: dict[str, StackedNetworks], data: ImageData
) -> tuple[dict[str, dict[str, float]], dict[str, nn.Module]]:
    """Fine-tune all networks with every learning rate; return the best network of each kind and its measurements.

    All of them train together, and are measured once, at the end.
    """
    stacks = list(starts.values())
    kinds = [kind for kind, stack in starts.items() for _ in range(stack.num_models)]
    rates = settings.learning_rate
    first = {name: torch.cat([stack.tensors[name] for stack in stacks]) for name in stacks[0].tensors}
    seeds = range(settings.seed, settings.seed + len(kinds))
    each = [HyperParameters.repeat(seeds, learning_rate=rate) for rate in rates]
    with progress(total=settings.epochs, desc="fine-tuning", unit="epoch") as bar:

        def count(_: int) -> None:
            bar.update()

        (trained,) = train_stacked(
            stacks[0].config,
            {name: torch.cat([tensor] * len(rates)) for name, tensor in first.items()},
            data,
            HyperParameters.concatenate(each),
            epochs=settings.epochs,
            schedule="one_cycle",
            batch_size=FEW,
            train_evaluation_limit=1,
            on_epoch=count,
        )
    tuned = StackedNetworks(stacks[0].config, trained.tensors)
    rows: dict[str, dict[str, float]] = {}
    networks: dict[str, nn.Module] = {}
    for index, (rate, kind) in enumerate((rate, kind) for rate in rates for kind in kinds):
        row = {
            "validation_accuracy": trained.validation_accuracy[index].item(),
            "test_accuracy": trained.test_accuracy[index].item(),
            "learning_rate": rate,
            "validation_loss": trained.validation_loss[index].item(),
        }
        if kind not in rows or _merit(row) > _merit(rows[kind]):
            rows[kind], networks[kind] = row, tuned.model(index)
    return rows, networks


def _merit(row: dict[str, float]) -> tuple[float, float]:
    """Sort key on validation images: accuracy, then loss; a NaN loss ranks last."""
    loss = row["validation_loss"]
    return row["validation_accuracy"], -loss if loss == loss else -torch.inf


def _verdict(kind: str, comparison: dict[str, dict[str, float]], data: ImageData) -> list[str]:
    """Sentences: how the images were split, which network was kept, and which kind wins on the test images."""
    count = {split: len(data.split(split)[1]) for split in ("train", "validation", "test")}
    best = comparison[kind]["validation_accuracy"]
    ties = [KINDS[k] for k, row in comparison.items() if k != kind and row["validation_accuracy"] == best]
    test = {k: row["test_accuracy"] for k, row in comparison.items()}
    first, second = sorted(test, key=lambda k: -test[k])[:2]
    reached = "; ".join(f"{KINDS[k]}: {fact_text(test[k])}" for k in sorted(test, key=lambda k: -test[k]))
    margin = test[first] - test[second]
    winner = f"{KINDS[first]} wins" if margin > _chance(data) else "no kind wins by more than chance"
    behind = [KINDS[k] for k in test if k != first and test[first] - test[k] > _chance(data)]
    if margin <= _chance(data) and behind:
        winner += f", but {' and '.join(behind)} {'is' if len(behind) == 1 else 'are'} worse than the best by more"
    return [
        f"{count['train']} images for training, {count['validation']} for selection (validation), {count['test']} for "
        "the report (test)",
        f"kept: {KINDS[kind]}, best on the {count['validation']} validation images ({fact_text(best)}"
        + (f"; equally accurate there, with a larger loss: {' and '.join(ties)})" if ties else ")"),
        f"on the {count['test']} test images, {winner} ({reached})",
    ]


def _chance(data: ImageData) -> float:
    """Largest difference of test accuracies that may be due to chance: two standard errors, at most."""
    return 1 / len(data.test_labels) ** 0.5


def _notes(accuracy: float, data: ImageData, trained: RunRecord | None) -> list[str]:
    """Limits of the result: few test images, an accuracy near that of guessing, or far below that of the anchors."""
    count = len(data.test_labels)
    notes = [f"{count} test images: differences in accuracy below {_chance(data):.2f} may be due to chance"]
    guessed = data.test_labels.bincount().max().item() / count
    known = None if trained is None else trained.results.get("anchors")
    recorded = [value for value in known.values() if isinstance(value, float)] if isinstance(known, dict) else []
    if accuracy - guessed <= _chance(data):
        notes.append(
            f"the network that is kept has a test accuracy of {fact_text(accuracy)}; always naming the most frequent "
            f"class would reach {fact_text(guessed)}, which is no worse up to chance: do not rely on it without more "
            "images, or other networks to start from (--sane)"
        )
    elif recorded and sum(recorded) / len(recorded) - accuracy >= FAR_BELOW:
        notes.append(
            f"the network that is kept has a test accuracy of {fact_text(accuracy)}, far below that of the networks "
            f"to start from on their own images ({fact_text(sum(recorded) / len(recorded))}): the images differ from "
            "those, are too few, or too hard for networks of this size; larger trained networks may do better (--sane)"
        )
    return notes


__all__ = ["StartResult", "start"]
