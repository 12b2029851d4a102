"""Sources of images: arrays, folders of image files, datasets. Only selected images are decoded."""

import errno
import io
import logging
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# What the help of options says.
IMAGE_KINDS = "'digits', a folder with one folder of image files per class, a dataset on the Hub, or an .npz file"
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
# Folders (and splits of datasets) that people call otherwise.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_SIZE = 32  # pixels, of images of several sizes
LISTED = 3
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
class Part:
    """Images of one source split that are read, or decoded, only when chosen."""

    labels: np.ndarray  # [n] integers
    fetch: Fetch
    class_names: tuple[str, ...] = ()
    is_stratified: bool = False  # whether what is cut off has every class, as far as there are enough images


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected one integer class index per image, got {labels.dtype} {labels.shape}; several labels "
            "per image and numbers to be predicted (regression) are not supported"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise ValueError(
            f"{name}: expected class indices from 0 to {MAX_CLASSES - 1}, got {labels.min()} to {labels.max()}; "
            "number the classes from 0"
        )
    return labels


def digits_parts() -> dict[str, Part]:
    """The digits of scikit-learn, 8x8."""
    from sklearn.datasets import load_digits  # optional: the `analysis` extra

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8)
    return {"train": Part(labels, lambda indices: images[indices])}


def npz_parts(path: Path) -> dict[str, Part]:
    """Arrays of images and labels by split; validation and test may be missing.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, or lacks arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}; expected {IMAGE_KINDS}")
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
            if split != "train" and not keys & {f"{split}_images", f"{split}_jpeg", f"{split}_labels"}:
                continue  # it is cut off from the training split
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
            parts[split] = Part(labels, fetch)
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


def folder_parts(root: Path, image_size: int | None = None) -> dict[str, Part]:
    """Image files in one folder per class, perhaps below folders called train, validation and test.

    Classes are numbered in the order of their names. Images of one size and mode stay as they are; others are cropped
    to squares at their centre and resized to `image_size` (32 pixels if that is `None`), in colour unless all are
    grey. What was done is logged.

    Raises:
        FileNotFoundError: If there is no image, or no folder of a class.
        InvalidFileError: If an image cannot be decoded.
        ValueError: If splits have other classes.
    """
    found = {SPLIT_NAMES[path.name.lower()]: path for path in _folders(root) if path.name.lower() in SPLIT_NAMES}
    places = found if "train" in found else {"train": root}
    classes = {split: [path.name for path in _folders(place) if _image_files(path)] for split, place in places.items()}
    names = classes["train"]
    if not names:
        loose = len(_image_files(root))
        raise FileNotFoundError(
            f"no images by class in {root}: expected one folder per class with files such as "
            f"{', '.join(IMAGE_SUFFIXES[:LISTED])}, perhaps below train/, validation/ and test/"
            + (f", got {loose} images without a class" if loose else "")
        )
    for split, there in classes.items():
        if foreign := sorted(set(there) - set(names)):
            raise ValueError(f"{root}: the {split} split has classes that train lacks: {', '.join(foreign[:LISTED])}")
    files, labels = {}, {}
    for split, place in places.items():
        pairs = [(file, index) for index, name in enumerate(names) for file in _image_files(place / name)]
        files[split], labels[split] = [file for file, _ in pairs], np.array([index for _, index in pairs], np.int64)
    convert = _conversion(root, [file for group in files.values() for file in group], image_size)
    return {
        split: Part(labels[split], _file_fetch(files[split], convert), tuple(names), is_stratified=True)
        for split in places
    }


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


@dataclass(frozen=True)
class _Conversion:
    """What happens to image files so that all have one shape."""

    mode: str
    size: int | None  # of squares; `None` where nothing is done


def _conversion(root: Path, files: Sequence[Path], image_size: int | None) -> _Conversion:
    """Look at all headers, and say what has to be done."""
    from PIL import Image  # optional: only image files need it

    shapes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    for file in files:
        with _decoding(file), Image.open(file) as image:
            shapes[image.size] += 1
            modes["L" if image.mode in ("1", "L", "LA", "I", "I;16", "F") else "RGB"] += 1
    mode = "L" if set(modes) == {"L"} else "RGB"
    (width, height), _ = shapes.most_common(1)[0]
    if len(shapes) == 1 and width == height:
        size = None
    else:
        size = image_size or DEFAULT_SIZE
        logger.warning(
            "%s: images have %d sizes; all are cropped to squares at their centre and resized to %dx%d (--image-size)",
            root.name,
            len(shapes),
            size,
            size,
        )
    if len(modes) > 1:
        logger.warning("%s: %d grey images among colour images are taken as colour", root.name, modes["L"])
    return _Conversion(mode, size)


def _file_fetch(files: Sequence[Path], convert: _Conversion) -> Fetch:
    def fetch(indices: np.ndarray) -> np.ndarray:
        from PIL import Image, ImageOps

        pixels = []
        for index in indices:
            with _decoding(files[index]), Image.open(files[index]) as image:
                shown = ImageOps.exif_transpose(image).convert(convert.mode)
                if convert.size is not None:
                    shown = ImageOps.fit(shown, (convert.size, convert.size), Image.Resampling.BOX)
                pixels.append(np.asarray(shown))
        return np.stack(pixels)

    return fetch


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    from PIL import Image

    also = (OSError, SyntaxError, Image.DecompressionBombError)  # Pillow's words for damaged images
    with reading(file, expected="an image that Pillow can decode", remedy="remove or replace it", also=also):
        yield


def hub_parts(repo: HubRepo) -> dict[str, Part]:
    """Images of a dataset repository; no code of it runs."""
    loaded = patiently(datasets.load_dataset, repo.repo_id, revision=repo.revision)
    return dataset_parts(loaded)


def dataset_parts(source: datasets.Dataset | datasets.DatasetDict) -> dict[str, Part]:
    """Images of a `datasets` object: an image column and a label column, found by type or name.

    Raises:
        KeyError: If there is no training split, or a column is missing.
    """
    splits = dict(source) if isinstance(source, datasets.DatasetDict) else {"train": source}
    given = sorted(map(str, splits))
    splits = {SPLIT_NAMES.get(str(name).lower(), str(name)): part for name, part in reversed(splits.items())}
    if "train" not in splits:
        raise KeyError(f"the dataset has splits {given}; expected 'train', and perhaps 'validation' and 'test'")
    return {split: _dataset_part(split, splits[split]) for split in SPLITS if split in splits}


def _dataset_part(split: str, dataset: datasets.Dataset) -> Part:
    features = dataset.features
    image_column = _column(dataset, IMAGE_COLUMNS, [n for n, f in features.items() if isinstance(f, datasets.Image)])
    label_column = _column(
        dataset, LABEL_COLUMNS, [n for n, f in features.items() if isinstance(f, datasets.ClassLabel)]
    )
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

    values = np.asarray(dataset.with_format("numpy")[label_column][:])
    names: tuple[str, ...] = ()
    if isinstance(features[label_column], datasets.ClassLabel):
        names = tuple(features[label_column].names)
    elif values.dtype.kind in "OUS":  # texts
        texts, values = np.unique(values.astype(str), return_inverse=True)
        names = tuple(map(str, texts))
    return Part(_labels(split, values), fetch, names)


def _column(dataset: datasets.Dataset, known: Sequence[str], typed: Sequence[str]) -> str | None:
    """A column of a usual name, or else the only one of the type."""
    named = next((column for column in known if column in dataset.column_names), None)
    return named or (typed[0] if len(typed) == 1 else None)


def _pixels(image: Any) -> np.ndarray:
    """A PIL image (palettes and transparency resolved) or nested lists as an array."""
    if hasattr(image, "mode") and image.mode not in ("L", "RGB", "F", "I"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image)
