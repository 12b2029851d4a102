"""Build a zoo: train many networks, store each at several epochs, and align them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict

from hf_sane.networks._images import ImageData
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import setting
from hf_sane.workflows.shared import temporary_folder
from hf_sane.workflows.show_zoo import ZooResult
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building import _build as build
from hf_sane.zoo.building._settings import RECIPES, ZooSettings


@strict
@dataclass(kw_only=True)
class BuildZooSettings(ZooSettings):
    """Settings of [`build_zoo`]: those of the zoo, and its output folder."""

    output: str | Path = setting(
        "Folder of the zoo; it may hold other zoos under other names.", short="-o", formerly="--output_dir"
    )
    config: str = setting("Name of the zoo in the folder.", default="default")
    recipe: Literal["seed", "hyperparameter"] | None = setting(
        "Start from other defaults: 'seed' (networks that differ in their seed) or 'hyperparameter' (in everything).",
        default=None,
    )

    @classmethod
    def from_options(cls, **given: Any) -> Self:
        """Settings with the defaults of a recipe, if one is given."""
        return cls(**{**RECIPES.get(given.get("recipe"), {}), **given})


def build_zoo(images: str | Path | ImageData = "digits", *, output: str | Path | None = None, **options: Any) -> Zoo:
    """Train many networks and save them as a zoo; repeat an interrupted call to continue it.

    ```python
    zoo = hf_sane.build_zoo("digits", recipe="hyperparameter", num_models=100, epochs=10, output="zoo")
    ```

    Args:
        images: Images from [`load_images`], or a source for it: `"digits"`, a folder, a file, a Hub dataset.
        output: Folder of the zoo; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`BuildZooSettings`].

    Returns:
        The zoo, aligned.

    Raises:
        ValueError: If settings do not fit the images, or the folder holds a build with other settings.
        FileExistsError: If the folder holds something else.
    """
    data = images if isinstance(images, ImageData) else None
    named = {} if isinstance(images, ImageData) else {"images": str(images)}
    place = output or temporary_folder("zoo")
    return run_build_zoo(BuildZooSettings.from_options(output=place, **named, **options), data=data).zoo


def run_build_zoo(settings: BuildZooSettings, *, data: ImageData | None = None) -> ZooResult:
    """Train many networks and save them as a zoo; an interrupted build continues where it stopped.

    Args:
        settings: Settings of the zoo, and its output folder.
        data: Images to use instead of those named in the settings.
    """
    zoo = build.build_zoo(settings, data, settings.output, config=settings.config)
    record = zoo.run_record or RunRecord.start(seed=settings.seed, arguments=settings.to_dict())
    return ZooResult(record=record, output=Path(settings.output), zoo=zoo)


__all__ = ["BuildZooSettings", "build_zoo"]
