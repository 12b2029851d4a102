"""Read images, or only labels, from `datasets` objects in memory, on disk or on the Hub."""

import codecs
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_sane.architectures.image_processing_zoo import read_pixels
from hf_sane.networks._image_sources import (
    DEEP_MODES,
    LABEL_COLUMNS,
    SPLIT_NAMES,
    SPLITS,
    UNSUPPORTED,
    WHITE,
    Part,
    check_labels,
    named_labels,
)
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._patience import patiently
from hf_sane.records._separators import find_separator
from hf_sane.records._sources import HubRepo

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "pixel_values")
BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
TABLE_REMEDY = "save it again as CSV (UTF-8), JSON lines or parquet"
SAVED = ("state.json", "dataset_dict.json")  # of `save_to_disk`


def is_dataset(place: Path) -> bool:
    """Whether a path is a folder of `save_to_disk`, a folder with parquet files, or a table file."""
    if not place.is_dir():
        return place.suffix in BUILDERS and place.is_file()
    return any((place / name).is_file() for name in SAVED) or next(place.rglob("*.parquet"), None) is not None


def dataset_name(place: Path) -> str:
    """Name of the data in a folder or file."""
    return place.resolve().name if place.is_dir() else place.stem


def open_dataset(place: Path, expected: str) -> datasets.Dataset | datasets.DatasetDict:
    """Open a `datasets` object from a folder of `save_to_disk`, a folder of files, or a table file.

    Raises:
        InvalidFileError: If it is something else or damaged.
    """
    with reading(place, expected=expected, remedy=TABLE_REMEDY, also=(datasets.exceptions.DatasetsError,)):
        if any((place / file).is_file() for file in SAVED):
            return datasets.load_from_disk(str(place))
        if place.is_dir():
            tables = sorted(place.rglob("*.[ct]sv"))
            try:
                return patiently(datasets.load_dataset, str(place), **_csv_options(*tables))
            except (datasets.exceptions.DatasetsError, ValueError) as error:
                for table in tables:  # which is the cause
                    _check_table(table, expected)
                raise ValueError(str(error.__cause__ or error)) from error
        if place.suffix not in BUILDERS:
            raise ValueError(f"a file that ends with {place.suffix or 'nothing'}, not {', '.join(BUILDERS)}")
        if BUILDERS[place.suffix] != "parquet":
            _check_table(place, expected)
        options = _csv_options(place) if BUILDERS[place.suffix] == "csv" else {}
        try:
            return patiently(datasets.load_dataset, BUILDERS[place.suffix], data_files=str(place), **options)
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(str(error.__cause__ or error)) from error


def _check_table(file: Path, expected: str) -> None:
    """Check that a file is UTF-8 with rows, since errors of `datasets` do not say so.

    Raises:
        InvalidFileError: If it is empty, has only a header, is binary or has another encoding.
    """
    decoder, got, num_lines = codecs.getincrementaldecoder("utf-8")(), None, 0
    with file.open("rb") as lines:
        for line in lines:
            num_lines += sum(1 for part in line.splitlines() if part.strip())
            if b"\0" in line:
                got = "binary data or UTF-16"
                break
            try:
                decoder.decode(line)
            except UnicodeDecodeError:
                got = f"another encoding than UTF-8 in row {num_lines}"
                break
    if got is None and not num_lines:
        got = "an empty file"
    if got is None and num_lines == 1 and BUILDERS[file.suffix] == "csv":
        got = "only a header"
    if got is not None:
        raise InvalidFileError(file, expected=expected, got=got, remedy=TABLE_REMEDY)


def _csv_options(*files: Path) -> dict[str, Any]:
    """Options for the reader of delimited text: the separator, if it is no comma."""
    for file in files:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            separator = find_separator(lines.readline())
        return {} if separator == "," else {"sep": separator}
    return {}


def hub_parts(repo: HubRepo, image_size: int | None = None) -> dict[str, Part]:
    """Images of a dataset repository, whose code is not run."""
    loaded = patiently(datasets.load_dataset, repo.repo_id, revision=repo.revision)
    return dataset_parts(loaded, image_size)


def dataset_parts(source: datasets.Dataset | datasets.DatasetDict, image_size: int | None = None) -> dict[str, Part]:
    """Images of a `datasets` object: an image column and a label column, found by type or name.

    With an `image_size`, images are centre-cropped to squares and resized.

    Raises:
        KeyError: If there is no training split, or a column is missing.
    """
    found = labelled_splits(_with_label_column(source))
    splits = {split: _complete_images(split, part) for split, part in found.items()}
    names = label_names(splits["train"])
    return {split: _dataset_part(split, part, names, image_size) for split, part in splits.items()}


def _with_label_column(
    source: datasets.Dataset | datasets.DatasetDict,
) -> datasets.Dataset | datasets.DatasetDict:
    """The dataset with its labels in a column of that name, if one other column can be meant.

    This is the only column besides the images with texts or whole numbers, of which there are at least two, each twice
    on average.
    """
    splits = source if isinstance(source, datasets.DatasetDict) else {"": source}
    first = splits.get("train", next(iter(splits.values())))
    if label_column(first) is not None or (image_column := _image_column(first)) is None:
        return source
    candidates = [name for name in first.column_names if name != image_column and _may_be_label(first, name)]
    if len(candidates) != 1 or any(candidates[0] not in part.column_names for part in splits.values()):
        return source
    logger.warning("classes are taken from the column %r, the only one that can be meant", candidates[0])
    return source.rename_column(candidates[0], LABEL_COLUMNS[0])


def _may_be_label(dataset: datasets.Dataset, column: str) -> bool:
    feature = dataset.features[column]
    is_index = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))
    if not (_is_text(feature) or is_index):
        return False
    values = pc.unique(dataset.with_format("arrow")[column][:])
    return 2 <= len(values) - values.null_count <= len(dataset) / 2


def _complete_images(split: str, dataset: datasets.Dataset) -> datasets.Dataset:
    columns = [column for column in (_image_column(dataset), label_column(dataset)) if column is not None]
    return complete_examples(split, dataset, columns)


def complete_examples(split: str, dataset: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    """The examples that have a value in every column; others are left out, which is logged.

    Raises:
        ValueError: If no example is left.
    """
    kept = np.ones(len(dataset), dtype=bool)
    for column in columns:
        present = _present(dataset, column)
        if missing := int((kept & ~present).sum()):
            are = "1 example is" if missing == 1 else f"{missing} examples are"
            logger.warning("%s: %s left out (no %s)", split, are, column)
        kept &= present
    if len(kept) and not kept.any():
        raise ValueError(
            f"{split}: expected examples with {' and '.join(columns)}, got {len(kept)} that lack one of them; fill in "
            "what is missing"
        )
    return dataset if kept.all() else dataset.select(np.flatnonzero(kept))


def _present(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """Whether each example has a value `[n]`, which is neither null nor NaN nor blank."""
    is_text = _is_text(dataset.features[column])
    is_real = str(getattr(dataset.features[column], "dtype", "")).startswith("float")
    if not (is_text or is_real) and not dataset.data.column(column).null_count:
        return np.ones(len(dataset), dtype=bool)  # without reading images
    values = dataset.with_format("arrow")[column][:]
    present = pc.is_valid(values) if not is_real else pc.invert(pc.is_null(values, nan_is_null=True))
    if is_text and not pa.types.is_boolean(values.type):
        present = pc.and_kleene(present, pc.not_equal(pc.utf8_trim_whitespace(values), ""))
    return np.asarray(present)


def labelled_splits(source: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    """The splits of a `datasets` object under this library's names, with the training split first.

    Splits without labels, or with only the label -1, such as the test splits of competitions, are left out.

    Raises:
        KeyError: If there is no training split.
    """
    splits = dict(source) if isinstance(source, datasets.DatasetDict) else {"train": source}
    given = sorted(map(str, splits))
    splits = {SPLIT_NAMES.get(str(name).lower(), str(name)): part for name, part in reversed(splits.items())}
    if "train" not in splits:
        raise KeyError(f"the dataset has splits {given}; expected 'train', and optionally 'validation' and 'test'")
    return {
        split: splits[split]
        for split in SPLITS
        if split in splits and (split == "train" or not _is_unlabelled(splits[split]))
    }


def _is_unlabelled(dataset: datasets.Dataset) -> bool:
    column = label_column(dataset)
    if column is not None and len(dataset) and not _present(dataset, column).any():
        return True
    feature = None if column is None else dataset.features[column]
    is_index = isinstance(feature, datasets.ClassLabel) or getattr(feature, "dtype", "").startswith("int")
    if column is None or not is_index or not len(dataset):
        return False
    return bool((np.asarray(dataset.with_format("numpy")[column][:]) == -1).all())


def label_column(dataset: datasets.Dataset) -> str | None:
    """The label column: one with a common name, or the only one of the right type."""
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    return find_column(dataset, LABEL_COLUMNS, typed)


def _dataset_part(split: str, dataset: datasets.Dataset, names: tuple[str, ...], image_size: int | None) -> Part:
    features, labels_from, image_column = dataset.features, label_column(dataset), _image_column(dataset)
    if image_column is None or labels_from is None:
        known = {"an image": (image_column, IMAGE_COLUMNS), "a label": (labels_from, LABEL_COLUMNS)}
        wanted = [f"{kind} column ({', '.join(names)})" for kind, (found, names) in known.items() if found is None]
        raise KeyError(
            f"expected {' and '.join(wanted)}, got {dataset.column_names}; rename_column() helps; {UNSUPPORTED}"
        )
    is_file = isinstance(features[image_column], datasets.Image)

    def fetch(indices: np.ndarray) -> np.ndarray:
        arrays = [_pixels(image, image_size) for image in dataset.select(indices)[image_column]]
        if len(shapes := {array.shape for array in arrays}) > 1:
            raise ValueError(
                f"{split} images have several shapes, {sorted(shapes)}; resize them (--image-size, "
                "image_size=), or convert them to one size and mode with map()"
            )
        return np.stack(arrays)

    labels = dataset_labels(split, dataset, labels_from, names)
    return Part(labels, fetch, names, white=WHITE if is_file else None)


def _image_column(dataset: datasets.Dataset) -> str | None:
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    return find_column(dataset, IMAGE_COLUMNS, typed)


def label_names(dataset: datasets.Dataset, column: str | None = None) -> tuple[str, ...]:
    """Class names of a training split, if known; other splits may lack some classes."""
    column = column or label_column(dataset)
    feature = None if column is None else dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if not _is_text(feature):
        return ()
    values = dataset.with_format("arrow")[column][:]
    return tuple(sorted({str(value) for value in pc.unique(values).to_pylist() if value is not None}))


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "bool")


def dataset_labels(split: str, dataset: datasets.Dataset, column: str, names: tuple[str, ...]) -> np.ndarray:
    """Class indices of a split whose labels are indices or `names`."""
    feature = dataset.features[column]
    if not _is_text(feature) and not isinstance(feature, datasets.ClassLabel | datasets.Value):
        raise ValueError(f"{split}: expected one class per example in {column!r}, got {feature}; {UNSUPPORTED}")
    if not _is_text(feature):
        labels = np.asarray(dataset.with_format("numpy")[column][:])
        if labels.dtype.kind == "f" and (labels == labels.round()).all():
            labels = labels.astype(np.int64)  # tables with empty cells are read as real numbers
        return check_labels(split, labels)
    return named_labels(split, list(map(str, dataset[column])), names)


def find_column(dataset: datasets.Dataset, known: Sequence[str], typed: Sequence[str]) -> str | None:
    """A column with a common name, in any case, or the only column of a type."""
    there = {column.lower(): column for column in reversed(dataset.column_names)}
    named = next((there[column] for column in known if column in there), None)
    return named or (typed[0] if len(typed) == 1 else None)


def _pixels(image: Any, size: int | None) -> np.ndarray:
    """Convert a Pillow image to pixels `[H, W]` or `[H, W, C]`, or nested lists to an array."""
    if not hasattr(image, "mode"):
        return np.asarray(image)
    if image.mode in DEEP_MODES:
        raise ValueError(f"expected images of 8 bits per channel, got mode {image.mode}; convert them to 8 bits")
    pixels = read_pixels(image, num_channels=1 if image.mode in ("1", "L", "LA") else 3, size=size).numpy()
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
