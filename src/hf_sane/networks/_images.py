"""Image classification data: three fixed splits of standardised tensors, from any source."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_sane.architectures.image_processing_zoo import fit_square, standardize
from hf_sane.networks._image_arrays import npz_parts
from hf_sane.networks._image_folders import folder_parts
from hf_sane.networks._image_sources import SPLITS, WHITE, Part, check_classes, digits_parts, numbered_from_zero
from hf_sane.networks._labelled_datasets import dataset_name, dataset_parts, hub_parts, is_dataset, open_dataset
from hf_sane.records._errors import name_some
from hf_sane.records._sources import HubRepo, find_source, parse_source

logger = logging.getLogger(__name__)

PARTS = ("images", "labels")
DIGITS_SIZES = {"validation": 297, "test": 500}  # of 1,797, so that 1,000 are left for training
MIN_PER_CLASS = 5  # images per class that messages suggest
LUMINANCE = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R 601), as in Pillow and the image processor
DEFAULT_SHARE = 0.15  # share to split off if there is no validation or test split


class TrainedOnImages(Protocol):
    """Anything that describes the images that networks were trained on, such as the facts of a zoo."""

    @property
    def name(self) -> str:
        """Name of the images."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Settings of the training."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """Images and labels in three splits, with pixels standardised by the statistics of the training split.

    Attributes:
        name: Name in cards and columns.
        train_images: `[n, C, H, W]` float32.
        train_labels: `[n]` int64 in `[0, K)`.
        validation_images: Like `train_images`; used for selection, such as of sampled networks or the bandwidth.
        validation_labels: Like `train_labels`.
        test_images: Like `train_images`; used only for reported results.
        test_labels: Like `train_labels`.
        num_classes: `K`.
        class_names: Names of the classes; may be empty.
        mean: Mean of the raw training pixels, per channel: `standardised = (raw - mean) / std`.
        std: Standard deviation per channel; 1 if all pixels are equal.
        white: Raw value of a white pixel.

    Raises:
        ValueError: If a split is empty, the numbers of images and labels differ, or a label is outside
            `[0, K)`.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    white: float = WHITE

    def __post_init__(self) -> None:
        for split in SPLITS:
            images, labels = self.split(split)
            if not len(images):
                raise ValueError(f"{self.name}: the {split} split is empty; expected at least one image per split")
            if images.ndim != 4 or len(images) != len(labels) or images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"{self.name}: expected {split} images [n, {', '.join(map(str, self.train_images.shape[1:]))}] "
                    f"with one label each, got images {list(images.shape)} and labels {list(labels.shape)}"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{self.name}: {split} labels must lie in [0, {self.num_classes}), got {low} to {high}; number "
                    "classes from 0, without gaps"
                )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(self.split(name)[0])}" for name in SPLITS)
        shape = "x".join(map(str, self.train_images.shape[1:]))
        return f"ImageData({self.name!r}, {sizes}, images of {shape}, {self.num_classes} classes)"

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError: If the name is unknown.
        """
        if name not in SPLITS:
            raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {name!r}")
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

    @property
    def num_channels(self) -> int:
        """Channels of an image, `C`."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image.

        Raises:
            ValueError: If the images are not square.
        """
        height, width = self.train_images.shape[2:]
        if height != width:
            raise ValueError(f"{self.name}: expected square images, got {height}x{width}; crop or resize them")
        return height

    def describe(self) -> dict[str, Any]:
        """Facts about the images for records and cards: name, size, statistics of the raw pixels, images per split."""
        counts = {split: len(self.split(split)[1]) for split in SPLITS}
        statistics = {"white": self.white, "mean": list(self.mean), "std": list(self.std)}
        named = {"classes": list(self.class_names)} if self.class_names else {}
        height, width = self.train_images.shape[2:]
        size = height if height == width else [height, width]
        return {"name": self.name, "image_size": size, **statistics, **counts, **named}

    def to(self, device: str | torch.device) -> "ImageData":
        """Move the data to a device."""
        moved = {f"{split}_{part}": getattr(self, f"{split}_{part}").to(device) for split in SPLITS for part in PARTS}
        return replace(self, **moved)

    def with_channels(self, num_channels: int) -> "ImageData":
        """Convert greyscale images to colour, with equal channels, or colour images to greyscale, by luminance.

        Raises:
            ValueError: If the number of channels is neither 1 nor 3.
        """
        if num_channels == self.num_channels:
            return self
        if {num_channels, self.num_channels} != {1, 3}:
            raise ValueError(
                f"{self.name}: expected images of {num_channels} channels, got {self.num_channels}; convert the files"
            )
        if num_channels == 1:
            logger.warning("%s: colour images are converted to greyscale, by luminance", self.name)
            return self._in_grey()
        images: dict[str, Any] = {
            f"{split}_images": self.split(split)[0].expand(-1, num_channels, -1, -1).contiguous() for split in SPLITS
        }
        return replace(self, **images, mean=self.mean * num_channels, std=self.std * num_channels)

    def _in_grey(self) -> "ImageData":
        mean, std, weights = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std, LUMINANCE))
        grey = {
            split: ((self.split(split)[0].cpu() * std + mean) * weights).sum(dim=1, keepdim=True) for split in SPLITS
        }
        moments = _moments(grey["train"])
        device = self.train_images.device
        images: dict[str, Any] = {
            f"{split}_images": standardize(part, *moments).to(device) for split, part in grey.items()
        }
        return replace(self, **images, mean=tuple(moments[0].tolist()), std=tuple(moments[1].tolist()))

    def resized(self, size: int) -> "ImageData":
        """Resize images to `size x size` pixels by area averaging, and standardise them again.

        Networks can then be trained on images of another size than those of their original task.

        Raises:
            ValueError: If `size` is below 1, or the images are not square.
        """
        if size < 1:
            raise ValueError(f"{self.name}: expected a size of at least 1 pixel, got {size}")
        if size == self.image_size:
            return self
        before = {split: self.split(split)[0].cpu() for split in SPLITS}
        pixels = {split: fit_square(images, size) for split, images in before.items()}
        mean, std = _moments(pixels["train"])
        device = self.train_images.device
        images = {f"{split}_images": standardize(part, mean, std).to(device) for split, part in pixels.items()}
        # The pixels are already standardised.
        old_mean, old_std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        moments = {"mean": tuple((old_mean + old_std * mean).tolist()), "std": tuple((old_std * std).tolist())}
        changed: dict[str, Any] = {**images, **moments}
        return replace(self, **changed)


def load_images(
    source: str | Path | datasets.Dataset | datasets.DatasetDict,
    *,
    name: str | None = None,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    test_limit: int | None = None,
    image_size: int | None = None,
    image_channels: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Load image classification data and split it reproducibly.

    Missing splits are drawn at random with a fixed seed: the validation split from the training split (15%) and, for
    a source with only one split, also the test split (15%). The digits are split into 1,000 / 297 / 500.

    Args:
        source: `"digits"` (scikit-learn's, 8x8); a folder of image files by class; a dataset on
            the Hub, `owner/name`, or a folder of `save_to_disk` or of parquet files; an `.npz` file with
            `train_images` `[n, H, W]` or `[n, H, W, C]`, `train_labels` `[n]` (or `x_train`, `y_train`), and
            optionally the same for `test` and `validation` (or, instead of images, `train_jpeg`, a uint8 blob, with
            `train_offsets` `[n + 1]`); or a `datasets` object with an image column (PIL images or arrays) and a label
            column (indices, `ClassLabel` or texts).
        name: Name of the data in cards and columns; if `None`, it is derived from the source.
        train_limit: Use at most this many training images, drawn at random; only these are decoded.
        validation_limit: Use at most this many validation images.
        test_limit: Use at most this many test images.
        image_size: Resize images to this many pixels, see [`ImageData.resized`].
        image_channels: Convert images to greyscale (1) or colour (3), see [`ImageData.with_channels`].
        seed: Random seed for splits and draws.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If a column of a dataset is missing.
        InvalidFileError: If a file is damaged or lacks arrays.
        TypeError: If `source` has another type.
        ValueError: If a split is empty, a limit is below 1, labels are not class indices, or images differ in shape.
    """
    limits = {"train": train_limit, "validation": validation_limit, "test": test_limit}
    if bad := {split: limit for split, limit in limits.items() if limit is not None and limit < 1}:
        raise ValueError(f"limits must be at least 1, got {bad}; use None for all images")
    sizes: Mapping[str, int] = {}
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        parts, label = dataset_parts(source, image_size), "dataset"
    elif str(source) == "digits":
        parts, label, sizes = digits_parts(), "digits", DIGITS_SIZES
    elif isinstance(source, str | Path):
        parts, label = _named_parts(source, image_size, image_channels)
    else:
        raise TypeError(
            f"expected 'digits', a folder of images, an .npz file, a dataset on the Hub or a datasets object, got "
            f"{type(source).__name__}"
        )
    data = _assemble(name or label, parts, sizes, limits, seed)
    data = data if image_size is None else data.resized(image_size)
    return data if image_channels is None else data.with_channels(image_channels)


def _named_parts(source: str | Path, size: int | None, channels: int | None) -> tuple[dict[str, Part], str]:
    """Images from a folder, a file or a dataset on the Hub, and their name."""
    place = parse_source(source)
    if isinstance(place, HubRepo):
        find_source(source, repo_type="dataset")  # raises an error if neither a path nor a repository exists
        return hub_parts(place, size), place.repo_id.rpartition("/")[2]
    if is_dataset(place):
        loaded = open_dataset(place, "a dataset of images and labels")
        return dataset_parts(loaded, size), dataset_name(place)
    if place.is_dir():
        return folder_parts(place, size, channels), place.resolve().name
    return npz_parts(place), place.stem


def load_zoo_images(facts: TrainedOnImages, *, path: str | Path | None = None) -> ImageData:
    """Load the images that a zoo's networks were trained on, in the same number and size.

    Args:
        facts: Facts about the zoo.
        path: Path of the image file, if it differs from the path in the zoo.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the zoo does not name its images, since it was imported or mixed.
    """
    arguments = facts.arguments
    if "images" not in arguments:
        raise ValueError(
            f"the zoo {facts.name!r} does not name the images it was trained on; pass them (--images, load_images())"
        )
    limits: dict[str, Any] = {f"{split}_limit": arguments.get(f"{split}_limit") for split in SPLITS}
    limits |= {name: arguments.get(name) for name in ("image_size", "image_channels")}
    return load_images(path or arguments["images"], **limits)


def _assemble(
    name: str, parts: dict[str, Part], sizes: Mapping[str, int], limits: Mapping[str, int | None], seed: int
) -> ImageData:
    parts = numbered_from_zero(name, parts)
    chosen = choose_splits(name, parts, sizes, seed)
    check_classes(name, parts["train"])
    names = parts["train"].class_names
    fetched, labels = {}, {}
    for split in SPLITS:
        origin, indices = chosen[split]
        indices = np.sort(indices[: limits[split]])
        fetched[split] = parts[origin].fetch(indices)
        labels[split] = torch.from_numpy(parts[origin].labels[indices].astype(np.int64))
    pixels = {split: _channels_first(name, values) for split, values in fetched.items()}
    mean, std = _moments(pixels["train"])
    tensors = {f"{split}_images": standardize(pixels[split], mean, std) for split in SPLITS}
    return ImageData(
        name=name,
        **tensors,
        **{f"{split}_labels": labels[split] for split in SPLITS},
        num_classes=max(len(names), *(1 + int(part.labels.max()) for part in parts.values())),
        class_names=names,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        white=parts["train"].white or _white(fetched["train"]),
    )


def _white(pixels: np.ndarray) -> float:
    """Value of a white pixel in an array: the largest of its integer type, if that is unsigned, or 1 or 255."""
    if pixels.dtype.kind == "u":
        return float(np.iinfo(pixels.dtype).max)
    return 1.0 if pixels.dtype.kind in "bf" and pixels.max() <= 1 else WHITE


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[C]` float64 per channel; the latter is 1 if all pixels are equal."""
    # NumPy sums in one thread. The last digits of torch's sums, and hence the digest of the images, depend on the
    # number of threads: an interrupted build could then be continued only with as many threads.
    values = pixels.numpy().astype(np.float64)
    mean, std = (torch.from_numpy(moment(values, axis=(0, 2, 3))) for moment in (np.mean, np.std))
    return mean, torch.where(std > 0, std, 1.0)


def choose_splits(
    name: str, parts: Mapping[str, Part], sizes: Mapping[str, int], seed: int
) -> dict[str, tuple[str, np.ndarray]]:
    """Choose, for every split, the source split and the order in which images are taken from it."""
    counts = {split: len(part.labels) for split, part in parts.items()}
    if empty := [split for split, count in counts.items() if not count]:
        raise ValueError(f"{name}: no examples in {empty}; expected at least one per split")
    generator = np.random.default_rng(seed)
    orders = {split: generator.permutation(counts[split]) for split in SPLITS if split in counts}
    if parts["train"].is_stratified and len(parts) < len(SPLITS):
        orders["train"] = _interleaved(orders["train"], parts["train"].labels)
    chosen = {split: (split, order) for split, order in orders.items()}
    for split in ("test", "validation"):
        if split not in chosen:
            origin, order = chosen["train"]
            size = sizes.get(split, max(1, round(DEFAULT_SHARE * counts["train"])))
            if len(order) <= size:
                raise ValueError(
                    f"{name}: {counts['train']} examples are too few to split off a {split} split; add more"
                )
            chosen[split] = (origin, order[:size])
            chosen["train"] = (origin, order[size:])
    origin, order = chosen["train"]
    if parts["train"].is_stratified:
        labels, names = parts["train"].labels, parts["train"].class_names
        if missing := sorted(set(labels.tolist()) - set(labels[order].tolist())):
            raise ValueError(
                f"{name}: after validation and test images were split off, no training image is left of "
                f"{name_some(names[index] for index in missing)}; add at least {MIN_PER_CLASS} images of each class, "
                "or folders train, validation and test"
            )
        for split in ("validation", "test"):
            origin, order = chosen[split]
            if missing := sorted(set(labels.tolist()) - set(parts[origin].labels[order].tolist())):
                named = name_some(names[index] for index in missing)
                logger.warning("%s: the %s split has no image of %s; add more images", name, split, named)
    return chosen


def _interleaved(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder images so that classes alternate, and any leading part contains all classes in equal shares."""
    ranks = np.zeros(len(order), dtype=np.float64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        ranks[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(ranks[order], kind="stable")]


def _channels_first(name: str, pixels: np.ndarray) -> Tensor:
    """Convert `[n, H, W]` or `[n, H, W, C]` (or `[n, C, H, W]` with `C` 1 or 3) to float32 `[n, C, H, W]`."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        pixels = np.moveaxis(pixels, -1, 1)
    elif pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"{name}: expected images [n, H, W] or [n, H, W, C] with 1 or 3 channels, got {pixels.shape}")
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"{name}: expected numeric pixels, got {pixels.dtype}; pass real numbers")
    values = np.ascontiguousarray(pixels, dtype=np.float32)
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        finite = values[np.isfinite(values)]
        found = f"values from {finite.min()} to {finite.max()}" if finite.size else "none"
        if others := values.size - finite.size:
            found += f" (NaN or infinite values: {others:,} of {values.size:,})"
        raise ValueError(
            f"{name}: expected finite pixels >= 0, got {found}; pass raw images, not standardised ones, and leave out "
            "broken ones, or judge networks by a function that prepares images as in training (evaluate=my_metric, "
            "--evaluate my_file.py:my_metric)"
        )
    return torch.from_numpy(values)
