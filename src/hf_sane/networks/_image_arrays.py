"""Read images and labels from the arrays of an `.npz` file."""

import errno
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hf_sane.networks._image_sources import (
    IMAGE_KINDS,
    IMAGE_SUFFIXES,
    REMEDY,
    SPLIT_NAMES,
    SPLITS,
    Fetch,
    Part,
    check_labels,
    named_labels,
)
from hf_sane.records._errors import InvalidFileError, reading

# Other common names for the arrays of an .npz file, as in Keras: x_train, y_train.
ARRAY_NAMES = {"images": "train_images", "labels": "train_labels", "x": "train_images", "y": "train_labels"}
ARRAY_NAMES |= {f"x_{name}": f"{split}_images" for name, split in SPLIT_NAMES.items()}
ARRAY_NAMES |= {f"y_{name}": f"{split}_labels" for name, split in SPLIT_NAMES.items()}
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    RuntimeError,
    struct.error,
)  # errors that NumPy raises for damaged archives


def npz_parts(path: Path) -> dict[str, Part]:
    """Read arrays of images and labels by split; validation and test may be missing.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If the file is damaged or lacks arrays.
        ValueError: If it is another file, or the targets are not classes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}; expected {IMAGE_KINDS}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(
            f"expected {IMAGE_KINDS}, got the single image {path}; pass the folder that contains the folders of the "
            "classes"
        )
    if path.suffix.lower() != ".npz":
        raise ValueError(f"expected {IMAGE_KINDS}, got the file {path}; unpack archives, and pass folders of images")
    found: dict[str, tuple[np.ndarray, Fetch]] = {}
    names: tuple[str, ...] = ()
    with (
        reading(path, expected="an .npz file of images and labels", remedy=REMEDY, also=UNREADABLE),
        _no_place(),
        path.open("rb") as file,  # NumPy does not close files that are not archives
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
                continue  # it is split off from the training images
            if missing:
                raise InvalidFileError(path, expected=f"arrays {missing}", got=sorted(arrays.files), remedy=REMEDY)
            labels = arrays[keys[f"{split}_labels"]]
            if labels.ndim == 1 and labels.dtype.kind in "SU":
                texts = labels.astype(str).tolist()
                names = names or tuple(sorted(set(texts)))  # of the training split, which comes first
                labels = named_labels(split, texts, names)
            images = [arrays[keys[name]] for name in needed]
            fetch, count = _jpeg_fetch(path, *images) if is_jpeg else _array_fetch(*images)
            if count != len(labels):
                raise ValueError(
                    f"{path}: {count} {split} images but {len(labels)} labels; expected one label per image"
                )
            found[split] = labels, fetch
    return {
        split: Part(check_labels(f"{path} {split}", labels), fetch, names) for split, (labels, fetch) in found.items()
    }


@contextmanager
def _no_place() -> Iterator[None]:
    """Report a seek to an invalid offset as an error of the archive, not of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ValueError(f"{error}: an offset outside the archive") from error
        raise


def _check_claims(path: Path) -> None:
    """Reject arrays whose header contradicts the archive's size, since NumPy allocates what the header claims."""
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
        raise ValueError(f"offsets that do not increase from 0 to {len(blob)}")

    def fetch(indices: np.ndarray) -> np.ndarray:
        from PIL import Image  # optional, since only encoded images need it

        content = [blob[offsets[i] : offsets[i + 1]].tobytes() for i in indices]
        also = (OSError, SyntaxError, Image.DecompressionBombError)  # errors that Pillow raises for damaged images
        with reading(path, expected="images of the same size that Pillow can decode", remedy=REMEDY, also=also):
            return np.stack([np.asarray(Image.open(io.BytesIO(encoded))) for encoded in content])

    return fetch, len(offsets) - 1
