"""Detection of file formats by their first bytes, since the names of checkpoints are unreliable."""

import json
import pickletools
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
MAGIC_BYTES = 32  # bytes in which the mark of legacy files must be, for any protocol
MAX_INDEX_BYTES = 2**27
TAR_MARK = slice(257, 262)
PICKLE_START = b"(c]})lSVUXTIFLGKMJN"  # opcodes that need no others before them, of protocols without a mark
PICKLE_OPCODES = {"GLOBAL", "INST", "PUT", "BINPUT", "LONG_BINPUT", "REDUCE", "BUILD"}
MIN_OPCODES, MAX_OPCODE_BYTES = 50, 2**16  # of a pickle that is longer than the part that is looked at
TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # 0x1950a86a20f9469cfc6c, the first object of legacy files
MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors format
BROKEN_ZIP: tuple[type[Exception], ...] = (zipfile.BadZipFile, struct.error, NotImplementedError, OSError, *MALFORMED)
BROKEN_PICKLE: tuple[type[Exception], ...] = (struct.error, *MALFORMED)
SAVE_AS = "load it with the program that wrote it, and save the tensors with safetensors.torch.save_file"
Reader = Literal["safetensors", "pickle", "index", "registered"]
WHOLE: tuple[Reader, ...] = ("pickle", "registered")  # without a header: such files are read in full


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A kind of file that may hold weights.

    Attributes:
        name: Name, as a continuation of "it is".
        reader: Which of this library's readers supports it; `None` if none does.
        remedy: What to do with a file that is not supported.
        holds_weights: Whether such files may hold weights.
        read: Reader of a format from [`register_format`]: returns tensors by name, or a dictionary that contains them.
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
    "a Git LFS pointer in place of the file",
    remedy="fetch the file itself with git lfs pull in its clone",
)
PICKLE = FileFormat(
    "a Python pickle not written by torch.save",
    remedy="opening it could run code: if you trust it, load it with the program that wrote it and save the tensors "
    "with "
    "safetensors.torch.save_file",
)
TORCHSCRIPT = FileFormat("a TorchScript archive", remedy="save torch.jit.load(file).state_dict() with torch.save")
NUMPY_ARCHIVE = FileFormat("a NumPy archive (npz)", remedy="save its arrays with safetensors.numpy.save_file")
KERAS = FileFormat(
    "a Keras archive", remedy="load it with Keras, and save its weights with safetensors.numpy.save_file"
)
ZIP = FileFormat("a zip archive without PyTorch's data.pkl", remedy="unpack it, and pass what is in it")
TAR = FileFormat(
    "a tar archive",
    remedy="unpack it, and pass what is in it (a PyTorch file from before version 0.2: " + SAVE_AS + ")",
)
NO_FILE = FileFormat("a folder, pipe or device, not a file", remedy="name a file", holds_weights=False)
EMPTY = FileFormat(
    "an empty file", remedy="save it or download it again (in a clone: git lfs pull)", holds_weights=False
)
JSON = FileFormat("a JSON file that is not a shard index", remedy="pass the weights file", holds_weights=False)
WEB_PAGE = FileFormat("a web page", remedy="download the file itself, not the page that shows it", holds_weights=False)
TEXT = FileFormat("a text", remedy="pass the weights file", holds_weights=False)
UNKNOWN = FileFormat(
    "a file of unknown format", remedy="it may be damaged: save it or download it again", holds_weights=False
)

_GGUF_REMEDY = (
    "load it with Transformers (from_pretrained(folder, gguf_file=name)) and save it with save_pretrained, or use "
    "the safetensors that it was made from"
)
GGUF = FileFormat("a GGUF file", remedy=_GGUF_REMEDY)
# In the order in which they are tested.
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
    (b"\x93NUMPY", FileFormat("a NumPy array", remedy="give it a name and save it with safetensors.numpy.save_file")),
    (
        b"\x08\x01\x12",
        FileFormat("a TensorFlow SavedModel", remedy="load it with TensorFlow, and save as safetensors"),
    ),
    (b"\x1f\x8b", FileFormat("a gzip archive", remedy="unpack it, and pass what is in it")),
    (b"BZh", FileFormat("a bzip2 archive", remedy="unpack it, and pass what is in it")),
    (b"\xfd7zXZ\x00", FileFormat("an xz archive", remedy="unpack it, and pass what is in it")),
    (b"\x28\xb5\x2f\xfd", FileFormat("a zstandard archive", remedy="unpack it, and pass what is in it")),
    (b"7z\xbc\xaf\x27\x1c", FileFormat("a 7-Zip archive", remedy="unpack it, and pass what is in it")),
    (b"PAR1", FileFormat("a Parquet file", remedy="zoos are read from their folder; pass that", holds_weights=False)),
)
TFLITE = FileFormat("a TensorFlow Lite file", remedy="use the network that it was converted from")
ONNX = FileFormat("an ONNX file", remedy="save onnx.numpy_helper.to_array of its initializers as safetensors")
TF_CHECKPOINT = FileFormat(
    "the index of a TensorFlow checkpoint", remedy="read it with tf.train.load_checkpoint, and save as safetensors"
)
FLAX = FileFormat("a MessagePack file (Flax)", remedy="load it with flax.serialization, and save as safetensors")
ONNX_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"  # what follows the version: strings and sub-messages
TF_INDEX_END = bytes.fromhex("57fb808b247547db")


# Registered functions that recognise a file by its first bytes and path; tried before all built-in formats but
# safetensors.
FORMATS: Registry[tuple[Callable[[bytes, Path], bool], FileFormat]] = Registry("format")


def register_format(
    name: str, recognises: Callable[[bytes, Path], bool], read: Callable[[Path], Mapping[str, Any]]
) -> None:
    """Register a file format for all readers of this library; its files are read in full.

    Args:
        name: Name, as a continuation of "it is", such as `"a NumPy archive (npz)"`; must be new.
        recognises: Function that receives the first 512 bytes and the path of a file and returns whether it has this
            format. It must not raise.
        read: Function that returns a file's tensors by name, or a dictionary that contains them, as training
            checkpoints do.

    Raises:
        ValueError: If the name is taken.
    """
    FORMATS.add(name, (recognises, FileFormat(name, "registered", read=read)))


def file_format(path: Path) -> FileFormat:
    """Detect the format of a file from its first bytes (and the table of contents of a zip archive).

    Args:
        path: An existing file.

    Returns:
        The format, or `UNKNOWN` if no rule matches. A file that is named as safetensors and matches no other rule
        counts as safetensors, so that its reader explains what is wrong.
    """
    if path.exists() and not path.is_file():
        return NO_FILE  # a pipe might never end
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return EMPTY
    if _is_safetensors(head):  # first, since its length prefix may look like any two-byte mark
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
        InvalidFileError: If there is none; the message names the file's format and a remedy.
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
        return TORCH_ZIP  # probably truncated, which its reader explains
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
    if head[0] in PICKLE_START and _is_old_pickle(path):
        return PICKLE
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


def _is_old_pickle(path: Path) -> bool:
    """Whether a file is a pickle of protocol 0 or 1, which have no mark: opcodes to the end, some of them typical."""
    with path.open("rb") as file:
        start = file.read(MAX_OPCODE_BYTES)
    names = []
    try:
        for opcode, _, _ in pickletools.genops(start):
            names.append(opcode.name)
    except BROKEN_PICKLE:
        if len(start) < MAX_OPCODE_BYTES or len(names) < MIN_OPCODES:
            return False
    return not PICKLE_OPCODES.isdisjoint(names)


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
        if error.start < len(head) - 3 or len(head) < HEAD_BYTES:  # not a character truncated at the end of the head
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\n\r\t\f" for letter in text)
