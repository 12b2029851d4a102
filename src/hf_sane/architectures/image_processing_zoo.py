"""The image processor of zoo networks, which reproduces the inputs of training exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class ZooImageProcessor(BaseImageProcessor):
    """Prepare grey or colour images: crop to a square at the centre, average to `size`, and standardise.

    Training reads image files with the same functions. No processor of Transformers reproduces them, since none makes
    grey images of one channel, and their resizing depends on the installed backend. Requires Pillow, not torchvision.

    Args:
        size: Height and width in pixels; images keep their size if `None`.
        num_channels: 1 for grey images, 3 for colour.
        rescale_factor: Factor from the pixels of image files, 0 to 255, to those of training.
        image_mean: Mean of the rescaled training pixels, per channel.
        image_std: Standard deviation of the rescaled training pixels, per channel.
        **kwargs: Additional attributes that Transformers stores with a processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (as Transformers declares it)

    def __init__(
        self,
        *,
        size: int | None = None,
        num_channels: int = 3,
        rescale_factor: float = 1.0,
        image_mean: Sequence[float] = (0.0,),
        image_std: Sequence[float] = (1.0,),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.num_channels, self.rescale_factor = size, num_channels, rescale_factor
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """Prepare one image, or several of the same size.

        Args:
            images: Pillow images, or uint8 arrays `[H, W]`, `[H, W, C]` or `[C, H, W]`; one or a list.
            return_tensors: `"pt"` for tensors, `"np"` for arrays; lists if `None`.

        Returns:
            `pixel_values`: `[B, C, size, size]` float32.
        """
        given = list(images) if isinstance(images, list | tuple) else [images]
        pixels = [read_pixels(image, num_channels=self.num_channels, size=self.size) for image in given]
        scaled = [image if self.rescale_factor == 1 else image * self.rescale_factor for image in pixels]
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.image_mean, self.image_std))
        return BatchFeature({"pixel_values": [standardize(image, mean, std) for image in scaled]}, return_tensors)


def read_pixels(image: Any, *, num_channels: int, size: int | None) -> Tensor:
    """Read pixels `[C, H, W]` float32, from 0 to 255, of a Pillow image or an array.

    Args:
        image: Image, which is rotated according to its EXIF data, with transparency and palettes resolved.
        num_channels: 1 for grey, 3 for colour.
        size: Size in pixels to which to average a square crop at the centre; the image keeps its size if `None`.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        image = Image.fromarray(_channels_last(np.asarray(image)))
    shown = ImageOps.exif_transpose(image).convert("RGB")  # like pipelines of Transformers
    array = np.array(shown.convert("L") if num_channels == 1 else shown, dtype=np.float32)
    pixels = torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))
    return pixels if size is None else fit_square(pixels, size)


def fit_square(pixels: Tensor, size: int) -> Tensor:
    """Crop pixels `[..., C, H, W]` to a square at the centre, and average its areas to `size x size` pixels."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[..., top : top + side, left : left + side]
    if side == size:
        return square
    batch = square.reshape(-1, *square.shape[-3:])
    return F.interpolate(batch, size=(size, size), mode="area").reshape(*square.shape[:-2], size, size)


def standardize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute `(pixels - mean) / std` as float32; mean and standard deviation `[C]` are float64."""
    return ((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).float()


def _channels_last(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ValueError(f"expected pixels as uint8, 0 to 255, got {array.dtype}; convert them, or pass Pillow images")
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


# Registered with Transformers as the same class whether or not torchvision is installed.
BACKENDS = {"pil": ZooImageProcessor, "torchvision": ZooImageProcessor}

__all__ = ["ZooImageProcessor"]
