"""Names, shapes and dtypes of a checkpoint without its weights: tensors on the meta device, enough for a layout."""

from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import NotASafetensorsRepoError

from hf_sane.core.types import StateDict
from hf_sane.records.patience import patiently
from hf_sane.records.sources import find_source
from hf_sane.tokenization.checkpoints import (
    PICKLE_SUFFIXES,
    find_weights,
    join_shards,
    parse_index,
    read_pickle,
    read_shards,
    strip_prefixes,
)
from hf_sane.tokenization.safetensors_header import fetch_header, read_header


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
        InvalidFileError: If a header is damaged, names an unknown dtype, or a pickle holds more than weights.
    """
    place = find_source(source, revision=revision)
    if isinstance(place, Path):
        return strip_prefixes(_read_path(place))
    return strip_prefixes(_read_repository(place.repo_id, place.revision))


def _read_repository(repo_id: str, revision: str | None) -> StateDict:
    api = HfApi()
    if patiently(api.file_exists, repo_id, SAFETENSORS_SINGLE_FILE, revision=revision):
        return patiently(fetch_header, repo_id, SAFETENSORS_SINGLE_FILE, revision=revision, api=api)
    if not patiently(api.file_exists, repo_id, SAFETENSORS_INDEX_FILE, revision=revision):
        raise NotASafetensorsRepoError(
            f"{repo_id} holds neither {SAFETENSORS_SINGLE_FILE} nor {SAFETENSORS_INDEX_FILE}; name a repository that does"
        )
    index = Path(patiently(hf_hub_download, repo_id, SAFETENSORS_INDEX_FILE, revision=revision))
    return join_shards(
        index, parse_index(index), lambda file: patiently(fetch_header, repo_id, file, revision=revision, api=api)
    )


def _read_path(path: Path) -> StateDict:
    path = find_weights(path)
    if path.suffix in PICKLE_SUFFIXES:
        return _outlines(read_pickle(path))  # loaded to the meta device, shared tensors would not be known as such
    if path.name.endswith(".index.json"):
        return read_shards(path, read_header)
    return read_header(path)


def _outlines(tensors: StateDict) -> StateDict:
    """The same tensors without their values; those that share memory share it again."""
    storages: dict[int, torch.UntypedStorage] = {}
    outlines = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:  # no tokens, as a layout says
            outlines[name] = tensor.to("meta")
            continue
        memory = tensor.untyped_storage()
        storage = storages.setdefault(memory._cdata, torch.UntypedStorage(memory.nbytes(), device="meta"))
        empty = torch.empty(0, dtype=tensor.dtype, device="meta")
        outlines[name] = empty.set_(storage, int(tensor.storage_offset()), tensor.shape, tensor.stride())
    return outlines
