"""Common interface of image sources: splits with labels, and images that are decoded only when selected."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_sane.records._extras import require_package

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# Description for the help of options.
IMAGE_KINDS = "'digits', a folder of image files by class, a dataset on the Hub or on disk, or an .npz file"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Other common names of folders and splits.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "sentiment")  # by preference
LISTED = 3
Fetch = Callable[[np.ndarray], Any]  # int64 [k] -> pixels [k, H, W] or [k, H, W, C], or k texts
WHITE = 255.0  # of image files
DIGITS_WHITE = 16.0
DEEP_MODES = ("I", "I;16", "I;16B", "F")  # more than 8 bits, which Pillow truncates in conversions

MAX_CLASSES = 2**16  # the classifier has a row per class, so a stray index would make it huge
MANY_LABELS = 20  # of which some are equal if they are classes
REMEDY = "see load_images() for the format"
UNSUPPORTED = "multiple labels per example and numeric targets (regression) are not supported"


@dataclass(frozen=True, slots=True)
class Part:
    """Images or texts of one source split, which are read or decoded only when selected."""

    labels: np.ndarray  # [n] integers
    fetch: Fetch
    class_names: tuple[str, ...] = ()
    is_stratified: bool = False  # whether a part that is split off has every class, if there are enough images
    white: float | None = None  # value of a white pixel; `None` to infer it from the pixels


def check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Check that labels are class indices `[n]` (in Keras `[n, 1]`); the `ValueError` says what they are instead.

    Returns:
        Labels `[n]`.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected one integer class index per example, got {labels.dtype} {labels.shape}; {UNSUPPORTED}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise ValueError(
            f"{name}: expected class indices from 0 to {MAX_CLASSES - 1}, got {labels.min()} to {labels.max()}; "
            "number the classes from 0"
        )
    if labels.size >= MANY_LABELS and len(np.unique(labels)) == labels.size:
        raise ValueError(
            f"{name}: expected classes with several examples, got {labels.size} different labels of {labels.size} "
            f"examples; {UNSUPPORTED}"
        )
    return labels


def check_classes(name: str, part: Part) -> None:
    """Refuse a single class, which any network predicts; the `ValueError` names it."""
    if len(found := np.unique(part.labels)) == 1:
        only = part.class_names[found[0]] if part.class_names else found[0]
        raise ValueError(
            f"{name}: expected examples of at least two classes, got only {str(only)!r}; add another class"
        )


def named_labels(split: str, texts: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Class indices `[n]` of labels that are `names`; the `ValueError` lists labels that are not."""
    numbers = {name: number for number, name in enumerate(names)}
    if lists := [name for name in names if name.lstrip().startswith("[") and name.rstrip().endswith("]")]:
        raise ValueError(f"{split}: expected the name of one class per example, got {lists[0]!r}; {UNSUPPORTED}")
    if names and all(map(_is_real, names)):
        raise ValueError(f"{split}: expected names of classes, got numbers such as {names[0]!r}; {UNSUPPORTED}")
    if foreign := sorted(set(texts) - numbers.keys()):
        raise ValueError(f"the {split} split has classes that train lacks: {', '.join(foreign[:LISTED])}")
    return np.array([numbers[text] for text in texts], dtype=np.int64)


def _is_real(text: str) -> bool:
    """Whether a text is a number that is not whole, as targets of a regression are."""
    with suppress(ValueError):
        return not float(text).is_integer()
    return False


def numbered_from_zero(name: str, parts: dict[str, Part]) -> dict[str, Part]:
    """Renumber classes without names from 0 if they are numbered from 1, which is logged; old numbers become names."""
    labels = [part.labels for part in parts.values() if part.labels.size]
    if not labels or min(int(found.min()) for found in labels) != 1 or parts["train"].class_names:
        return parts
    last = max(int(found.max()) for found in labels)
    logger.warning("%s: classes are numbered from 1 to %d, and are renumbered from 0 to %d", name, last, last - 1)
    names = tuple(str(number) for number in range(1, last + 1))
    return {split: replace(part, labels=part.labels - 1, class_names=names) for split, part in parts.items()}


def digits_parts() -> dict[str, Part]:
    """The digits of scikit-learn, 8x8."""
    require_package("sklearn", "the images 'digits'")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8)
    names = tuple(map(str, range(10)))
    return {"train": Part(labels, lambda indices: images[indices], names, white=DIGITS_WHITE)}
