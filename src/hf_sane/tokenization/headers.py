"""Names, shapes and dtypes of a checkpoint without its weights: tensors on the meta device, enough for a layout."""

from pathlib import Path

import torch
from huggingface_hub import HfApi, parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils import SafetensorsFileMetadata

from hf_sane.core.types import StateDict
from hf_sane.tokenization.checkpoints import PICKLE_SUFFIXES, find_weights, read_pickle, read_shards, strip_prefixes

# The names of the safetensors format (https://huggingface.co/docs/safetensors), as far as networks use them.
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


def read_meta_state_dict(source: str | Path, *, revision: str | None = None) -> StateDict:
    """Read what a checkpoint holds, without its weights.

    Args:
        source: A safetensors file, folder or shard index, a weights-only pickle, or a Hub repo id (of which only the headers
            are downloaded), as in `load_state_dict`.
        revision: Branch, tag or commit of a Hub repo.

    Returns:
        Tensors on the meta device, by name, in the order of the files.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder are missing.
        ValueError: If a header is damaged, names an unknown dtype, or a pickle holds more than weights.
    """
    path = Path(source)
    if path.exists():
        return strip_prefixes(_read_path(path))
    if isinstance(source, Path) or source.count("/") > 1 or path.suffix in (".safetensors", ".json", *PICKLE_SUFFIXES):
        raise FileNotFoundError(f"no such file or folder: {source}; give an existing path or a Hub repo id")
    found: StateDict = {}
    for name, header in sorted(HfApi().get_safetensors_metadata(source, revision=revision).files_metadata.items()):
        found |= meta_tensors(header, f"{source}/{name}")
    return strip_prefixes(found)


def _read_path(path: Path) -> StateDict:
    path = find_weights(path)
    if path.suffix in PICKLE_SUFFIXES:
        return read_pickle(path, "meta")
    if path.name.endswith(".index.json"):
        return read_shards(path, _read_header)
    return _read_header(path)


def _read_header(path: Path) -> StateDict:
    try:
        header = parse_local_safetensors_file_metadata(path)
    except SafetensorsParsingError as error:
        raise ValueError(
            f"{path} has no whole safetensors header ({error}): truncated, or another format; download or save it again"
        ) from error
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    expected = 8 + header_bytes + max((info.data_offsets[1] for info in header.tensors.values()), default=0)
    if (size := path.stat().st_size) < expected:
        raise ValueError(f"{path} is truncated: expected {expected} bytes, got {size}; download or save it again")
    return meta_tensors(header, str(path))


def meta_tensors(header: SafetensorsFileMetadata, where: str) -> StateDict:
    """Tensors on the meta device from the header of one safetensors file.

    Args:
        header: As huggingface_hub parses it, of a local or remote file.
        where: What messages call the file.

    Raises:
        ValueError: For an unknown dtype.
    """
    if unknown := sorted({info.dtype for info in header.tensors.values()} - DTYPES.keys()):
        raise ValueError(f"{where} holds tensors of dtype {unknown}; expected {', '.join(DTYPES)}; convert it first")
    return {
        name: torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta") for name, info in header.tensors.items()
    }
