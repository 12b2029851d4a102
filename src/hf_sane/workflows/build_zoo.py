"""Build a zoo: train many networks, store each at several epochs, and align them to a reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import datasets
from huggingface_hub.dataclasses import strict

from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._tasks import LabelledData
from hf_sane.records._processes import current_processes, joined_processes
from hf_sane.records._progress import quietly
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.workflows.judging import TextSettings
from hf_sane.workflows.results import report_writer
from hf_sane.workflows.shared import temporary_folder
from hf_sane.workflows.show_zoo import ZooResult
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import NewZooSettings
from hf_sane.zoo.building import _build as build
from hf_sane.zoo.building._settings import OF_PRESETS, RECIPES, ZooSettings


@strict
@dataclass(kw_only=True)
class BuildZooSettings(ZooSettings, NewZooSettings, TextSettings):
    """Settings of [`build_zoo`]: the zoo, optional texts to train on instead of images, and the output folder."""

    recipe: Literal["seed", "hyperparameter"] | None = setting(
        "Recipe that sets the defaults: 'seed' (networks differ only in their seed) or 'hyperparameter' (networks "
        "also differ in hyper-parameters).",
        default=None,
    )

    def validate_texts(self) -> None:
        """Check that texts come with a module and a tokenizer, and without settings that apply to images only."""
        if self.texts is None:
            return
        if self.module is None:
            raise ValueError("expected a module that reads the texts, got none; name it (--module)")
        limits = ("validation_limit", "test_limit", "image_size", "image_channels")
        if given := [name for name in limits if getattr(self, name) is not None]:
            raise ValueError(f"texts have no {', '.join(given)}; leave them out")

    def to_dict(self) -> dict[str, Any]:
        """Settings of the zoo, with texts in place of images if it is trained on them."""
        known = super().to_dict()
        if self.texts is None:
            return known
        texts = {name: value for name, value in as_arguments(self, TextSettings).items() if value is not None}
        return {name: value for name, value in known.items() if name != "images"} | texts

    @classmethod
    def from_options(cls, **given: Any) -> Self:
        """Settings with the defaults of the recipe, if one is given, except for what the user's own module decides."""
        own = OF_PRESETS if given.get("module") is not None else {}
        recipe = {name: value for name, value in RECIPES.get(given.get("recipe"), {}).items() if name not in own}
        return cls(**{**recipe, **given})


def build_zoo(
    images: str | Path | ImageData | datasets.Dataset | datasets.DatasetDict = "digits",
    *,
    output: str | Path | None = None,
    **options: Any,
) -> Zoo:
    """Train many networks and save them as a zoo; repeat the call to continue an interrupted build.

    ```python
    zoo = hf_sane.build_zoo("digits", recipe="hyperparameter", num_models=100, epochs=10, output="zoo")
    zoo = hf_sane.build_zoo("my_images", module=MyCNN, num_models=100, epochs=10, output="my_zoo")
    ```

    Pass `module=`, a class or function that makes a module, to train networks of your own. They are trained stacked
    (`torch.func`) or, if that fails, one after the other, which is logged. With `texts=` and `tokenizer=` they are
    trained on texts instead of images.

    Args:
        images: Images from [`load_images`], or a source for it: `"digits"`, a folder, a file, a Hub dataset, a
            `datasets` object.
        output: Folder of the zoo; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`BuildZooSettings`].

    Returns:
        The zoo, which is aligned unless the module cannot be traced.

    Raises:
        ValueError: If settings do not fit the images, or the folder holds a build with different settings.
        FileExistsError: If the folder holds something else.
    """
    if isinstance(images, datasets.Dataset | datasets.DatasetDict):
        limits = ("train_limit", "validation_limit", "test_limit", "image_size", "image_channels")
        images = load_images(images, **{name: options[name] for name in limits if name in options})
    data = images if isinstance(images, ImageData) else None
    named = {} if data is not None else {"images": str(images)}
    place = output or temporary_folder("zoo")
    return run_build_zoo(BuildZooSettings.from_options(output=place, **named, **options), data=data).zoo


def run_build_zoo(settings: BuildZooSettings, *, data: LabelledData | None = None) -> ZooResult:
    """Train many networks of a built-in architecture or of your own module, and save them as a zoo.

    Repeat the command to continue an interrupted build. Networks of your own module (--module) are trained stacked if
    torch.vmap supports it, otherwise one after the other.

    Args:
        settings: Settings of the zoo, and its output folder.
        data: Images or texts to use instead of those named in the settings.
    """
    if settings.texts is not None:
        data = settings.open_texts([], train_limit=settings.train_limit)

    def result(zoo: Zoo) -> ZooResult:
        record = zoo.run_record or RunRecord.start(seed=settings.seed, arguments=settings.to_dict())
        is_silent = not current_processes().is_main
        return ZooResult(record=record, output=Path(settings.output), zoo=zoo, is_silent=is_silent)

    with quietly(not settings.progress_bar), joined_processes():
        describe = report_writer(result)
        return result(build.build_zoo(settings, data, settings.output, config=settings.zoo_config, describe=describe))


__all__ = ["build_zoo"]
