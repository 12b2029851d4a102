"""Read GGUF and ONNX files with their own packages, which are optional."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.screening._statistics import decode
from hf_sane.tokenization._checkpoints import AGAIN
from hf_sane.tokenization._formats import GGUF, ONNX, FileFormat
from hf_sane.tokenization._safetensors_header import TensorEntry

INSTALL = "pip install 'hf_sane[scan]'"
GGUF_DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
MAX_TEXT = 200  # characters of a metadata value


@dataclass(frozen=True, slots=True)
class Encoding:
    """How values are stored in a file.

    Attributes:
        name: Name such as `"float16"` or `"q4_0"`.
        values: Number of values in a block.
        size: Size of a block in bytes.
        decode: Function that decodes whole blocks of bytes.
    """

    name: str
    values: int
    size: int
    decode: Callable[[bytes], torch.Tensor]

    @classmethod
    def plain(cls, dtype: torch.dtype) -> "Encoding":
        """Encoding of values that are stored one by one."""
        return cls(str(dtype).removeprefix("torch."), 1, dtype.itemsize, partial(decode, dtype=dtype))


@dataclass(frozen=True, kw_only=True)
class OtherFile:
    """A file that requires another package to read.

    Attributes:
        name: Name of its format, as a continuation of "it is".
        entries: Tensors that are read as byte ranges.
        encodings: How tensors that are not plain values are stored.
        whole: Tensors, if the file was read in full.
        metadata: Texts and numbers in the file's metadata, by key.
        skipped: Tensors whose values cannot be read, and why.
    """

    name: str
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    encodings: dict[str, Encoding] = field(default_factory=dict)
    whole: StateDict = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def open_gguf(path: Path) -> OtherFile:
    """Read the metadata, and the positions of all tensors.

    Raises:
        InvalidFileError: If the file is damaged, or the package `gguf` is missing.
    """
    _require("gguf", path, GGUF)
    import gguf

    with reading(path, expected="a whole GGUF file", remedy=AGAIN, also=(IndexError,)):
        found = gguf.GGUFReader(path)
        metadata = {key: _short(value.contents()) for key, value in found.fields.items() if _is_single(value, gguf)}
    entries: dict[str, TensorEntry] = {}
    encodings: dict[str, Encoding] = {}
    skipped: dict[str, str] = {}
    for tensor in found.tensors:
        shape, start = tuple(int(length) for length in reversed(tensor.shape)), int(tensor.data_offset)
        stop = start + int(tensor.n_bytes)
        if stop > path.stat().st_size:
            got = f"{path.stat().st_size:,} bytes"
            raise InvalidFileError(path, expected=f"a file of at least {stop:,} bytes", got=got, remedy=AGAIN)
        name = tensor.tensor_type.name
        dtype = GGUF_DTYPES.get(name, torch.float32)  # quantised values become float32
        if name not in GGUF_DTYPES:
            if (encoding := _quantisation(tensor.tensor_type, gguf)) is None:
                skipped[tensor.name] = f"{'x'.join(map(str, shape))}: values of type {name} are not supported"
                continue
            encodings[tensor.name] = encoding
        outline = torch.empty(shape, dtype=dtype, device="meta")
        entries[tensor.name] = TensorEntry(outline, start, stop)
    types = ", ".join(f"{count} {name}" for name, count in Counter(x.tensor_type.name for x in found.tensors).items())
    return OtherFile(
        name=f"{GGUF.name} ({metadata.get('general.architecture', 'unknown architecture')}: {types or 'no tensors'})",
        entries=entries,
        encodings=encodings,
        metadata=metadata,
        skipped=skipped,
    )


def open_onnx(path: Path) -> OtherFile:
    """Read the initialisers of an ONNX file, including those in external files.

    Raises:
        InvalidFileError: If the file is damaged, or the package `onnx` is missing.
    """
    _require("onnx", path, ONNX)
    import onnx
    from google.protobuf.message import DecodeError

    with reading(path, expected="a whole ONNX file", remedy=AGAIN, also=(DecodeError, onnx.checker.ValidationError)):
        model = onnx.load(path)
        arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
        metadata = {"producer": f"{model.producer_name} {model.producer_version}".strip()}
        metadata |= {x.key: _short(x.value) for x in model.metadata_props}
    return OtherFile(name=ONNX.name, whole={name: _tensor(x) for name, x in arrays.items()}, metadata=metadata)


OPENERS: Mapping[FileFormat, Callable[[Path], OtherFile]] = {GGUF: open_gguf, ONNX: open_onnx}


def _require(package: str, path: Path, found: FileFormat) -> None:
    if find_spec(package) is None:
        raise InvalidFileError(
            path,
            expected="a supported format",
            got=f"{found.name}, which requires the package {package}",
            remedy=INSTALL,
        )


def _quantisation(kind: Any, gguf: Any) -> Encoding | None:
    """How quantised values are stored, or `None` if `gguf` cannot decode them."""
    values, size = gguf.GGML_QUANT_SIZES[kind]

    def dequantize(content: bytes) -> torch.Tensor:
        blocks = np.frombuffer(content, np.uint8).reshape(-1, size)
        return torch.from_numpy(gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1))

    try:
        dequantize(bytes(size))
    except NotImplementedError:
        return None
    return Encoding(kind.name.lower(), values, size, dequantize)


def _is_single(value: Any, gguf: Any) -> bool:
    return bool(value.types) and value.types[0] != gguf.GGUFValueType.ARRAY


def _short(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Convert to a tensor; types that torch lacks become float32."""
    try:
        return torch.from_numpy(np.array(array))
    except TypeError:
        return torch.from_numpy(array.astype(np.float32))
