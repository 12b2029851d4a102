"""Compare ways to make networks: from the latent space of a SANE, and without any autoencoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hf_sane.networks._images import ImageData, load_zoo_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments
from hf_sane.sampling._comparison import METHODS, ComparisonSettings, draw_samples, finetune_all, measure_distances
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._selection import Judge
from hf_sane.workflows.networks import open_images
from hf_sane.workflows.results import Result, Table
from hf_sane.workflows.sample import SampleResult
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.zoo._dataset import Zoo

REPORTED_EPOCHS = (0, 1, 5)  # of fine-tuning


@dataclass(kw_only=True)
class ComparisonResult(Result):
    """Networks by every method, and what was measured on them.

    Attributes:
        methods: Name of each method to its networks.
        anchors: Runs of the anchors, best first.
        data: Images that the networks are judged on.
        zoo: Whose networks were the anchors.
        settings: Of the comparison.
        facts: What was chosen on the way, among it the bandwidth.
        curves: `{method: [epochs + 1][networks]}`: test accuracy over fine-tuning, from [`finetune`].
    """

    JOB: ClassVar[str] = "comparison"

    methods: dict[str, StackedNetworks]
    anchors: tuple[str, ...]
    data: ImageData
    zoo: Zoo
    settings: ComparisonSettings
    facts: Mapping[str, Any]
    curves: dict[str, list[list[float]]] = field(default_factory=dict)

    def test_accuracy(self) -> dict[str, float]:
        """Mean test accuracy of each method, before fine-tuning."""
        images = self.data.split("test")
        return {name: networks.evaluate(*images)[1].mean().item() for name, networks in self.methods.items()}

    def finetune(self, epochs: int, recipe: Mapping[str, Any] | None = None) -> dict[str, list[list[float]]]:
        """Fine-tune the networks of all methods together; gives and keeps `curves`.

        Args:
            epochs: Passes over the training images.
            recipe: Learning rate, weight decay and optimizer; those of the zoo when `None`.
        """
        recipe = self.zoo.facts.training_recipe if recipe is None else recipe
        self.curves = finetune_all(self.methods, self.data, recipe, epochs=epochs, seed=self.settings.seed)
        means = {
            f"epoch_{epoch}": {name: sum(found[epoch]) / len(found[epoch]) for name, found in self.curves.items()}
            for epoch in REPORTED_EPOCHS
            if epoch <= epochs
        }
        self.record.results = means | self.record.results
        self.record.finish({"finetuning_curves": self.curves})
        return self.curves

    def tables(self) -> list[Table]:
        """Accuracy at the reported epochs, if networks were fine-tuned, and distances."""
        return [comparison_table(self.record.results)]

    def sampled(self, count: int, record: RunRecord, *, sane: str, zoo: str, title: str) -> SampleResult:
        """The first subsampled networks, to be saved with provenance and cards.

        Args:
            count: How many.
            record: Of the run that they are saved by.
            sane: What provenance calls the autoencoder.
            zoo: What it calls the zoo.
            title: Headline of the cards, in front of the number of the network.
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
    """Accuracy at the reported epochs and distance to the nearest training network, one row per method."""
    epochs = [key for key in results if key.startswith("epoch_")]
    distances = results["nearest_training_distance"]
    names = results[epochs[0]] if epochs else distances
    rows = [
        [METHODS.get(name, name), *(results[epoch][name] for epoch in epochs), distances.get(name)] for name in names
    ]
    header = ("networks", *(epoch.replace("_", " ") for epoch in epochs), "nearest training distance")
    return Table(header, rows)


def compare_samplers(
    zoo: str | Zoo,
    sane: str | Path | SANE,
    images: str | ImageData | None = None,
    settings: ComparisonSettings | None = None,
    *,
    judge: Judge | None = None,
    methods: Sequence[str] = tuple(METHODS),
    **windows: Any,
) -> ComparisonResult:
    """Draw networks by every method, and measure how new and how different they are.

    Args:
        zoo: Aligned zoo of one architecture, or its folder or Hub dataset id.
        sane: A SANE, its folder or its Hub repo id.
        images: Images, or what `load_images` takes; those of the zoo when `None`.
        settings: How much is drawn, and what it is chosen from.
        judge: Chooses networks; on the validation images, without conditioning of batch norm, when `None`.
        methods: Those to keep and measure.
        **windows: `window_size` and `halo_size`, see [`NetworkCodec`].

    Raises:
        ValueError: If the zoo has fewer anchors than are asked for or kept.
    """
    settings = settings or ComparisonSettings()
    sane, zoo = open_sane(sane), Zoo.load(zoo) if isinstance(zoo, str) else zoo
    arguments = as_arguments(settings) | {"sane": sane.source, "zoo": zoo.source, **windows}
    record = RunRecord.start(seed=settings.seed, arguments=arguments)
    data = load_zoo_images(zoo.facts) if images is None else open_images(images)
    layout, config = zoo.splits["train"].layout_and_config()
    codec = NetworkCodec(sane.model, sane.extractor, layout, config, **windows)
    samples = draw_samples(codec, zoo, judge or Judge(*data.split("validation")), settings)
    drawn = {name: samples.methods[name] for name in methods}
    nearest, pairwise = measure_distances(codec, zoo, drawn)
    record.finish({"nearest_training_distance": nearest, **samples.facts, "pairwise_distance": pairwise})
    return ComparisonResult(
        record=record,
        methods=drawn,
        anchors=samples.anchor_ids,
        data=data,
        zoo=zoo,
        settings=settings,
        facts=samples.facts,
    )


__all__ = ["ComparisonResult", "compare_samplers", "comparison_table"]
