"""Read image files from one folder per class, or from the table of an `imagefolder`."""

import csv
import io
import json
import logging
import os.path
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_sane.architectures.image_processing_zoo import read_pixels
from hf_sane.networks._image_sources import (
    DEEP_MODES,
    IMAGE_SUFFIXES,
    LABEL_COLUMNS,
    LISTED,
    SPLIT_NAMES,
    UNSUPPORTED,
    WHITE,
    Fetch,
    Part,
    check_labels,
)
from hf_sane.records._errors import InvalidFileError, name_some, reading
from hf_sane.records._separators import find_separator

logger = logging.getLogger(__name__)

# Kinds of pictures that Pillow does not read on every machine, or at all.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".svgz", ".eps", ".ai", ".psd", ".xcf", ".tga", ".ico"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".dcm", ".exr", ".hdr", ".jfif"),
)
METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"  # of an imagefolder's metadata
DEPTH = "8 bits per channel"
PREVIEWED = "MPO"  # photographs of phones, with a preview as another frame
MAX_DECODED = 10_000  # images to decode in search of damaged ones; in larger folders, only headers are read
DEFAULT_SIZE = 32  # pixels, if images have several sizes


def folder_parts(root: Path, image_size: int | None = None, image_channels: int | None = None) -> dict[str, Part]:
    """Image files by class, optionally below folders named train, validation and test.

    The class is the name of a file's folder or, in folders with a metadata.csv or metadata.jsonl, the column `label`
    of its row (an `imagefolder` of datasets). Classes are numbered in the order of their names. Images that differ in
    size, or are not square, are centre-cropped to squares and resized to `image_size` (32 pixels if that is `None`);
    they are in colour unless all are greyscale. Conversions are logged, unless `image_channels` (1) reverts them.

    Files of other kinds, damaged images and rows of the table without an image or a class are logged and left out.

    Raises:
        FileNotFoundError: If there are no images or no classes.
        InvalidFileError: If no image can be decoded, or all have more than 8 bits per channel.
        ValueError: If there is only one class, splits differ in their classes, or the targets are not classes.
    """
    found = {SPLIT_NAMES[path.name.lower()]: path for path in _folders(root) if path.name.lower() in SPLIT_NAMES}
    places = found if "train" in found else {"train": root}
    files = {split: _classified(place) for split, place in places.items()}
    below = sorted(path for path in root.rglob("*") if _is_image(path))
    if not files["train"]:
        raise FileNotFoundError(
            f"no images by class in {root}: expected one folder per class with files such as "
            f"{', '.join(IMAGE_SUFFIXES[:LISTED])}, optionally below train/, validation/ and test/, or a "
            f"{METADATA_FILES[0]} with the columns {FILE_COLUMN} and label; got {_what_is_there(root, below)}"
        )
    has_table = any((place / name).is_file() for place in places.values() for name in METADATA_FILES)
    taken = {file for pairs in files.values() for file, _ in pairs}
    if left := [_name(root, path) for path in below if path not in taken]:
        reason = "not in the table" if has_table else "not directly in the folder of a class"
        logger.warning("%s: %s left out, %s: %s", root.name, _are(len(left)), reason, name_some(left))
    if others := [_name(root, path) for path in sorted(root.rglob("*")) if _is_other_kind(path) and path not in taken]:
        logger.warning(
            "%s: %s left out, of kinds that are not read (convert to PNG or JPEG): %s",
            root.name,
            _are(len(others)),
            name_some(others),
        )
    if not has_table and (empty := [_name(root, path) for path in _empty_classes(places.values())]):
        logger.warning(
            "%s: %s without images, which %s no class: %s",
            root.name,
            "1 folder" if len(empty) == 1 else f"{len(empty)} folders",
            "is" if len(empty) == 1 else "are",
            name_some(empty),
        )
    files = _readable(root, files)
    given = {label for _, label in files["train"]}
    names = sorted(given, key=int if all(map(str.isdecimal, given)) else str)
    if len(names) < 2:
        raise ValueError(f"{root}: expected images of at least two classes, got only {''.join(names)!r}")
    for split, pairs in files.items():
        if foreign := sorted({label for _, label in pairs} - set(names)):
            raise ValueError(f"{root}: the {split} split has classes that train lacks: {', '.join(foreign[:LISTED])}")
    convert = _conversion(root, [file for pairs in files.values() for file, _ in pairs], image_size, image_channels)
    numbers = {name: index for index, name in enumerate(names)}
    check_labels(str(root), np.array([numbers[label] for _, label in files["train"]], np.int64))
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
    """Leave out images of more than 8 bits per channel, and damaged ones; log their names and those of animations.

    Damaged are images that Pillow cannot open or, unless there are very many, decode.
    """
    from PIL import Image

    decodes = sum(map(len, files.values())) <= MAX_DECODED
    errors: dict[str, InvalidFileError] = {}
    moving: list[str] = []
    kept: dict[str, list[tuple[Path, str]]] = {split: [] for split in files}
    for split, pairs in files.items():
        for file, label in pairs:
            try:
                with _decoding(file), Image.open(file) as image:
                    if image.mode in DEEP_MODES:
                        raise InvalidFileError(
                            file,
                            expected=DEPTH,
                            got=f"mode {image.mode}",
                            remedy="convert the images to 8 bits",
                        )
                    if decodes:
                        image.load()
                    has_frames = getattr(image, "n_frames", 1) > 1 and image.format != PREVIEWED
            except InvalidFileError as error:
                errors[_name(root, file)] = error
            else:
                kept[split].append((file, label))
                moving += [_name(root, file)] if has_frames else []
    if errors and not any(kept.values()):
        raise next(iter(errors.values()))
    if errors:
        deep = [name for name, error in errors.items() if error.expected == DEPTH]
        damaged = [name for name in errors if name not in deep]
        for names, fault in ((damaged, "cannot be read"), (deep, f"more than {DEPTH}")):
            if names:
                logger.warning("%s: %s left out (%s): %s", root.name, _are(len(names)), fault, name_some(names))
    if moving:
        logger.warning(
            "%s: of %s with several frames or pages, the first is used: %s",
            root.name,
            _images(len(moving)),
            name_some(moving),
        )
    return kept


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _are(count: int) -> str:
    return f"{_images(count)} {'is' if count == 1 else 'are'}"


def _is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image; hidden files, which macOS adds, do not count."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_other_kind(path: Path) -> bool:
    return path.suffix.lower() in OTHER_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _name(root: Path, file: Path) -> str:
    """Path relative to the folder, unless a table names a file elsewhere."""
    return str(file.relative_to(root) if file.is_relative_to(root) else file)


def _empty_classes(places: Iterable[Path]) -> list[Path]:
    """Folders of classes that contain no images, not even in subfolders."""
    return [folder for place in places for folder in _folders(place) if not any(map(_is_image, folder.rglob("*")))]


def _what_is_there(root: Path, images: Sequence[Path]) -> str:
    """Where images are instead, and what to pass; or which other files there are."""
    if loose := _image_files(root):
        return f"{_images(len(loose))} without a class"
    if images:
        inner = Counter(path.parent.parent for path in images).most_common(1)[0][0]
        return f"{_images(len(images))} in deeper folders; pass the folder that contains those of the classes: {inner}"
    others = Counter(path.suffix.lower() for path in root.rglob("*") if path.is_file() and path.suffix)
    if not others:
        return "no files"
    kinds = ", ".join(suffix for suffix, _ in others.most_common(LISTED))
    return f"files of other kinds ({kinds}); convert images to PNG or JPEG"


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(filter(_is_image, folder.iterdir()))


def _classified(place: Path) -> list[tuple[Path, str]]:
    """Image files and their classes, class by class."""
    for name in METADATA_FILES:
        if (place / name).is_file():
            return sorted(_metadata(place / name), key=lambda pair: (pair[1], pair[0]))
    return [(file, folder.name) for folder in _folders(place) for file in _image_files(folder)]


def _metadata(path: Path) -> list[tuple[Path, str]]:
    """Files and classes from the metadata of an `imagefolder`."""
    with reading(path, expected="one row per image", remedy=f"add the columns {FILE_COLUMN} and label"):
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            separator = find_separator(text.partition("\n")[0])
            rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text), delimiter=separator))
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
    named = {number: str(row.get(FILE_COLUMN) or f"row {number}") for number, row in enumerate(rows, start=1)}
    classes = {number: _class_name(path, number, row.get(label)) for number, row in enumerate(rows, start=1)}
    missing = [number for number, name in named.items() if not os.path.isfile(path.parent / name)]
    if len(missing) == len(rows):
        raise FileNotFoundError(
            f"{path}: expected image files in the column {FILE_COLUMN}, relative to {path.parent}, got "
            f"{len(rows)} without a file: {name_some(named.values())}; correct the names, or move the table"
        )
    unlabelled = [number for number, name in classes.items() if name is None and number not in missing]
    if len(missing) + len(unlabelled) == len(rows):
        raise ValueError(f"{path}: expected the class of each image ({label}), got empty cells; fill them in")
    for numbers, fault in ((missing, "no such image"), (unlabelled, f"no {label}")):
        if numbers:
            rows_are = "1 row is" if len(numbers) == 1 else f"{len(numbers)} rows are"
            logger.warning("%s: %s left out (%s): %s", path, rows_are, fault, name_some(named[n] for n in numbers))
    left = {*missing, *unlabelled}
    return [(path.parent / named[n], name) for n, name in classes.items() if name is not None and n not in left]


def _class_name(path: Path, number: int, value: Any) -> str | None:
    """A class from metadata, which is text or a whole number; `None` for an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    is_real = isinstance(value, float)
    if isinstance(value, str):
        with suppress(ValueError):
            is_real = not float(value).is_integer() or "." in value
    if isinstance(value, bool | int | str) and not is_real:
        return str(value).strip()
    raise ValueError(f"{path}, row {number}: expected the class of an image, got {value!r}; {UNSUPPORTED}")


@dataclass(frozen=True)
class _Conversion:
    """How image files are converted to the same shape."""

    num_channels: int
    size: int | None  # side of the squares; `None` for no conversion


def _conversion(root: Path, files: Sequence[Path], image_size: int | None, image_channels: int | None) -> _Conversion:
    """Read all headers and decide how to convert the images."""
    from PIL import Image

    shapes: Counter[tuple[int, int]] = Counter()
    grey = 0
    for file in files:
        with _decoding(file), Image.open(file) as image:
            shapes[image.size] += 1
            grey += image.mode in ("1", "L", "LA")
    (width, height), _ = shapes.most_common(1)[0]
    if len(shapes) == 1 and width == height:
        size = image_size
    else:
        size = image_size or DEFAULT_SIZE
        logger.warning(
            "%s: images are %s; all are centre-cropped to squares and resized to %dx%d%s",
            root.name,
            f"of {len(shapes)} sizes" if len(shapes) > 1 else f"{width}x{height}",
            size,
            size,
            "" if image_size else " (--image-size)",  # a size that was chosen needs no remedy
        )
    if 0 < grey < len(files) and image_channels != 1:  # otherwise, all are converted to greyscale later
        logger.warning("%s: %s greyscale, unlike others, and converted to colour", root.name, _are(grey))
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
