"""Sources of images: arrays, folders of image files, datasets. Only selected images are decoded."""

import csv
import errno
import io
import json
import logging
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_sane.architectures.image_processing_zoo import read_pixels
from hf_sane.records._errors import InvalidFileError, name_some, reading
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# What the help of options says.
IMAGE_KINDS = "'digits', a folder of image files by class, a dataset on the Hub or a saved one, or an .npz file"
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
FILE_COLUMN = "file_name"  # of an imagefolder's metadata
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
# Folders (and splits of datasets) that people call otherwise.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
# Arrays of an .npz file that people call otherwise, as Keras does: x_train, y_train.
ARRAY_NAMES = {"images": "train_images", "labels": "train_labels", "x": "train_images", "y": "train_labels"}
ARRAY_NAMES |= {f"x_{name}": f"{split}_images" for name, split in SPLIT_NAMES.items()}
ARRAY_NAMES |= {f"y_{name}": f"{split}_labels" for name, split in SPLIT_NAMES.items()}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_DECODED = 10_000  # images of a folder that are decoded to find damaged ones; of more, only the headers
DEFAULT_SIZE = 32  # pixels, of images of several sizes
LISTED = 3
Fetch = Callable[[np.ndarray], Any]  # int64 [k] -> pixels [k, H, W] or [k, H, W, C], or k texts
WHITE = 255.0  # of image files
DIGITS_WHITE = 16.0
DEEP_MODES = ("I", "I;16", "I;16B", "F")  # more than 8 bits, which Pillow cuts off when it converts

MAX_CLASSES = 2**16  # the classifier has a row for each: a stray index would make it huge
REMEDY = "see load_images() for the format"
UNSUPPORTED = "several labels per example and numbers to be predicted (regression) are not supported"
BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SAVED = ("state.json", "dataset_dict.json")  # of `save_to_disk`
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    RuntimeError,
    struct.error,
)  # what NumPy raises for a damaged archive


@dataclass(frozen=True, slots=True)
class Part:
    """Images or texts of one source split that are read, or decoded, only when chosen."""

    labels: np.ndarray  # [n] integers
    fetch: Fetch
    class_names: tuple[str, ...] = ()
    is_stratified: bool = False  # whether what is cut off has every class, as far as there are enough images
    white: float | None = None  # value of a white pixel; `None` if the pixels have to tell


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected one integer class index per example, got {labels.dtype} {labels.shape}; {UNSUPPORTED}"
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
    names = tuple(map(str, range(10)))
    return {"train": Part(labels, lambda indices: images[indices], names, white=DIGITS_WHITE)}


def npz_parts(path: Path) -> dict[str, Part]:
    """Arrays of images and labels by split; validation and test may be missing.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, or lacks arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}; expected {IMAGE_KINDS}")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"expected {IMAGE_KINDS}, got the file {path}; unpack archives, and name folders of images")
    parts = {}
    with (
        reading(path, expected="an .npz file of images and labels", remedy=REMEDY, also=UNREADABLE),
        _no_place(),
        path.open("rb") as file,  # NumPy does not close a file that is not an archive
        np.load(file) as arrays,
    ):
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise TypeError("a single array")
        _check_claims(path)
        keys = {ARRAY_NAMES.get(key.lower(), key): key for key in arrays.files}
        for split in SPLITS:
            is_jpeg = f"{split}_jpeg" in keys
            needed = [f"{split}_jpeg", f"{split}_offsets"] if is_jpeg else [f"{split}_images"]
            missing = [key for key in [*needed, f"{split}_labels"] if key not in keys]
            if split != "train" and keys.keys().isdisjoint((f"{split}_images", f"{split}_jpeg", f"{split}_labels")):
                continue  # it is cut off from the training split
            if missing:
                raise InvalidFileError(path, expected=f"arrays {missing}", got=sorted(arrays.files), remedy=REMEDY)
            labels = _labels(f"{path} {split}", arrays[keys[f"{split}_labels"]])
            found = [arrays[keys[name]] for name in needed]
            fetch, count = _jpeg_fetch(path, *found) if is_jpeg else _array_fetch(*found)
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
    """Image files by class, perhaps below folders called train, validation and test.

    The class is the name of a file's folder or, in folders with a metadata.csv or metadata.jsonl, the column `label`
    of its row (an `imagefolder` of datasets). Classes are numbered in the order of their names. Images of several
    sizes, or that are not square, are cropped to squares at their centre and resized to `image_size` (32 pixels if
    that is `None`); in colour unless all are grey. What was done is logged.

    Raises:
        FileNotFoundError: If there is no image, or no class.
        InvalidFileError: If no image can be decoded, or one has more than 8 bits per channel.
        ValueError: If there is a single class, splits have other classes, or the targets are not classes.
    """
    found = {SPLIT_NAMES[path.name.lower()]: path for path in _folders(root) if path.name.lower() in SPLIT_NAMES}
    places = found if "train" in found else {"train": root}
    files = {split: _classified(place) for split, place in places.items()}
    below = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in root.rglob("*"))
    if not files["train"]:
        loose = len(_image_files(root))
        raise FileNotFoundError(
            f"no images by class in {root}: expected one folder per class with files such as "
            f"{', '.join(IMAGE_SUFFIXES[:LISTED])}, perhaps below train/, validation/ and test/, or a "
            f"{METADATA_FILES[0]} with the columns {FILE_COLUMN} and label"
            + (f"; got {loose} images without a class" if loose else f"; got {below} images in deeper folders")
        )
    has_table = any((place / name).is_file() for place in places.values() for name in METADATA_FILES)
    if (left := below - sum(map(len, files.values()))) > 0 and not has_table:
        logger.warning(
            "%s: %d images are left out, since they are not right in the folder of a class", root.name, left
        )
    files = _readable(root, files)
    given = {label for _, label in files["train"]}
    names = sorted(given, key=int if all(map(str.isdecimal, given)) else str)
    if len(names) < 2:
        raise ValueError(f"{root}: expected images of at least two classes, got those of {''.join(names)!r} only")
    for split, pairs in files.items():
        if foreign := sorted({label for _, label in pairs} - set(names)):
            raise ValueError(f"{root}: the {split} split has classes that train lacks: {', '.join(foreign[:LISTED])}")
    convert = _conversion(root, [file for pairs in files.values() for file, _ in pairs], image_size)
    numbers = {name: index for index, name in enumerate(names)}
    return {
        split: Part(
            np.array([numbers[label] for _, label in pairs], np.int64),
            _file_fetch([file for file, _ in pairs], convert),
            tuple(names),
            is_stratified=True,
            white=WHITE,
        )
        for split, pairs in files.items()
    }


def _readable(root: Path, files: dict[str, list[tuple[Path, str]]]) -> dict[str, list[tuple[Path, str]]]:
    """Leave out, and name, images that Pillow cannot open or, unless there are very many, decode."""
    from PIL import Image

    decodes = sum(map(len, files.values())) <= MAX_DECODED
    errors: dict[str, InvalidFileError] = {}
    kept: dict[str, list[tuple[Path, str]]] = {split: [] for split in files}
    for split, pairs in files.items():
        for file, label in pairs:
            try:
                with _decoding(file), Image.open(file) as image:
                    if decodes:
                        image.load()
            except InvalidFileError as error:
                errors[str(file.relative_to(root))] = error
            else:
                kept[split].append((file, label))
    if errors and not any(kept.values()):
        raise next(iter(errors.values()))
    if errors:
        logger.warning("%s: %d images that cannot be read are left out: %s", root.name, len(errors), name_some(errors))
    return kept


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _classified(place: Path) -> list[tuple[Path, str]]:
    """Image files and their classes, class by class."""
    for name in METADATA_FILES:
        if (place / name).is_file():
            return sorted(_metadata(place / name), key=lambda pair: (pair[1], pair[0]))
    return [(file, folder.name) for folder in _folders(place) for file in _image_files(folder)]


def _metadata(path: Path) -> list[tuple[Path, str]]:
    """Files and classes from the metadata of an `imagefolder`."""
    with reading(path, expected="one row per image", remedy=f"give it the columns {FILE_COLUMN} and label"):
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [dict(json.loads(line)) for line in text.splitlines() if line.strip()]
        columns = [name for name in rows[0] if name is not None] if rows else []
        if FILE_COLUMN not in columns:
            raise KeyError(FILE_COLUMN)
    others = [name for name in columns if name != FILE_COLUMN]
    label = next((name for name in LABEL_COLUMNS if name in columns), others[0] if len(others) == 1 else None)
    if label is None:
        raise ValueError(
            f"{path}: expected one column with the class of each image (label), got {', '.join(others) or 'none'}; "
            f"{UNSUPPORTED}"
        )
    pairs = []
    for number, row in enumerate(rows, start=1):
        file, value = path.parent / str(row.get(FILE_COLUMN)), row.get(label)
        if not file.is_file():
            raise FileNotFoundError(f"{path}, row {number}: no such image: {file}")
        pairs.append((file, _class_name(path, number, value)))
    return pairs


def _class_name(path: Path, number: int, value: Any) -> str:
    """A class from metadata, which is a text or a whole number."""
    is_real = isinstance(value, float)
    if isinstance(value, str):
        with suppress(ValueError):
            is_real = not float(value).is_integer() or "." in value
    if isinstance(value, bool | int | str) and str(value).strip() and not is_real:
        return str(value).strip()
    got = "an empty cell" if value is None or value == "" else repr(value)
    raise ValueError(f"{path}, row {number}: expected the class of an image, got {got}; {UNSUPPORTED}")


@dataclass(frozen=True)
class _Conversion:
    """What happens to image files so that all have one shape."""

    num_channels: int
    size: int | None  # of squares; `None` where nothing is done


def _conversion(root: Path, files: Sequence[Path], image_size: int | None) -> _Conversion:
    """Look at all headers, and say what has to be done."""
    from PIL import Image

    shapes: Counter[tuple[int, int]] = Counter()
    grey = 0
    for file in files:
        with _decoding(file), Image.open(file) as image:
            shapes[image.size] += 1
            grey += image.mode in ("1", "L", "LA")
            if image.mode in DEEP_MODES:
                raise InvalidFileError(
                    file,
                    expected="8 bits per channel",
                    got=f"mode {image.mode}",
                    remedy="convert the images to 8 bits",
                )
    (width, height), _ = shapes.most_common(1)[0]
    if len(shapes) == 1 and width == height:
        size = image_size
    else:
        size = image_size or DEFAULT_SIZE
        logger.warning(
            "%s: images are %s; all are cropped to squares at their centre and resized to %dx%d (--image-size)",
            root.name,
            f"of {len(shapes)} sizes" if len(shapes) > 1 else f"{width}x{height}",
            size,
            size,
        )
    if 0 < grey < len(files):
        logger.warning("%s: %d grey images among colour images are taken as colour", root.name, grey)
    return _Conversion(1 if grey == len(files) else 3, size)


def _file_fetch(files: Sequence[Path], convert: _Conversion) -> Fetch:
    def fetch(indices: np.ndarray) -> np.ndarray:
        from PIL import Image

        pixels = []
        for index in indices:
            with _decoding(files[index]), Image.open(files[index]) as image:
                pixels.append(read_pixels(image, num_channels=convert.num_channels, size=convert.size))
        return np.moveaxis(np.stack([image.numpy() for image in pixels]), 1, -1)

    return fetch


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    from PIL import Image

    also = (OSError, SyntaxError, Image.DecompressionBombError)  # Pillow's words for damaged images
    with reading(file, expected="an image that Pillow can decode", remedy="remove or replace it", also=also):
        yield


def is_dataset(place: Path) -> bool:
    """Whether a folder is one of `save_to_disk`, or holds parquet files, or a path is a file of a table."""
    if not place.is_dir():
        return place.suffix in BUILDERS and place.is_file()
    return any((place / name).is_file() for name in SAVED) or next(place.rglob("*.parquet"), None) is not None


def dataset_name(place: Path) -> str:
    """Name of the data in a folder or file."""
    return place.resolve().name if place.is_dir() else place.stem


def open_dataset(place: Path, expected: str, remedy: str) -> datasets.Dataset | datasets.DatasetDict:
    """A `datasets` object from a folder of `save_to_disk`, from a folder of files, or from a file of a table.

    Raises:
        InvalidFileError: If it is something else, or damaged.
    """
    with reading(place, expected=expected, remedy=remedy, also=(datasets.exceptions.DatasetsError,)):
        if any((place / file).is_file() for file in SAVED):
            return datasets.load_from_disk(str(place))
        if place.is_dir():
            return patiently(datasets.load_dataset, str(place))
        if place.suffix not in BUILDERS:
            raise ValueError(f"a file that ends with {place.suffix or 'nothing'}, not {', '.join(BUILDERS)}")
        options = {"sep": "\t"} if place.suffix == ".tsv" else {}
        return patiently(datasets.load_dataset, BUILDERS[place.suffix], data_files=str(place), **options)


def hub_parts(repo: HubRepo, image_size: int | None = None) -> dict[str, Part]:
    """Images of a dataset repository; no code of it runs."""
    loaded = patiently(datasets.load_dataset, repo.repo_id, revision=repo.revision)
    return dataset_parts(loaded, image_size)


def dataset_parts(source: datasets.Dataset | datasets.DatasetDict, image_size: int | None = None) -> dict[str, Part]:
    """Images of a `datasets` object: an image column and a label column, found by type or name.

    With an `image_size`, images are cropped to squares at their centre and resized.

    Raises:
        KeyError: If there is no training split, or a column is missing.
    """
    splits = labelled_splits(source)
    names = label_names(splits["train"])
    return {split: _dataset_part(split, part, names, image_size) for split, part in splits.items()}


def labelled_splits(source: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    """The splits of a `datasets` object under our names, the training split first.

    Splits that only have the label -1, as the test splits of competitions, are left out.

    Raises:
        KeyError: If there is no training split.
    """
    splits = dict(source) if isinstance(source, datasets.DatasetDict) else {"train": source}
    given = sorted(map(str, splits))
    splits = {SPLIT_NAMES.get(str(name).lower(), str(name)): part for name, part in reversed(splits.items())}
    if "train" not in splits:
        raise KeyError(f"the dataset has splits {given}; expected 'train', and perhaps 'validation' and 'test'")
    return {
        split: splits[split]
        for split in SPLITS
        if split in splits and (split == "train" or not _is_unlabelled(splits[split]))
    }


def _is_unlabelled(dataset: datasets.Dataset) -> bool:
    column = label_column(dataset)
    feature = None if column is None else dataset.features[column]
    if column is None or not isinstance(feature, datasets.ClassLabel) or not len(dataset):
        return False
    return bool((np.asarray(dataset.with_format("numpy")[column][:]) == -1).all())


def label_column(dataset: datasets.Dataset) -> str | None:
    """The column of a usual name for labels, or else the only one of their type."""
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    return find_column(dataset, LABEL_COLUMNS, typed)


def _dataset_part(split: str, dataset: datasets.Dataset, names: tuple[str, ...], image_size: int | None) -> Part:
    features, labels_from = dataset.features, label_column(dataset)
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image_column = find_column(dataset, IMAGE_COLUMNS, typed)
    if image_column is None or labels_from is None:
        raise KeyError(
            f"expected an image column ({', '.join(IMAGE_COLUMNS)}) and a label column "
            f"({', '.join(LABEL_COLUMNS)}), got {dataset.column_names}; rename_column() helps"
        )
    is_file = isinstance(features[image_column], datasets.Image)

    def fetch(indices: np.ndarray) -> np.ndarray:
        arrays = [_pixels(image, image_size) for image in dataset.select(indices)[image_column]]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise ValueError(
                f"{split} images have several shapes, {sorted(shapes)}; resize them (--image-size, "
                "image_size=), or bring them to one size and mode with map()"
            )
        return np.stack(arrays)

    labels = dataset_labels(split, dataset, labels_from, names)
    return Part(labels, fetch, names, white=WHITE if is_file else None)


def label_names(dataset: datasets.Dataset, column: str | None = None) -> tuple[str, ...]:
    """Names of the classes of a training split, where they are known: of other splits, some may be missing."""
    column = column or label_column(dataset)
    feature = None if column is None else dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if not _is_text(feature):
        return ()
    return tuple(sorted({str(value) for value in dataset.unique(column) if value is not None}))


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "bool")


def dataset_labels(split: str, dataset: datasets.Dataset, column: str, names: tuple[str, ...]) -> np.ndarray:
    """Class indices of a split, whose labels are indices or `names`."""
    feature = dataset.features[column]
    if not _is_text(feature) and not isinstance(feature, datasets.ClassLabel | datasets.Value):
        raise ValueError(f"{split}: expected one class per example in {column!r}, got {feature}; {UNSUPPORTED}")
    if missing := dataset.data.column(column).null_count:
        raise ValueError(f"{split}: {missing} examples have no {column}; leave them out with filter()")
    if not _is_text(feature):
        return _labels(split, np.asarray(dataset.with_format("numpy")[column][:]))
    numbers = {name: number for number, name in enumerate(names)}
    texts = list(map(str, dataset[column]))
    if foreign := sorted(set(texts) - numbers.keys()):
        raise ValueError(f"the {split} split has classes that train lacks: {', '.join(foreign[:LISTED])}")
    return np.array([numbers[text] for text in texts], dtype=np.int64)


def find_column(dataset: datasets.Dataset, known: Sequence[str], typed: Sequence[str]) -> str | None:
    """A column of a usual name, or else the only one of the type."""
    named = next((column for column in known if column in dataset.column_names), None)
    return named or (typed[0] if len(typed) == 1 else None)


def _pixels(image: Any, size: int | None) -> np.ndarray:
    """A Pillow image as pixels `[H, W]` or `[H, W, C]`; nested lists as an array."""
    if not hasattr(image, "mode"):
        return np.asarray(image)
    if image.mode in DEEP_MODES:
        raise ValueError(f"expected images of 8 bits per channel, got mode {image.mode}; convert them to 8 bits")
    pixels = read_pixels(image, num_channels=1 if image.mode in ("1", "L", "LA") else 3, size=size).numpy()
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
