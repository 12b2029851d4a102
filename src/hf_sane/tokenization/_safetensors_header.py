"""Strict reader of safetensors headers, from disk or over the network.

Format: https://huggingface.co/docs/safetensors. Eight bytes give the length of a JSON object, which gives the dtype,
shape and position of every tensor; the tensors fill the rest of the file without gaps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import HfApi
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.tokenization._byte_ranges import HubFile

# Dtype names of the safetensors format (https://huggingface.co/docs/safetensors), as far as networks use them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
if hasattr(torch, "float8_e8m0fnu"):  # since PyTorch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # a limit of the format
FIRST_BYTES = 100_000  # first bytes of a file on the Hub, which contain nearly every header
MAX_DEPTH = 127  # nesting of brackets, limited by the parser of safetensors
MAX_SIZE = 2**63 - 1  # the largest size in torch
METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")
EXPECTED = "a whole safetensors file"
REMEDY = "the file is truncated, damaged or has another format: download or save it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """The entry of a tensor in a header.

    Attributes:
        outline: The tensor on the meta device.
        start: Offset of its first byte in the file.
        stop: Offset after its last byte.
    """

    outline: Tensor
    start: int
    stop: int


def read_header(path: Path) -> StateDict:
    """Read the tensors of a safetensors file on the meta device, in header order.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If `safetensors` would reject the file, or a tensor occurs twice or has an unknown dtype.
    """
    return {name: entry.outline for name, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Like [`read_header`], with the position of each tensor in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        return parse_header(file.read(header_bytes(prefix, str(path), size)), str(path), size)


def fetch_header(repo_id: str, file: str, *, revision: str | None = None, api: HfApi | None = None) -> StateDict:
    """Like [`read_header`], for a safetensors file on the Hub, of which only the header is downloaded.

    Args:
        repo_id: `user/name`.
        file: Path in the repository.
        revision: Branch, tag or commit.
        api: Hub client, for another endpoint or token.

    Raises:
        EntryNotFoundError, RepositoryNotFoundError: If there is no such file.
        InvalidFileError: As in [`read_header`].
    """
    return {name: entry.outline for name, entry in fetch_entries(HubFile(repo_id, file, revision, api)).items()}


def fetch_entries(file: HubFile) -> dict[str, TensorEntry]:
    """Like [`fetch_header`], with the position of each tensor in the file."""
    start = file.read(0, FIRST_BYTES)
    end = LENGTH_BYTES + header_bytes(start[:LENGTH_BYTES], str(file), file.size)
    if end > len(start):
        start += file.read(len(start), end)
    return parse_header(start[LENGTH_BYTES:end], str(file), file.size)


def header_bytes(prefix: bytes, file: str, size: int) -> int:
    """Length of the header.

    Args:
        prefix: The first eight bytes of the file.
        file: Its name, for messages.
        size: Size of the file in bytes.

    Raises:
        InvalidFileError: If the file is shorter than eight bytes, or than its header claims.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES:
        _fail(file, None, f"{size} bytes", f"{EXPECTED} of more than {LENGTH_BYTES} bytes")
    if length > MAX_HEADER_BYTES:
        _fail(
            file,
            None,
            f"a header of {length:,} bytes",
            f"{EXPECTED}, whose header has at most {MAX_HEADER_BYTES:,} bytes",
        )
    if LENGTH_BYTES + length > size:
        _fail(file, None, f"{size:,} bytes", f"{EXPECTED} of at least {LENGTH_BYTES + length:,} bytes")
    return length


def parse_header(header: bytes, file: str, size: int) -> dict[str, TensorEntry]:
    """Parse the bytes of a header.

    Args:
        header: The bytes after the first eight, which give their number.
        file: Path or address, for messages.
        size: Size of the file in bytes.

    Raises:
        InvalidFileError: As in [`read_header`].
    """
    with reading(file, expected=EXPECTED, remedy=REMEDY):
        content = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__} instead of an object")
        _check_metadata(file, content.pop(METADATA, None))
        places = {name: _place(file, name, info) for name, info in content.items()}
    return _entries(file, places, LENGTH_BYTES + len(header), size)


def _entries(
    file: str, places: Mapping[str, tuple[str, list[int], list[int]]], first: int, size: int
) -> dict[str, TensorEntry]:
    """Check that the tensors fill the file from byte `first` without gaps, and sort them."""
    if unknown := sorted({dtype for dtype, _, _ in places.values()} - DTYPES.keys()):
        raise InvalidFileError(
            file, field="dtype", expected=f"one of {', '.join(DTYPES)}", got=unknown, remedy="convert it first"
        )
    end = 0
    for name, (dtype, shape, (start, stop)) in sorted(places.items(), key=lambda item: item[1][2]):
        if start != end or stop < start:
            _fail(file, f"{name}.data_offsets", [start, stop], f"[{end}, ...], where the previous tensor ends")
        wanted = _num_bytes(file, name, dtype, shape)
        if stop - start != wanted:
            _fail(file, f"{name}.data_offsets", [start, stop], f"{wanted:,} bytes for {dtype} {shape}")
        end = stop
    if end != size - first:
        _fail(file, None, f"{size - first:,} bytes", f"{EXPECTED} with {end:,} bytes after the header")
    return {
        name: TensorEntry(torch.empty(shape, dtype=DTYPES[dtype], device="meta"), first + start, first + stop)
        for name, (dtype, shape, (start, stop)) in places.items()
    }


def _num_bytes(file: str, name: str, dtype: str, shape: list[int]) -> int:
    """Product of shape and item size; an intermediate overflow is an error, even if a later size is zero."""
    numel = 1
    for length in shape:
        numel *= length
        if numel > MAX_SIZE or length > MAX_SIZE:
            _fail(file, f"{name}.shape", shape, "a size that fits into 64 bits")
    strides = math.prod(max(1, length) for length in shape)  # torch stores sizes even of tensors without elements
    if (num_bytes := numel * DTYPES[dtype].itemsize) > MAX_SIZE or strides > MAX_SIZE:
        _fail(file, f"{name}.shape", shape, "a size that fits into 64 bits")
    return num_bytes


def _place(file: str, name: str, info: Any) -> tuple[str, list[int], list[int]]:
    """Dtype, shape and offsets of one tensor."""
    name.encode("utf-8")  # half a surrogate pair is not valid text
    if not isinstance(info, dict) or any(field not in info for field in FIELDS):
        _fail(file, name, info, f"an object with {', '.join(FIELDS)}")
    dtype, shape, offsets = (info[field] for field in FIELDS)
    if not isinstance(dtype, str):
        _fail(file, f"{name}.dtype", dtype, "text")
    for field, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or any(type(entry) is not int or entry < 0 for entry in value):
            _fail(file, f"{name}.{field}", value, "a list of whole numbers >= 0")
    if len(offsets) != 2:
        _fail(file, f"{name}.data_offsets", offsets, "the first byte and the byte after the last")
    for field, value in info.items():
        field.encode("utf-8")
        if field not in FIELDS and _depth(value) > MAX_DEPTH - 2:
            _fail(file, name, f"a field {field[:20]!r}", f"at most {MAX_DEPTH} nested brackets")
    return dtype, shape, offsets


def _check_metadata(file: str, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _fail(file, METADATA, metadata, "an object of texts")
    for text in (*metadata.keys(), *metadata.values()):
        text.encode("utf-8")


def _depth(value: Any) -> int:
    """Depth of nested brackets, counted up to the limit."""
    depth, level = 0, [value]
    while level := [entry for entry in level if isinstance(entry, list | dict)]:
        depth += 1
        level = [e for entry in level for e in (entry.values() if isinstance(entry, dict) else entry)]
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _whole(text: str) -> int | float:
    """A number of at most 64 bits, or a float, as in the parser of safetensors."""
    if text == "-0" or len(text) > 20 or (number := int(text)) >= 2**64:
        return _finite(text)
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number out of range: {text[:20]}")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is not JSON")


def _fail(file: str, field: str | None, got: object, expected: str) -> NoReturn:
    raise InvalidFileError(file, field=field, expected=expected, got=got, remedy=REMEDY)
