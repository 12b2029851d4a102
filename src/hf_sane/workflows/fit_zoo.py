"""Fit a zoo of implicit networks: one network for each image, whose weights are the image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_sane.networks._images import ImageData
from hf_sane.records._progress import quietly
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.results import report_writer
from hf_sane.workflows.shared import temporary_folder
from hf_sane.workflows.show_zoo import ZooResult
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import NewZooSettings
from hf_sane.zoo.building import _fields as building
from hf_sane.zoo.building._fields import FieldSettings


@strict
@dataclass(kw_only=True)
class FitZooSettings(FieldSettings, NewZooSettings):
    """Settings of [`fit_zoo`]: the networks, and the output folder."""


def fit_zoo(images: str | Path | ImageData = "digits", *, output: str | Path | None = None, **options: Any) -> Zoo:
    """Fit an implicit network (SIREN) to each image; repeat the call to continue an interrupted fit.

    ```python
    zoo = hf_sane.fit_zoo("mnist.npz", train_limit=20_000, output="fields")
    zoo.splits["test"].column("label"), zoo.splits["test"].column("psnr")
    zoo.splits["test"].model(0)(positions)  # values of the image at positions [..., 2] in [-1, 1]
    ```

    Args:
        images: Images from [`load_images`], or a source for it: `"digits"`, a folder, a file, a Hub dataset.
        output: Folder of the zoo; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`FitZooSettings`].

    Returns:
        The zoo, in the splits of the images.

    Raises:
        ValueError: If the folder holds networks with other settings.
        FileExistsError: If the folder holds something else.
    """
    data = images if isinstance(images, ImageData) else None
    name = data.name if data is not None else str(images)
    settings = FitZooSettings(output=output or temporary_folder("zoo"), images=name, **options)
    return run_fit_zoo(settings, data=data).zoo


def run_fit_zoo(settings: FitZooSettings, *, data: ImageData | None = None) -> ZooResult:
    """Fit an implicit network (SIREN) to each image, and save the networks as a zoo.

    Repeat the command to continue an interrupted fit.

    Args:
        settings: Settings of the zoo, and its output folder.
        data: Images to use instead of those named in the settings.
    """

    def result(zoo: Zoo) -> ZooResult:
        record = zoo.run_record or RunRecord.start(seed=settings.seed, arguments=settings.to_dict())
        return ZooResult(record=record, output=Path(settings.output), zoo=zoo)

    with quietly(not settings.progress_bar):
        describe = report_writer(result)
        return result(building.fit_zoo(settings, data, settings.output, config=settings.zoo_config, describe=describe))


__all__ = ["fit_zoo"]
