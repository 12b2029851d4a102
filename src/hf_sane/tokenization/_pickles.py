"""Open weights-only pickles without running code."""

import errno
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_sane.records._errors import MALFORMED, InvalidFileError, shorten

REMEDY = (
    "it is damaged, or holds more than tensors and could run code; if you trust it, convert it to safetensors "
    "(load it with the program that wrote it, and save model.state_dict())"
)
FAILURES: tuple[type[Exception], ...] = (
    *MALFORMED,
    AssertionError,  # messages of torch's unpickler
    RuntimeError,
    OSError,
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
WHOLE_FILE = "a whole file of torch.save"
DAMAGED = "a file that is damaged or cut off"
AGAIN = "save it or download it again"
ARCHIVE = b"PK\x03\x04"  # first bytes of zip archives
BLOCKED = re.compile(r"(?:GLOBAL|but got|[Uu]nsupported class) (?:<class ')?([\w.]+)")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
# A few bytes can claim a tensor of any size (strides of zero, a bytearray): anything this much larger than its file is
# not a checkpoint.
MAX_UNBACKED_BYTES = 2**26


class Unread:
    """Placeholder for objects in checkpoints that are irrelevant to weights: accepts any arguments, does nothing."""

    def __new__(cls, *_: object) -> "Unread":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        return


# Measurements and settings. A placeholder that does nothing replaces the real classes, which are never used.
INERT: tuple[Any, ...] = tuple(
    (Unread, name)
    for name in (
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray", "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath"),
        *("pathlib._local.PosixPath", "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta"),
    )
)


def unpickle(path: Path) -> Any:
    """Read a file of `torch.save` that holds only tensors, numbers, text and containers of these.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is damaged, requires a class that could run code, or claims far more data than it
            holds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript archives, which are rejected next, and old formats
            # torch reads any path that ends in .safetensors as safetensors.
            with path.open("rb") as file, torch.serialization.safe_globals(list(INERT)):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FAILURES as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of the disk, not of the content
            raise
        if _is_damaged(path, error):
            raise InvalidFileError(path, expected=WHOLE_FILE, got=DAMAGED, remedy=AGAIN) from error
        raise InvalidFileError(
            path,
            expected="nothing but tensors",
            got=f"a file that cannot be opened with weights_only=True ({_reason(error)})",
            remedy=REMEDY,
        ) from error
    limit = path.stat().st_size + MAX_UNBACKED_BYTES
    if (claimed := sum(tensor.numel() * tensor.itemsize for tensor in _tensors(content))) > limit:
        got = f"tensors of {claimed:,} bytes in a file of {path.stat().st_size:,}"
        raise InvalidFileError(path, expected="tensors that are in the file", got=got, remedy=REMEDY)
    return content


def _is_damaged(path: Path, error: BaseException) -> bool:
    """Whether a file ends too early, or its archive cannot be read: torch then seeks to places outside of the file."""
    with path.open("rb") as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    if is_archive and not zipfile.is_zipfile(path):
        return True
    # torch refuses what could run code with an `UnpicklingError`.
    return not isinstance(error, pickle.UnpicklingError) or "unexpected EOF" in str(error)


def _reason(error: BaseException) -> str:
    """The blocked class, if torch names one in any of its wordings; otherwise the first sentence of its message."""
    text = ESCAPES.sub("", str(error))
    if isinstance(error, pickle.UnpicklingError) and (found := BLOCKED.search(text)):
        return f"it requires {found[1]}"
    sentence = re.split(r"\. [A-Z]|\n", text.rpartition("WeightsUnpickler error: ")[2])[0]
    return f"{type(error).__name__}: {shorten(sentence)}" if sentence else type(error).__name__


def _tensors(content: Any) -> Iterable[Tensor]:
    level, seen = [content], set()
    while level:
        entry = level.pop()
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, Mapping | list | tuple | set) and id(entry) not in seen:  # it may contain itself
            seen.add(id(entry))
            level.extend(entry.values() if isinstance(entry, Mapping) else entry)
