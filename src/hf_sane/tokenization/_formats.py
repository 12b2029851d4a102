"""Detection of file formats by their first bytes, since the names of checkpoints are unreliable."""

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_sane.records._errors import MALFORMED, InvalidFileError
from hf_sane.records._registry import Registry
from hf_sane.tokenization._weight_files import is_index

HEAD_BYTES = 512
MAGIC_BYTES = 32  # in which that of legacy files must lie, whatever the protocol
MAX_INDEX_BYTES = 2**27
TAR_MARK = slice(257, 262)
TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # 0x1950a86a20f9469cfc6c, the first object of legacy files
MAX_HEADER_BYTES = 100_000_000  # of safetensors, as the format has it
BROKEN_ZIP: tuple[type[Exception], ...] = (zipfile.BadZipFile, struct.error, NotImplementedError, OSError, *MALFORMED)
SAVE_AS = "load it with what wrote it, and save the tensors with safetensors.torch.save_file"
Reader = Literal["safetensors", "pickle", "index", "registered"]
WHOLE: tuple[Reader, ...] = ("pickle", "registered")  # these have no header: such files are read as a whole


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A kind of file that may hold weights.

    Attributes:
        name: As a sentence continues after "it is".
        reader: Which of the readers of this library takes it; `None` if none does.
        remedy: What the user of a file that is not read can do.
        holds_weights: Whether such files hold weights, or may.
        read: Reader of a format from [`register_format`]: file to tensors by name, or to a dictionary that holds them
            somewhere.
    """

    name: str
    reader: Reader | None = None
    remedy: str = SAVE_AS
    holds_weights: bool = True
    read: Callable[[Path], Mapping[str, Any]] | None = None


SAFETENSORS = FileFormat("a safetensors file", "safetensors")
TORCH_ZIP = FileFormat("a PyTorch file", "pickle")
TORCH_LEGACY = FileFormat("a PyTorch file of the format before version 1.6", "pickle")
INDEX = FileFormat("a shard index", "index")
LFS_POINTER = FileFormat(
    "a Git LFS pointer, which stands for the file",
    remedy="fetch the file itself: git lfs pull, in the clone it lies in",
)
PICKLE = FileFormat(
    "a Python pickle that torch.save did not write",
    remedy="opening it could run code: where you trust it, load it with what wrote it and save the tensors with "
    "safetensors.torch.save_file",
)
TORCHSCRIPT = FileFormat("a TorchScript archive", remedy="save torch.jit.load(file).state_dict() with torch.save")
NUMPY_ARCHIVE = FileFormat("a NumPy archive (npz)", remedy="save its arrays with safetensors.numpy.save_file")
KERAS = FileFormat(
    "a Keras archive", remedy="load it with Keras, and save its weights with safetensors.numpy.save_file"
)
ZIP = FileFormat("a zip archive without PyTorch's data.pkl", remedy="unpack it, and name what is in it")
TAR = FileFormat(
    "a tar archive",
    remedy="unpack it, and name what is in it (a PyTorch file from before version 0.2: " + SAVE_AS + ")",
)
NO_FILE = FileFormat("no file, but a folder, pipe or device", remedy="name a file", holds_weights=False)
EMPTY = FileFormat("an empty file", remedy="save it or download it again", holds_weights=False)
JSON = FileFormat("a JSON file that is not a shard index", remedy="name the file of the weights", holds_weights=False)
WEB_PAGE = FileFormat("a web page", remedy="download the file itself, not the page that shows it", holds_weights=False)
TEXT = FileFormat("a text", remedy="name the file of the weights", holds_weights=False)
UNKNOWN = FileFormat(
    "a file of a kind that is not known", remedy="it may be damaged: save it or download it again", holds_weights=False
)

_GGUF_REMEDY = (
    "load it with Transformers (from_pretrained(folder, gguf_file=name)) and save it with save_pretrained, or take "
    "the safetensors it was made from"
)
GGUF = FileFormat("a GGUF file", remedy=_GGUF_REMEDY)
# In the order in which they are tried.
BY_START: tuple[tuple[bytes, FileFormat], ...] = (
    (b"version https://git-lfs.github.com/spec/", LFS_POINTER),
    (b"GGUF", GGUF),
    (b"lmgg", FileFormat("a GGML file", remedy=_GGUF_REMEDY)),
    (b"tjgg", FileFormat("a GGML file", remedy=_GGUF_REMEDY)),
    (
        b"\x89HDF\r\n\x1a\n",
        FileFormat(
            "an HDF5 file (Keras)", remedy="load it with Keras or h5py, and save with safetensors.numpy.save_file"
        ),
    ),
    (b"\x93NUMPY", FileFormat("a NumPy array", remedy="save it under a name with safetensors.numpy.save_file")),
    (
        b"\x08\x01\x12",
        FileFormat("a TensorFlow SavedModel", remedy="load it with TensorFlow, and save as safetensors"),
    ),
    (b"\x1f\x8b", FileFormat("a gzip archive", remedy="unpack it, and name what is in it")),
    (b"BZh", FileFormat("a bzip2 archive", remedy="unpack it, and name what is in it")),
    (b"\xfd7zXZ\x00", FileFormat("an xz archive", remedy="unpack it, and name what is in it")),
    (b"\x28\xb5\x2f\xfd", FileFormat("a zstandard archive", remedy="unpack it, and name what is in it")),
    (b"7z\xbc\xaf\x27\x1c", FileFormat("a 7-Zip archive", remedy="unpack it, and name what is in it")),
    (b"PAR1", FileFormat("a Parquet file", remedy="a zoo is read by its folder; name that", holds_weights=False)),
)
TFLITE = FileFormat("a TensorFlow Lite file", remedy="take the network that it was converted from")
ONNX = FileFormat("an ONNX file", remedy="save onnx.numpy_helper.to_array of its initializers as safetensors")
TF_CHECKPOINT = FileFormat(
    "the index of a TensorFlow checkpoint", remedy="read it with tf.train.load_checkpoint, and save as safetensors"
)
FLAX = FileFormat("a MessagePack file (Flax)", remedy="load it with flax.serialization, and save as safetensors")
ONNX_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"  # what follows the version: strings and sub-messages
TF_INDEX_END = bytes.fromhex("57fb808b247547db")


# Recognises a file by its first bytes and its path; asked before the formats that are known here, but for safetensors.
FORMATS: Registry[tuple[Callable[[bytes, Path], bool], FileFormat]] = Registry("format")


def register_format(
    name: str, recognises: Callable[[bytes, Path], bool], read: Callable[[Path], Mapping[str, Any]]
) -> FileFormat:
    """Register a file format for every reader of this library; its files are read as a whole.

    Args:
        name: As a sentence continues after "it is", such as `"a NumPy archive (npz)"`; must be new.
        recognises: Whether a file is of the format, from its first 512 bytes and its path. It must not raise.
        read: File to tensors by name, or to a dictionary that holds them somewhere, as training checkpoints do.

    Raises:
        ValueError: If there is a format of that name.
    """
    found = FileFormat(name, "registered", read=read)
    FORMATS.add(name, (recognises, found))
    return found


def file_format(path: Path) -> FileFormat:
    """Detect the format of a file from its first bytes (and the table of contents of a zip archive).

    Args:
        path: An existing file.

    Returns:
        `UNKNOWN` for what no rule knows; a file that should be safetensors by its name and has no other signs is taken
        for one, so that its reader says what is wrong.
    """
    if path.exists() and not path.is_file():
        return NO_FILE  # a pipe might never end
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return EMPTY
    if _is_safetensors(head):  # first, since the length that it starts with may be any mark of two bytes
        return SAFETENSORS
    for recognises, found in map(FORMATS.find, FORMATS):
        if recognises(head, path):
            return found
    for start, found in BY_START:
        if head.startswith(start):
            return found
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _zip_format(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return TORCH_LEGACY if TORCH_MAGIC in head[:MAGIC_BYTES] else PICKLE
    if head[TAR_MARK] == b"ustar":
        return TAR
    return _other_format(path, head)


def weights_reader(path: Path) -> Reader:
    """The reader for a file.

    Raises:
        InvalidFileError: If there is none, naming the format of the file and a remedy.
    """
    found = file_format(path)
    if found.reader is None:
        raise InvalidFileError(
            path, expected="safetensors, a shard index, or a file of torch.save", got=found.name, remedy=found.remedy
        )
    return found.reader


def _zip_format(path: Path) -> FileFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BROKEN_ZIP:
        return TORCH_ZIP  # cut off, most likely: its reader says so
    inside = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in inside:
        return TORCHSCRIPT if "constants.pkl" in inside else TORCH_ZIP
    if any(name.endswith(".npy") for name in names):
        return NUMPY_ARCHIVE
    return KERAS if "model.weights.h5" in inside else ZIP


def _is_safetensors(head: bytes) -> bool:
    """Whether the file starts with a plausible header length and a JSON object of that length."""
    return 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES and head[8:9] == b"{"


def _other_format(path: Path, head: bytes) -> FileFormat:
    """Formats that have no unique first bytes."""
    if head[4:8] == b"TFL3":
        return TFLITE
    if head[0] == 8 and len(head) > 2 and 1 < head[1] < 32 and head[2] in ONNX_FIELDS:
        return ONNX
    start = head.lstrip()[:15].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    if start.startswith((b"{", b"[")):
        return INDEX if is_index(path.name) or _has_weight_map(path) else JSON
    if _is_text(head):
        return TEXT
    if path.suffix == ".safetensors":
        return SAFETENSORS
    if len(head) > 1 and 0x81 <= head[0] <= 0x8F and 0xA0 <= head[1] <= 0xBF:
        return FLAX
    with path.open("rb") as file:
        file.seek(-min(len(TF_INDEX_END), path.stat().st_size), 2)
        return TF_CHECKPOINT if file.read() == TF_INDEX_END else UNKNOWN


def _has_weight_map(path: Path) -> bool:
    if path.stat().st_size > MAX_INDEX_BYTES:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError):
        return False
    return isinstance(content, dict) and "weight_map" in content


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:  # not a letter that the end of the head cuts
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\n\r\t\f" for letter in text)
