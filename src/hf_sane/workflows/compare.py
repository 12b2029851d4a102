"""Compare methods that generate networks, from the latent space of a SANE or without an autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict

from huggingface_hub.dataclasses import strict

from hf_sane.analysis._zoo_plots import plot_methods
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData, load_zoo_images
from hf_sane.networks._modules import ModuleSettings
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Classification
from hf_sane.records._errors import did_you_mean
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.sampling._comparison import METHODS, ComparisonSettings, draw_samples
from hf_sane.sampling._diversity import DISTANCES, measure_distances
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._finetuning import finetune_all
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._selection import Judge
from hf_sane.workflows.finetune import usual_recipe
from hf_sane.workflows.networks import open_images
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.sample import SampleResult
from hf_sane.workflows.sane import SANE, GivenSaneSettings, open_sane
from hf_sane.workflows.shared import CodecSettings
from hf_sane.workflows.show_zoo import load_zoo
from hf_sane.zoo._alignment import comparable_tokens
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings

REPORTED_EPOCHS = (0, 1, 5)  # of fine-tuning


@strict
@dataclass(kw_only=True)
class CompareSettings(
    ComparisonSettings, ImageSettings, CodecSettings, GivenSaneSettings, ZooSourceSettings, ModuleSettings
):
    """Settings of [`compare_samplers`]."""

    zoo: str | Path | Zoo = setting("Zoo of one architecture (folder or Hub repo id).")
    output: Path | None = setting("New folder for the run record.", default=None, short="-o")
    images: str | ImageData | None = setting(
        f"Images: {IMAGE_KINDS}; by default those of the zoo. Validation images select networks, test images evaluate "
        "them.",
        default=None,
    )
    methods: list[str] = setting(
        "Methods to compare; by default all.", factory=lambda: list(METHODS), choices=lambda: METHODS
    )
    finetune_epochs: int = setting("Fine-tuning epochs for the networks of every method; 0 for none.", default=0)
    condition: bool = setting("Re-estimate BatchNorm statistics on training images.", default=True)
    judge: Judge | None = setting(
        "Judge that selects networks, instead of validation accuracy.", default=None, only_python=True
    )

    def validate_methods(self) -> None:
        """Check that the methods are known."""
        if not self.methods or (unknown := sorted(set(self.methods) - set(METHODS))):
            got = unknown[0] if self.methods else "none"
            raise ValueError(f"expected methods among {', '.join(METHODS)}, got {got!r}{did_you_mean(got, METHODS)}")


class ComparisonJson(TypedDict):
    """The JSON object that `--json` prints; methods are named as in the table.

    Attributes:
        epoch_0: Mean test accuracy of each method's networks before fine-tuning.
        epoch_1: The same after one epoch of fine-tuning, if they were fine-tuned.
        epoch_5: The same after five epochs.
        nearest_training_distance: Distance of each method's networks to the nearest training network.
        nearest_reconstruction_distance: Distance to the nearest reconstruction of a training network by the method's
            code.
        pairwise_distance: Mean distance between the networks of a method.
        num_anchors: Number of anchors.
        num_candidates: Number of networks that were drawn for subsampling.
        num_kept: Number of networks that were kept for each method.
        bandwidth: Selected bandwidth.
        bandwidth_unit: Unit of the bandwidth.
        bandwidth_candidates: Bandwidths from which it was selected.
        bandwidth_kept_validation_accuracy: Mean validation accuracy of the networks kept with each bandwidth.
        bootstrap_validation_accuracy: Mean validation accuracy after each round of bootstrapping.
        linear: Selected settings of the linear code, if its methods were compared.
        finetuning_curves: Test accuracy by method, epoch and network, if they were fine-tuned.
    """

    epoch_0: dict[str, float]
    epoch_1: NotRequired[dict[str, float]]
    epoch_5: NotRequired[dict[str, float]]
    nearest_training_distance: dict[str, float]
    nearest_reconstruction_distance: dict[str, float]
    pairwise_distance: dict[str, float]
    num_anchors: int
    num_candidates: int
    num_kept: int
    bandwidth: float
    bandwidth_unit: str
    bandwidth_candidates: list[float]
    bandwidth_kept_validation_accuracy: list[float]
    bootstrap_validation_accuracy: list[float]
    linear: NotRequired[dict[str, Any]]
    finetuning_curves: NotRequired[dict[str, Any]]


@dataclass(kw_only=True)
class ComparisonResult(Result):
    """Networks generated by each method, and their measurements.

    Attributes:
        methods: Networks, by method.
        anchors: Training runs of the anchors, sorted from best to worst.
        data: Images that the networks are evaluated on.
        zoo: Zoo of the anchors.
        settings: Settings of the comparison.
        facts: Values that were selected along the way, such as the bandwidth.
        curves: `{method: [epochs + 1][networks]}`: test accuracy before and, after [`finetune`], during fine-tuning.
    """

    JSON: ClassVar[Any] = ComparisonJson
    JOB: ClassVar[str] = "comparison"

    methods: dict[str, StackedNetworks]
    anchors: tuple[str, ...]
    data: ImageData
    zoo: Zoo
    settings: CompareSettings
    facts: Mapping[str, Any]
    curves: dict[str, list[list[float]]] = field(default_factory=dict)

    def test_accuracy(self) -> dict[str, float]:
        """Mean test accuracy before fine-tuning, by method."""
        return {name: sum(found) / len(found) for name, found in self._accuracies().items()}

    def _accuracies(self) -> dict[str, list[float]]:
        task = Classification(self.data)
        return {name: task.measure(networks, "test")[0].tolist() for name, networks in self.methods.items()}

    def evaluate(self) -> None:
        """Evaluate the networks of all methods on the test images, without fine-tuning."""
        self._keep({name: [found] for name, found in self._accuracies().items()}, epochs=0)

    def finetune(self, epochs: int, recipe: Mapping[str, Any] | None = None) -> dict[str, list[list[float]]]:
        """Fine-tune the networks of all methods together; return the `curves` and store them in the result.

        Args:
            epochs: Passes over the training images.
            recipe: Learning rate, weight decay and optimizer; by default those of the zoo, or of [`finetune`] if the
                zoo was imported and does not record them.
        """
        if recipe is None:
            is_known = "optimizers" in self.zoo.facts.arguments
            recipe = self.zoo.facts.training_recipe if is_known else usual_recipe()
            if not is_known:
                shown = ", ".join(f"{name} {value}" for name, value in recipe.items())
                self.notes.append(f"the zoo does not record how its networks were trained; fine-tuned with {shown}")
        curves = finetune_all(self.methods, self.data, recipe, epochs=epochs, seed=self.settings.seed)
        self._keep(curves, epochs=epochs)
        self.record.finish({"finetuning_curves": curves})
        return curves

    def _keep(self, curves: dict[str, list[list[float]]], *, epochs: int) -> None:
        self.curves = curves
        means = {
            f"epoch_{epoch}": {name: sum(found[epoch]) / len(found[epoch]) for name, found in self.curves.items()}
            for epoch in REPORTED_EPOCHS
            if epoch <= epochs
        }
        self.record.results = means | self.record.results

    def draw(self, partial: Path) -> None:
        """Draw accuracies.png, if the networks were evaluated and matplotlib is installed."""
        if self.curves and find_spec("matplotlib") is not None:
            before = {METHODS[name]: found[0] for name, found in self.curves.items()}
            plot_methods(before, partial / "accuracies.png")

    def tables(self) -> list[Table]:
        """Accuracies at the reported epochs, and distances."""
        return [comparison_table(self.record.results)]

    def sampled(self, count: int, record: RunRecord, *, sane: str, zoo: str, title: str) -> SampleResult:
        """The first subsampled networks, ready to save with provenance and cards.

        Args:
            count: Number of networks.
            record: Record of the run that saves them.
            sane: Name of the autoencoder in the provenance.
            zoo: Name of the zoo in the provenance.
            title: Title of the cards, to which the network's number is added.
        """
        stack = self.methods["sane_subsampled"]
        stack = stack.select(list(range(min(count, stack.num_models))))
        epochs = self.curves["sane_subsampled"]
        measured: list[dict[str, Any]] = [
            {"test_accuracy_fine_tuned": {f"after {n} epochs": row[index] for n, row in enumerate(epochs) if n}}
            for index in range(stack.num_models)
        ]
        provenance = [
            Provenance(
                method="subsampled",
                sane_model=sane,
                zoo=zoo,
                anchors=self.anchors,
                seed=self.settings.seed,
                index=index,
                bandwidth=self.facts["bandwidth"],
                bandwidth_unit=self.settings.unit,
                mode="joint",
                num_candidates=self.settings.num_candidates,
                test_accuracy=epochs[0][index],
            )
            for index in range(stack.num_models)
        ]
        return SampleResult(record=record, stack=stack, provenance=provenance, measured=measured, title=title)


def comparison_table(results: Mapping[str, Any]) -> Table:
    """Accuracy at the reported epochs and distances, one row per method."""
    epochs = [key for key in results if key.startswith("epoch_")]
    distances = [key for key in DISTANCES if key in results]
    rows = [
        [METHODS.get(name, name), *(results[key].get(name) for key in (*epochs, *distances))]
        for name in results[(*epochs, *distances)[0]]
    ]
    titles = ["test accuracy", *(f"after {key.replace('_', ' ')}" for key in epochs[1:])][: len(epochs)]
    return Table(("networks", *titles, *(key.replace("_", " ") for key in distances)), rows)


def compare_samplers(
    zoo: str | Path | Zoo, sane: str | Path | SANE, images: str | ImageData | None = None, **options: Any
) -> ComparisonResult:
    """Generate networks with several methods, and measure their novelty and diversity.

    Args:
        zoo: A zoo of one architecture, or its folder or Hub repo id.
        sane: A SANE, its folder or its Hub repo id.
        images: Images, or a source for `load_images`; if `None`, those of the zoo.
        **options: Other fields of [`CompareSettings`].

    Raises:
        ValueError: If the zoo has fewer anchors than requested or kept.
    """
    return run_compare(CompareSettings(zoo=zoo, sane=sane, images=images, **options))


def run_compare(settings: CompareSettings) -> ComparisonResult:
    """Compare methods that generate networks, from the latent space of a SANE or without an autoencoder.

    All methods keep the same number of networks. The report holds their test accuracies, with `--finetune-epochs` also
    during fine-tuning, and their distances to the nearest training network, to the nearest reconstruction of one and
    to each other.
    """
    settings.register()
    record = RunRecord.start(seed=settings.seed, arguments=as_arguments(settings))
    with optional_output(settings.output, ComparisonResult.JOB) as output:
        result = _compare(settings, record)
        if settings.finetune_epochs:
            result.finetune(settings.finetune_epochs)
        else:
            result.evaluate()
        return output.write(result)


def _compare(settings: CompareSettings, record: RunRecord) -> ComparisonResult:
    zoo = load_zoo(settings.zoo, **settings.zoo_place)
    sane = open_sane(settings.sane, **settings.sane_place)
    images = load_zoo_images(zoo.facts) if settings.images is None else settings.images
    data = open_images(images, **settings.image_shape)
    judge = settings.judge or Judge.of_images(
        *data.split("validation"), conditioning_images=data.train_images if settings.condition else None
    )
    layout, config = zoo.splits["train"].layout_and_config()
    codec = NetworkCodec(sane.model, sane.extractor, layout, config, **settings.windows)
    samples = draw_samples(codec, zoo, judge, settings, methods=settings.methods)
    drawn = {name: samples.methods[name] for name in settings.methods if name in samples.methods}
    distances = measure_distances(codec, comparable_tokens(zoo.splits["train"]), drawn, linear=samples.linear)
    record.finish(
        {DISTANCES[0]: distances.pop(DISTANCES[0]), **samples.facts, **distances},
        data={"images": data.describe()},
    )
    return ComparisonResult(
        record=record,
        methods=drawn,
        anchors=samples.anchor_ids,
        data=data,
        zoo=zoo,
        settings=settings,
        facts=samples.facts,
    )


__all__ = ["ComparisonResult", "compare_samplers"]
