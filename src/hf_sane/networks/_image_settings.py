"""Settings of images that all workflows share."""

from dataclasses import dataclass
from typing import Any

from hf_sane.records._settings import CheckedSettings, setting


@dataclass(kw_only=True)
class TrainLimitSettings(CheckedSettings):
    """Setting of networks that are trained on a part of the images."""

    train_limit: int | None = setting("Use at most this many training images.", default=None, least=1)


@dataclass(kw_only=True)
class ImageSettings(CheckedSettings):
    """Settings of images that are converted for networks that expect another shape."""

    image_size: int | None = setting("Resize the images to this many pixels.", default=None, least=1)
    image_channels: int | None = setting("Convert the images to greyscale (1) or colour (3).", default=None, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_channels not in (None, 1, 3):
            raise ValueError(f"expected image_channels 1 (greyscale) or 3 (colour), got {self.image_channels}")

    @property
    def image_shape(self) -> dict[str, Any]:
        """Keyword arguments of `load_images`."""
        return {"image_size": self.image_size, "image_channels": self.image_channels}
