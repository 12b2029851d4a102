"""Average checkpoints of one architecture, or LoRA adapters of one base model."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

import transformers
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.hub._cards import auto_class
from hf_sane.hub._push import push_saved
from hf_sane.hub._soups import save_adapter_soup, save_soup, save_soup_of_files
from hf_sane.merging._adapters import (
    SOUP,
    AdapterMixer,
    are_adapters,
    average_adapters,
    base_config,
    open_adapters,
)
from hf_sane.merging._averaging import soup_dtype, uniform_weights
from hf_sane.merging._ingredients import (
    Ingredient,
    align_ingredients,
    align_known,
    open_ingredients,
    refuse_reordered,
)
from hf_sane.merging._methods import MERGE_METHODS, measured_soup
from hf_sane.merging._reconciliation import complete_config
from hf_sane.merging._soups import CheckpointMixer, Mixer, NamesMixer, Soup
from hf_sane.networks._batchnorm import NUM_BATCHES
from hf_sane.networks._image_settings import ImageSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._modules import ModuleSettings, find_architecture
from hf_sane.networks._tasks import LabelledData, SplitScore
from hf_sane.networks._texts import TextData
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.records._sources import find_source
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._loading import initial_model, is_own_module, load_config
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.judging import MetricSettings, TextSettings, accuracy_notes, recorded_accuracies
from hf_sane.workflows.networks import load_network, open_images
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import WeightsSettings


@dataclass(kw_only=True)
class SoupSettings(WeightsSettings, ImageSettings, MetricSettings, TextSettings, ModuleSettings):
    """Settings of [`soup`]."""

    networks: list[Any] = setting(
        "Networks to average: model folders, files of weights, a folder that contains either, Hub repo ids "
        "(repo@revision), or LoRA adapters.",
        positional=True,
        formerly="ingredients",
    )
    output: Path | None = setting("New folder for the averaged model and its card.", short="-o", formerly="--out")
    method: str = setting(
        "Merge method: uniform averages all ingredients, greedy keeps those that help on held-out data. Plug-ins "
        "can add more.",
        default="uniform",
        formerly=("--greedy=greedy", "--uniform=uniform"),
        choices=lambda: MERGE_METHODS,
    )
    images: str | ImageData | None = setting(
        f"Images: {IMAGE_KINDS}. Validation images select networks, test images evaluate the soup.",
        default=None,
        formerly="--data",
    )
    align: bool | None = setting(
        "Permute channels before averaging; by default only for networks of this library.", default=None
    )
    condition: bool = setting(
        "Re-estimate the BatchNorm statistics of averages on training images.",
        default=False,
        formerly="--recalibrate",
    )
    condition_batches: int = setting(
        "Number of batches of 32 training images from which to re-estimate BatchNorm statistics.",
        default=NUM_BATCHES,
        formerly="--recalibration-batches",
        least=1,
    )
    rank: int | None = setting(
        "Rank of a soup of adapters; by default the sum of their ranks, which is exact.", default=None, least=1
    )
    base: str | None = setting("Base model of the adapters, instead of the one that they name.", default=None)
    seed: int = setting("Random seed for the images on which BatchNorm statistics are re-estimated.", default=0)
    include_code: bool = setting("Save the network with its modelling code (for trust_remote_code).", default=False)

    @property
    def is_measured(self) -> bool:
        """Whether there is data or a function to evaluate with."""
        return any(given is not None for given in (self.images, self.texts, self.evaluate))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and self.texts is not None:
            raise ValueError("expected images (--images) or texts (--texts) to select by, got both; name one")
        if MERGE_METHODS.find(self.method).needs_score and not self.is_measured:
            raise ValueError(
                f"a {self.method} soup is selected on held-out data, got none; pass images (--images), texts "
                "(--texts) or a function (--evaluate), or use --method uniform"
            )
        if self.condition and self.images is None:
            raise ValueError(
                "BatchNorm statistics are re-estimated from training images, got none; pass them (--images)"
            )


class IngredientJson(TypedDict):
    """An ingredient of a soup.

    Attributes:
        weight: Share of the ingredient.
        held_out_score: Score of the ingredient alone on held-out data.
    """

    weight: float
    held_out_score: NotRequired[float]


class SoupJson(TypedDict):
    """The JSON object that `--json` prints; further fields are measurements of the soup.

    Attributes:
        ingredients: Averaged networks or adapters, by name.
        steps: Ingredients that a greedy soup tried, in order.
        rank: Rank of an averaged adapter.
        largest_relative_error_of_a_layer: Largest relative error of a layer due to this rank.
    """

    ingredients: dict[str, IngredientJson]
    steps: NotRequired[list[Any]]
    rank: NotRequired[int]
    largest_relative_error_of_a_layer: NotRequired[float]


@dataclass(kw_only=True)
class SoupResult(Result):
    """The average of several networks or adapters.

    Attributes:
        soup: Weight of each ingredient and, if there is data, held-out scores.
        model: Model with the averaged weights; `None` if files or adapters were averaged without evaluation.
        fill: Function that writes the soup to a folder.
    """

    JSON: ClassVar[Any] = Annotated[SoupJson, Fields(float)]
    JOB: ClassVar[str] = SOUP

    soup: Soup
    model: nn.Module | None = None
    fill: Callable[[Path], object] = field(repr=False)

    def tables(self) -> list[Table]:
        """Weights of the ingredients, and scores."""
        rows = [[name, *row.values()] for name, row in self.record.results["ingredients"].items()]
        header = ("ingredient", "weight", *(["held-out score"] if self.soup.ingredient_scores else []))
        others = {name: value for name, value in self.record.results.items() if name not in ("ingredients", "steps")}
        lines = [
            f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}"
            for name, value in others.items()
        ]
        return [Table(header, rows, caption="\n".join(lines))]

    def write(self, partial: Path) -> None:
        """Write a model repository: weights, card and run record."""
        self.fill(partial)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the soup as a model repository, or as an adapter; see `NetworksResult.push_to_hub`."""
        return push_saved(replace(self).save, repo_id, title=f"Soup of {len(self.soup.weights)}", **options)


def soup(networks: str | Path | Sequence[Source], **options: Any) -> SoupResult:
    """Average the weights of networks of one architecture, or of LoRA adapters of one base model.

    ```python
    found = hf_sane.soup(["run_a", "run_b", "org/run-c"], method="greedy", images="digits")
    print(found)
    found.save("soup")
    ```

    Args:
        networks: Modules, folders, files, Hub repo ids, or LoRA adapters; or one folder that contains several.
        **options: Other fields of [`SoupSettings`].

    Raises:
        ValueError: If the ingredients do not fit together, or the method requires held-out data.
    """
    return run_soup(SoupSettings(**{"output": None, "networks": networks, **options}))


def run_soup(settings: SoupSettings) -> SoupResult:
    """Average the weights of networks of one architecture, and write the average as a model folder with a card."""
    settings.register()
    record = RunRecord.start(
        seed=settings.seed,
        arguments={
            "recipe": settings.method,
            "metric": "accuracy",
            "seed": settings.seed,
            "networks": as_arguments(settings)["networks"],
        },
    )
    with optional_output(settings.output, SoupResult.JOB) as output:
        data: ImageData | TextData | None = None
        if settings.images is not None:
            data = open_images(settings.images, **settings.image_shape)
        elif settings.texts is not None:
            data = settings.open_texts(settings.networks)
        scores = _scores(data, settings)
        record.arguments |= {"metric": scores["validation"].task.metric} if scores else {}
        record.data |= {} if data is None else _describe(data)
        record.arguments |= settings.weights
        result = _cook(settings, record, scores, data)
        result.notes += scores["validation"].task.notes if scores else []
        return output.write(result)


def _cook(
    settings: SoupSettings, record: RunRecord, scores: dict[str, SplitScore], data: LabelledData | None
) -> SoupResult:
    sources: list[Any] = settings.networks
    if all(isinstance(x, str | Path) for x in sources):
        for source in sources:
            find_source(source)  # says at once that there is no such thing
        sources = [found for source in sources for found in networks_in(source, settings, described=True)]
        sources = [CheckpointSource(x, **settings.weights) for x in sources]
        if are_adapters(sources):
            return _soup_of_adapters(settings, sources, record, scores)
    if settings.rank is not None or settings.base is not None:
        raise ValueError("--rank and --base are for LoRA adapters, got checkpoints; leave them out")
    opened = open_ingredients(
        [CheckpointSource(x, **settings.weights) if isinstance(x, str | Path) else x for x in sources]
    )
    return _soup_of_checkpoints(settings, opened, record, scores, data)


def _scores(data: LabelledData | None, settings: SoupSettings) -> dict[str, SplitScore]:
    """Scores on held-out and test data; empty without data or a function."""
    if not settings.is_measured:
        return {}
    task = settings.task(data)
    return {split: SplitScore(task, split) for split in ("validation", "test")}


def _describe(data: ImageData | TextData) -> dict[str, Any]:
    kind = "texts" if isinstance(data, TextData) else "images"
    count = {split: len(data.split(split)[1]) for split in ("validation", "test")}
    return {
        kind: data.describe(),
        "held_out_split": f"validation, {count['validation']} {kind}",
        "test_split": f"{count['test']} {kind}",
    }


def _soup_of_checkpoints(
    settings: SoupSettings,
    opened: list[Ingredient],
    record: RunRecord,
    scores: dict[str, SplitScore],
    data: LabelledData | None,
) -> SoupResult:
    """Average checkpoints. Without evaluation, files of any architecture are averaged and no model is created."""
    dtype, notes = _dtype(opened)
    record.arguments |= {"dtype": dtype}
    uses = {"--images": settings.images, "--include-code": settings.include_code}
    needs = [option for option, value in uses.items() if value]
    config = complete_config(opened[0].config)
    if settings.align is None and not isinstance(config, ZooConfig):
        refuse_reordered(opened)
    own = find_architecture(opened[0].outlines) if is_own_module(opened[0].config) else None
    is_model_needed = needs or settings.align or scores or own is not None or isinstance(config, ZooConfig)
    if not is_model_needed and opened[0].folder is not None:
        record.arguments |= {"aligned": False, "recalibrated": False}
        mixer: Mixer = NamesMixer(tuple(ingredient.name for ingredient in opened))
        made = _measure(settings, mixer, record, scores)
        shares = list(made.weights.values())
        return SoupResult(
            record=record,
            notes=notes,
            soup=made,
            fill=lambda partial: save_soup_of_files(partial, opened, shares, record),
        )
    if own is not None:
        model: nn.Module = copy.deepcopy(own.structure)
        spec = own.permutations_of(opened[0].outlines) if settings.align else None
        mixed = opened if spec is None else align_ingredients(opened, spec)
    else:
        made_of = _empty_model(opened, needs)
        model, mixed = made_of, align_known(opened, made_of.config, align=settings.align)
    record.arguments |= {"aligned": any(ingredient.permutation is not None for ingredient in mixed)}
    record.arguments |= {"recalibrated": settings.condition}
    calibration = data.split("train")[0] if data is not None and settings.condition else None
    mixer = CheckpointMixer(model, mixed, calibration, settings.condition_batches, seed=settings.seed)
    made = _measure(settings, mixer, record, scores)

    def fill(partial: Path) -> object:
        return save_soup(partial, model, record, include_code=settings.include_code, files_from=opened[0].folder)

    notes += _notes_on_accuracy([ingredient.folder for ingredient in opened], made, scores)
    return SoupResult(record=record, notes=notes, soup=made, model=model, fill=fill)


def _notes_on_accuracy(folders: Sequence[Path | None], made: Soup, scores: dict[str, SplitScore]) -> list[str]:
    """A note if the ingredients are far less accurate on held-out data than their records say."""
    if made.ingredient_scores is None or scores["validation"].label != "validation_accuracy":
        return []
    measured = list(made.ingredient_scores.values())
    recorded = recorded_accuracies([str(folder) for folder in folders if folder is not None])
    return accuracy_notes(recorded, sum(measured) / len(measured))


def _measure(settings: SoupSettings, mixer: Mixer, record: RunRecord, scores: dict[str, SplitScore]) -> Soup:
    made, results = measured_soup(settings.method, mixer, scores)
    record.finish(results)
    return made


def _dtype(ingredients: list[Ingredient]) -> tuple[str, list[str]]:
    """Dtype of the soup and, if the ingredients differ in dtype, a note that names their dtypes."""
    found = {ingredient.name: str(soup_dtype([ingredient])).removeprefix("torch.") for ingredient in ingredients}
    dtype = str(soup_dtype(ingredients)).removeprefix("torch.")
    if len(set(found.values())) == 1:
        return dtype, []
    listed = ", ".join(f"{name} {value}" for name, value in found.items())
    return dtype, [f"dtypes differ ({listed}): the soup uses {dtype}, which can represent all values"]


def _empty_model(ingredients: list[Ingredient], needs: list[str]) -> PreTrainedModel:
    """A model of the ingredients' architecture, to load averages into.

    Raises:
        ValueError: If their architecture is unknown, or an option requires image classifiers.
    """
    first = ingredients[0]
    if is_own_module(first.config):
        raise ValueError(
            f"{first.name} has no config.json{' of Transformers' if first.config else ''}, so its architecture is "
            "unknown; pass the whole folder or the code of its module (--module)"
        )
    config = complete_config(first.config) if first.folder is None else load_config(first.folder)
    name, _ = auto_class(config)
    if name != AutoModelForImageClassification.__name__ and needs:
        kind = (config.architectures or [config.model_type])[0]
        raise ValueError(
            f"{' and '.join(needs)} require image classifiers, {first.name} is a {kind}; leave them out for a uniform "
            "soup, or select with your own function (--evaluate)"
        )
    model: PreTrainedModel = initial_model(getattr(transformers, name), config, dtype=soup_dtype(ingredients))
    return model.eval()


def _soup_of_adapters(
    settings: SoupSettings, sources: list[CheckpointSource], record: RunRecord, scores: dict[str, SplitScore]
) -> SoupResult:
    """Average adapters; load the average into the base model if anything is measured."""
    if settings.align or settings.condition:
        raise ValueError("adapters of one base model need neither --align nor --condition; leave both options out")
    adapters = open_adapters(sources, base_model=settings.base)
    named = adapters[0].config.get("base_model_name_or_path")
    if named is None:
        raise ValueError(f"{adapters[0].name} does not name its base model; pass it (--base)")
    if (revision := adapters[0].config.get("revision")) is not None and not Path(named).exists():
        named = f"{named}@{revision}"
    config = base_config(named)
    average_adapters(adapters, uniform_weights(adapters), rank=settings.rank)  # raises errors early
    mixer: Mixer = NamesMixer(tuple(adapter.name for adapter in adapters))
    if scores:
        is_classifier = config is not None and type(config) in AutoModelForImageClassification._model_mapping
        if config is None or (settings.images is not None and not is_classifier):
            kind = "not found" if config is None else f"a {config.model_type}"
            raise ValueError(
                f"--images requires adapters of image classifiers, their base {named} is {kind}; leave it out for a "
                "uniform soup"
            )
        mixer = AdapterMixer(load_network(named).eval(), adapters)
    made = _measure(settings, mixer, record, scores)
    averaged = average_adapters(adapters, list(made.weights.values()), rank=settings.rank)
    error = max(averaged.errors.values(), default=0.0)
    record.results |= {"rank": averaged.config["r"], "largest_relative_error_of_a_layer": error}
    if settings.rank is not None and isinstance(mixer, AdapterMixer):  # differs slightly from the selected soup
        mixer.load(averaged)
        record.results |= {score.label: score(mixer.model) for score in scores.values()}
    return SoupResult(
        record=record,
        soup=made,
        model=mixer.model if isinstance(mixer, AdapterMixer) else None,
        fill=lambda partial: save_adapter_soup(partial, averaged, config, record),
    )


__all__ = ["SoupResult", "soup"]
