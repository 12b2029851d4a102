"""Read GGUF and ONNX files with their own packages, which are optional."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from hf_sane.records._errors import MALFORMED, InvalidFileError, name_some, reading
from hf_sane.screening._gguf_header import check_gguf_header, gguf_damage
from hf_sane.screening._onnx_messages import Weights, split_onnx
from hf_sane.screening._statistics import decode
from hf_sane.tokenization._byte_ranges import HubFile, LocalFile, MemoryFile, RandomAccessFile
from hf_sane.tokenization._checkpoints import AGAIN
from hf_sane.tokenization._formats import GGUF, ONNX, FileFormat
from hf_sane.tokenization._pickles import DAMAGED
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
ONNX_DTYPES = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "DOUBLE": torch.float64,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E5M2": torch.float8_e5m2,
    "COMPLEX64": torch.complex64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "BOOL": torch.bool,
}
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "STRING")
PART = re.compile(r"-\d{5}-of-\d{5}$")  # of a GGUF file that was split
MAX_TEXT = 200  # characters of a metadata value
HEADER_STEP, MAX_HEADER_BYTES = 2**20, 2**28  # first and largest part of a GGUF file that is searched for its header

Beside = Callable[[str], LocalFile | HubFile]  # the file of a name next to another one


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
        files: Tensors and their positions, by file.
        encodings: How tensors that are not plain values are stored.
        metadata: Texts and numbers in the file's metadata, by key.
        skipped: Tensors whose values cannot be read, and why.
    """

    name: str
    files: tuple[tuple[RandomAccessFile, dict[str, TensorEntry]], ...]
    encodings: dict[str, Encoding] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def open_gguf(file: LocalFile | HubFile, beside: Beside) -> OtherFile:
    """Read the metadata, and the positions of all tensors.

    Raises:
        InvalidFileError: If the file is damaged, or the package `gguf` is missing.
    """
    _require("gguf", file, GGUF)
    import gguf

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if isinstance(file, LocalFile):
            found = _parse_gguf(file, file.path, file.size, gguf)
        else:
            found = _fetch_gguf(file, Path(folder) / "header.gguf", gguf)
        metadata = {key: _short(value.contents()) for key, value in found.fields.items() if _is_single(value, gguf)}
        tensors = [(x.name, x.tensor_type, tuple(map(int, x.shape[::-1])), int(x.data_offset)) for x in found.tensors]
        sizes = [int(x.n_bytes) for x in found.tensors]
        del found  # closes the memory map
    entries: dict[str, TensorEntry] = {}
    encodings: dict[str, Encoding] = {}
    skipped: dict[str, str] = {}
    for (tensor, kind, shape, start), size in zip(tensors, sizes, strict=True):
        _check_end(file, start + size)
        dtype = GGUF_DTYPES.get(kind.name, torch.float32)  # quantised values become float32
        if kind.name not in GGUF_DTYPES:
            if (encoding := _quantisation(kind, gguf)) is None:
                skipped[tensor] = _unsupported(shape, kind.name)
                continue
            encodings[tensor] = encoding
        entries[tensor] = TensorEntry(torch.empty(shape, dtype=dtype, device="meta"), start, start + size)
    types = ", ".join(f"{count} {name}" for name, count in Counter(kind.name for _, kind, _, _ in tensors).items())
    return OtherFile(
        name=f"{GGUF.name} ({metadata.get('general.architecture', 'unknown architecture')}: {types or 'no tensors'})",
        files=((file, entries),),
        encodings=encodings,
        metadata=metadata,
        skipped=skipped,
    )


def _parse_gguf(file: LocalFile | HubFile, path: Path, known: int, gguf: Any) -> Any:
    """Parse a GGUF file, or a copy of which the first bytes are known."""
    check_gguf_header(str(file), path, known)
    try:
        return gguf.GGUFReader(path)
    except MALFORMED as error:
        raise gguf_damage(str(file)) from error


def _fetch_gguf(file: HubFile, path: Path, gguf: Any) -> Any:
    """Download as much of a GGUF file as its header takes, into a sparse file of the same size, and open that.

    The length of the header is known only at its end: zeros after the part that was downloaded are taken for entries,
    but then the header ends after it.
    """
    known = 0
    while True:
        with path.open("r+b" if known else "wb") as copy:
            copy.seek(known)
            known += copy.write(file.read(known, HEADER_STEP * max(1, 4 * (known // HEADER_STEP))))
            copy.truncate(file.size)
        is_last = known >= min(file.size, MAX_HEADER_BYTES)
        try:
            found = _parse_gguf(file, path, known, gguf)
            if found.data_offset > known:
                raise gguf_damage(str(file))
            return found
        except InvalidFileError:
            if is_last:
                raise


def open_onnx(file: LocalFile | HubFile, beside: Beside) -> OtherFile:
    """Read the positions of the weights of an ONNX file: initialisers and constants, also in subgraphs.

    Their values may be in external files.

    Messages of Protocol Buffers can only be parsed as a whole, so the values of large tensors are left out before
    `onnx` parses the rest.

    Raises:
        InvalidFileError: If a file is damaged or missing, or the package `onnx` is missing.
    """
    _require("onnx", file, ONNX)
    import onnx
    from google.protobuf.message import DecodeError

    entries: dict[str, TensorEntry] = {}
    small = bytearray()
    held: dict[str, TensorEntry] = {}
    external: dict[str, dict[str, TensorEntry]] = {}
    others: dict[str, LocalFile | HubFile] = {}
    skipped: dict[str, str] = {}
    with reading(str(file), expected="a whole ONNX file", remedy=AGAIN, also=(DecodeError,), got=DAMAGED):
        model, weights = split_onnx(file, onnx)
        for name, found in _unique(weights):
            if found.reason:
                skipped[name] = found.reason
                continue
            tensor, values = found.tensor, found.values
            shape, kind = tuple(tensor.dims), onnx.TensorProto.DataType.Name(tensor.data_type)
            if found.in_node and not _may_be_weights(shape, kind):
                continue
            if kind not in ONNX_DTYPES:
                skipped[name] = _unsupported(shape, kind)
                continue
            outline = torch.empty(shape, dtype=ONNX_DTYPES[kind], device="meta")
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                facts = {fact.key: fact.value for fact in tensor.external_data}
                place, start = facts["location"], int(facts.get("offset", 0))
                others[place] = others.get(place) or beside(place)
                _check_end(others[place], start + outline.nbytes)
                entry = TensorEntry(outline, start, start + int(facts.get("length", outline.nbytes)))
                external.setdefault(place, {})[name] = entry
            elif values is not None:
                entry = entries[name] = TensorEntry(outline, *values)
            else:
                content = _bytes_of(onnx.numpy_helper.to_array(tensor))
                entry = held[name] = TensorEntry(outline, len(small), len(small) + len(content))
                small += content
            if entry.stop - entry.start != outline.nbytes:
                expected, got = f"{outline.nbytes:,} bytes for {list(shape)}", f"{entry.stop - entry.start:,}"
                raise InvalidFileError(str(file), field=name, expected=expected, got=got, remedy=AGAIN)
    metadata = {"producer": f"{model.producer_name} {model.producer_version}".strip()}
    metadata |= {x.key: _short(x.value) for x in model.metadata_props}
    parts = ((others[place], found) for place, found in external.items())
    return OtherFile(
        name=ONNX.name,
        files=((file, entries), *parts, (MemoryFile(bytes(small)), held)),
        metadata=metadata,
        skipped=skipped,
    )


def _unique(weights: Iterable[Weights]) -> Iterator[tuple[str, Weights]]:
    """Tensors of an ONNX file under names that differ, although branches may use the same ones."""
    seen: Counter[str] = Counter()
    for found in weights:
        seen[found.name] += 1
        count = seen[found.name]
        yield (found.name if count == 1 else f"{found.name}#{count}"), found


def _may_be_weights(shape: tuple[int, ...], kind: str) -> bool:
    """Whether a tensor in a node may be weights: not a single number, and not a shape or list of axes."""
    return math.prod(shape) > 1 and (len(shape) > 1 or kind not in INTEGERS)


def _bytes_of(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _unsupported(shape: Iterable[int], kind: str) -> str:
    return f"{'x'.join(map(str, shape))}: values of type {kind} are not supported"


def _check_end(file: LocalFile | HubFile, stop: int) -> None:
    if stop > file.size:
        expected, got = f"a file of at least {stop:,} bytes", f"{file.size:,} bytes"
        raise InvalidFileError(str(file), expected=expected, got=got, remedy=AGAIN)


Opener = Callable[[LocalFile | HubFile, Beside], OtherFile]
OPENERS: Mapping[FileFormat, Opener] = {GGUF: open_gguf, ONNX: open_onnx}
BY_SUFFIX: Mapping[str, Opener] = {".gguf": open_gguf, ".onnx": open_onnx}


def choose_other(where: str, files: Iterable[str], subfolder: str | None, variant: str | None) -> list[str]:
    """The GGUF or ONNX file of a repository, or the parts of one.

    Args:
        where: Name of the repository, for messages.
        files: Paths of its files.
        subfolder: Subfolder to choose from.
        variant: End of the name of the file, such as `Q4_K_M`.

    Returns:
        Some of `files`; nothing if there is none.

    Raises:
        FileNotFoundError: If there are several to choose from.
    """
    folder = PurePosixPath((subfolder or "").strip("/"))
    groups: dict[str, list[str]] = {}
    for path in sorted(map(PurePosixPath, files)):
        if path.parent == folder and path.suffix in BY_SUFFIX:
            groups.setdefault(PART.sub("", path.stem), []).append(path.as_posix())
    fitting = [stem for stem in groups if _has_ending(stem, variant)] if variant else list(groups)
    if not variant and "model" in groups:  # beside model_fp16, model_quantized ...
        fitting = ["model"]
    if len(fitting) > 1 or (groups and not fitting):
        found = name_some([PurePosixPath(group[0]).name for group in groups.values()])
        raise FileNotFoundError(
            f"{where} holds {found}; choose one by the end of its name with --variant, such as Q4_K_M or fp16"
        )
    return groups[fitting[0]] if fitting else []


def _has_ending(stem: str, ending: str) -> bool:
    start, stem, ending = -len(ending) - 1, stem.casefold(), ending.casefold()
    return stem == ending or (stem.endswith(ending) and stem[start] in "._-")


def _require(package: str, file: LocalFile | HubFile, found: FileFormat) -> None:
    if find_spec(package) is None:
        raise InvalidFileError(
            str(file),
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
