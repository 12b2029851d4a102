"""Image classification data as zoos need it: three fixed splits of standardised tensors, from wherever images come."""

import errno
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_sane.records._errors import InvalidFileError, reading

SPLITS = ("train", "validation", "test")
PARTS = ("images", "labels")
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
DIGITS_SIZES = {"validation": 297, "test": 500}  # of 1,797; 1,000 are left to train on
DEFAULT_SHARE = 0.15  # of a set that comes without a validation or test split


class TrainedOnImages(Protocol):
    """What says which images networks were trained on, such as the facts of a zoo."""

    @property
    def name(self) -> str:
        """Name of the images."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Settings of its training."""


@dataclass(frozen=True, slots=True)
class ImageData:
    """Images and labels in three splits; the pixels are standardised with the statistics of the training split.

    Attributes:
        name: What cards and columns call it.
        train_images: `[n, C, H, W]` float32.
        train_labels: `[n]` int64 in `[0, K)`.
        validation_images: As `train_images`; for choices (which sampled networks to keep, which bandwidth).
        validation_labels: As `train_labels`.
        test_images: As `train_images`; for reported figures only.
        test_labels: As `train_labels`.
        num_classes: `K`.
        mean: Per channel, of the raw training pixels: `standardised = (raw - mean) / std`.
        std: Per channel; 1 where all pixels are equal.

    Raises:
        ValueError: If a split is empty, its images and labels do not belong together, or a label lies outside
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
                    f"{self.name}: {split} labels must lie in [0, {self.num_classes}), got {low} to {high}; count "
                    "classes from 0, without gaps"
                )

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of `"train"`, `"validation"` or `"test"`.

        Raises:
            ValueError: For another name.
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
            raise ValueError(
                f"{self.name}: zoo networks need square images, got {height}x{width}; crop or resize them"
            )
        return height

    def describe(self) -> dict[str, Any]:
        """What records and cards say about the images: name, size, statistics of the raw pixels, images per split."""
        counts = {split: len(self.split(split)[1]) for split in SPLITS}
        statistics = {"mean": list(self.mean), "std": list(self.std)}
        return {"name": self.name, "image_size": self.image_size, **statistics, **counts}

    def to(self, device: str | torch.device) -> "ImageData":
        """The same data on another device."""
        moved = {f"{split}_{part}": getattr(self, f"{split}_{part}").to(device) for split in SPLITS for part in PARTS}
        return replace(self, **moved)

    def resized(self, size: int) -> "ImageData":
        """The same data with images of `size x size` pixels, each the mean of the area it covers, standardised anew.

        So that networks of one input shape can be trained on the images of another task.

        Raises:
            ValueError: If `size` is below 1, or the images are not square.
        """
        if size < 1:
            raise ValueError(f"{self.name}: expected a size of at least 1 pixel, got {size}")
        if size == self.image_size:
            return self
        before = {split: self.split(split)[0].cpu() for split in SPLITS}
        pixels = {split: F.interpolate(images, size=(size, size), mode="area") for split, images in before.items()}
        mean, std = _moments(pixels["train"])
        shown, spread = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        device = self.train_images.device
        images = {f"{split}_images": ((part - shown) / spread).float().to(device) for split, part in pixels.items()}
        # These pixels were standardised before.
        old_mean, old_std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        moments = {"mean": tuple((old_mean + old_std * mean).tolist()), "std": tuple((old_std * std).tolist())}
        changed: dict[str, Any] = {**images, **moments}
        return replace(self, **changed)


Fetch = Callable[[np.ndarray], np.ndarray]  # int64 [k] -> pixels [k, H, W] or [k, H, W, C]


MAX_CLASSES = 2**16  # the classifier has a row for each: a stray index would make it huge
REMEDY = "see load_images() for the format"
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    RuntimeError,
    struct.error,
)  # what NumPy raises for a damaged archive


@dataclass(frozen=True, slots=True)
class _Part:
    """Images of one source split that are read, or decoded, only when chosen."""

    labels: np.ndarray  # [n] integers
    fetch: Fetch


def load_images(
    source: str | Path | datasets.Dataset | datasets.DatasetDict,
    *,
    name: str | None = None,
    train_limit: int | None = None,
    validation_limit: int | None = None,
    test_limit: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Read image classification data and split it, the same way every time.

    What a source lacks is cut off at random, with a fixed seed: the validation split from the training split (15 %),
    and of a source that has one split only, the test split too (15 %). The digits are cut into 1,000 / 297 / 500.

    Args:
        source: `"digits"` (scikit-learn's, 8x8); a path to an `.npz` file with `train_images` `[n, H, W]` or
            `[n, H, W, C]`, `train_labels` `[n]`, the same for `test` and perhaps `validation` (or, in place of images,
            `train_jpeg`, a uint8 blob, with `train_offsets` `[n + 1]`); or a `datasets` object with an image column
            (PIL images or arrays) and a label column.
        name: What cards and columns call the data; taken from the source when `None`.
        train_limit: Use at most so many training images; a fair draw, and only these are decoded.
        validation_limit: The same for validation.
        test_limit: The same for the test split.
        image_size: Resize to so many pixels, see [`ImageData.resized`].
        seed: Of the splits and draws.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If columns of a dataset are missing.
        InvalidFileError: If a file is damaged or lacks arrays.
        TypeError: If `source` is something else.
        ValueError: For empty splits, limits below 1, labels that are no class indices, or images of several shapes.
    """
    limits = {"train": train_limit, "validation": validation_limit, "test": test_limit}
    if bad := {split: limit for split, limit in limits.items() if limit is not None and limit < 1}:
        raise ValueError(f"limits must be at least 1, got {bad}; use None for all images")
    sizes: Mapping[str, int] = {}
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        parts, label = _dataset_parts(source), "dataset"
    elif str(source) == "digits":
        parts, label, sizes = _digits_parts(), "digits", DIGITS_SIZES
    elif isinstance(source, str | Path):
        parts, label = _npz_parts(Path(source)), Path(source).stem
    else:
        raise TypeError(f"expected 'digits', a path to an .npz file or a datasets object, got {type(source).__name__}")
    data = _assemble(name or label, parts, sizes, limits, seed)
    return data if image_size is None else data.resized(image_size)


def load_zoo_images(facts: TrainedOnImages, *, path: str | Path | None = None) -> ImageData:
    """The images that the networks of a zoo were trained on: as many of them, and in that size.

    Args:
        facts: Of the zoo.
        path: Where their file is now, if not where the zoo says.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If the zoo does not say: it was imported, or mixed from others.
    """
    arguments = facts.arguments
    if "images" not in arguments:
        raise ValueError(
            f"the zoo {facts.name!r} does not say what images it was trained on; name them (--images, load_images())"
        )
    limits: dict[str, Any] = {f"{split}_limit": arguments.get(f"{split}_limit") for split in SPLITS}
    return load_images(path or arguments["images"], image_size=arguments.get("image_size"), **limits)


def _assemble(
    name: str, parts: dict[str, _Part], sizes: Mapping[str, int], limits: Mapping[str, int | None], seed: int
) -> ImageData:
    chosen = _choose(name, {split: len(part.labels) for split, part in parts.items()}, sizes, seed)
    pixels, labels = {}, {}
    for split in SPLITS:
        origin, indices = chosen[split]
        indices = np.sort(indices[: limits[split]])
        pixels[split] = _channels_first(name, parts[origin].fetch(indices))
        labels[split] = torch.from_numpy(parts[origin].labels[indices].astype(np.int64))
    mean, std = _moments(pixels["train"])
    tensors = {
        f"{split}_images": ((pixels[split] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).float() for split in SPLITS
    }
    return ImageData(
        name=name,
        **tensors,
        **{f"{split}_labels": labels[split] for split in SPLITS},
        num_classes=1 + max(int(part.labels.max()) for part in parts.values()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[C]` float64 per channel; 1 where all pixels are equal."""
    # NumPy adds in one thread. The last digits of torch's sums depend on the number of threads, and the digest of the
    # images with them: a build that was interrupted could then be continued only with as many threads.
    values = pixels.numpy().astype(np.float64)
    mean, std = (torch.from_numpy(moment(values, axis=(0, 2, 3))) for moment in (np.mean, np.std))
    return mean, torch.where(std > 0, std, 1.0)


def _choose(
    name: str, counts: dict[str, int], sizes: Mapping[str, int], seed: int
) -> dict[str, tuple[str, np.ndarray]]:
    """For every split, the source split it comes from and the order in which images are taken."""
    if empty := [split for split, count in counts.items() if not count]:
        raise ValueError(f"{name}: no images in {empty}; expected at least one per split")
    generator = np.random.default_rng(seed)
    orders = {split: generator.permutation(counts[split]) for split in SPLITS if split in counts}
    chosen = {split: (split, order) for split, order in orders.items()}
    for split in ("test", "validation"):
        if split not in chosen:
            origin, order = chosen["train"]
            size = sizes.get(split, max(1, round(DEFAULT_SHARE * counts["train"])))
            if len(order) <= size:
                raise ValueError(f"{name}: {counts['train']} images are too few to cut off a {split} split; give more")
            chosen[split] = (origin, order[:size])
            chosen["train"] = (origin, order[size:])
    return chosen


def _channels_first(name: str, pixels: np.ndarray) -> Tensor:
    """`[n, H, W]` or `[n, H, W, C]` (or `[n, C, H, W]` with `C` 1 or 3) to float32 `[n, C, H, W]`."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        pixels = np.moveaxis(pixels, -1, 1)
    elif pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"{name}: expected images [n, H, W] or [n, H, W, C] with 1 or 3 channels, got {pixels.shape}")
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"{name}: expected pixels that are numbers, got {pixels.dtype}; pass real numbers")
    values = np.ascontiguousarray(pixels, dtype=np.float32)
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        raise ValueError(
            f"{name}: expected finite pixels >= 0, got values from {values.min()} to {values.max()}; pass images as "
            "they are, without standardising them, and leave out broken ones"
        )
    return torch.from_numpy(values)


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: expected one integer class index per image, got {labels.dtype} {labels.shape}")
    if labels.size and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise ValueError(
            f"{name}: expected class indices from 0 to {MAX_CLASSES - 1}, got {labels.min()} to {labels.max()}; "
            "number the classes from 0"
        )
    return labels


def _digits_parts() -> dict[str, _Part]:
    from sklearn.datasets import load_digits  # optional: the `analysis` extra

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8)
    return {"train": _Part(labels, lambda indices: images[indices])}


def _npz_parts(path: Path) -> dict[str, _Part]:
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}; expected 'digits' or the path of an .npz file")
    parts = {}
    with (
        reading(path, expected="an .npz file of images and labels", remedy=REMEDY, also=UNREADABLE),
        _no_place(),
        path.open("rb") as file,  # NumPy leaves a file open that is no archive
        np.load(file) as arrays,
    ):
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise TypeError("a single array")
        _check_claims(path)
        keys = set(arrays.files)
        for split in SPLITS:
            is_jpeg = f"{split}_jpeg" in keys
            needed = [f"{split}_jpeg", f"{split}_offsets"] if is_jpeg else [f"{split}_images"]
            missing = [key for key in [*needed, f"{split}_labels"] if key not in keys]
            if split == "validation" and f"{split}_labels" in missing:
                continue
            if missing:
                raise InvalidFileError(path, expected=f"arrays {missing}", got=sorted(keys), remedy=REMEDY)
            labels = _labels(f"{path} {split}", arrays[f"{split}_labels"])
            fetch, count = (
                _jpeg_fetch(path, arrays[needed[0]], arrays[needed[1]]) if is_jpeg else _array_fetch(arrays[needed[0]])
            )
            if count != len(labels):
                raise ValueError(
                    f"{path}: {count} {split} images but {len(labels)} labels; expected one label per image"
                )
            parts[split] = _Part(labels, fetch)
    return parts


@contextmanager
def _no_place() -> Iterator[None]:
    """A seek to a place that cannot be is the fault of the archive, not of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ValueError(f"{error}: an offset outside the archive") from error
        raise


def _check_claims(path: Path) -> None:
    """Refuse arrays whose header disagrees with the archive's size: NumPy would allocate what the header claims."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                claimed = file.tell() + math.prod(shape) * dtype.itemsize
            if claimed != entry.file_size or dtype.hasobject:
                expected = f"{claimed:,} bytes for {dtype} {list(shape)}"
                raise InvalidFileError(
                    path, field=entry.filename, expected=expected, got=f"{entry.file_size:,}", remedy=REMEDY
                )


def _array_fetch(images: np.ndarray) -> tuple[Fetch, int]:
    return lambda indices: images[indices], len(images)


def _jpeg_fetch(path: Path, blob: np.ndarray, offsets: np.ndarray) -> tuple[Fetch, int]:
    if blob.ndim != 1 or blob.dtype != np.uint8 or offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
        raise ValueError(f"encoded images as {blob.dtype} {blob.shape} with offsets {offsets.dtype} {offsets.shape}")
    if not len(offsets) or (np.diff(offsets) < 0).any() or offsets[0] < 0 or offsets[-1] > len(blob):
        raise ValueError(f"offsets that do not rise from 0 to {len(blob)}")

    def fetch(indices: np.ndarray) -> np.ndarray:
        from PIL import Image  # optional: only encoded images need it

        content = [blob[offsets[i] : offsets[i + 1]].tobytes() for i in indices]
        also = (OSError, SyntaxError, Image.DecompressionBombError)  # Pillow's words for damaged images
        with reading(path, expected="images that Pillow can decode, all of one size", remedy=REMEDY, also=also):
            return np.stack([np.asarray(Image.open(io.BytesIO(encoded))) for encoded in content])

    return fetch, len(offsets) - 1


def _dataset_parts(source: datasets.Dataset | datasets.DatasetDict) -> dict[str, _Part]:
    splits = dict(source) if isinstance(source, datasets.DatasetDict) else {"train": source}
    if "train" not in splits:
        raise KeyError(
            f"the dataset has splits {sorted(splits)}; expected 'train', and perhaps 'validation' and 'test'"
        )
    return {split: _dataset_part(split, splits[split]) for split in SPLITS if split in splits}


def _dataset_part(split: str, dataset: datasets.Dataset) -> _Part:
    image_column = next((column for column in IMAGE_COLUMNS if column in dataset.column_names), None)
    label_column = next((column for column in LABEL_COLUMNS if column in dataset.column_names), None)
    if image_column is None or label_column is None:
        raise KeyError(
            f"expected an image column ({', '.join(IMAGE_COLUMNS)}) and a label column "
            f"({', '.join(LABEL_COLUMNS)}), got {dataset.column_names}; rename_column() helps"
        )

    def fetch(indices: np.ndarray) -> np.ndarray:
        arrays = [_pixels(image) for image in dataset.select(indices)[image_column]]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise ValueError(
                f"{split} images have several shapes, {sorted(shapes)}; bring them to one size and mode with map()"
            )
        return np.stack(arrays)

    return _Part(_labels(split, np.asarray(dataset.with_format("numpy")[label_column][:])), fetch)


def _pixels(image: Any) -> np.ndarray:
    """A PIL image (palettes and transparency resolved) or nested lists as an array."""
    if hasattr(image, "mode") and image.mode not in ("L", "RGB", "F", "I"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image)
