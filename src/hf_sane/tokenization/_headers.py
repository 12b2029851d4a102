"""Read a checkpoint's structure without its weights: tensors on the meta device, which suffice for a layout."""

from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import HfApi, hf_hub_download

from hf_sane.core._types import StateDict
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, find_source
from hf_sane.tokenization._checkpoints import (
    CheckpointSource,
    as_checkpoint,
    find_remote_weights,
    join_shards,
    load_whole,
    parse_index,
    read_shard,
    read_shards,
    weights_path,
)
from hf_sane.tokenization._formats import WHOLE, weights_reader
from hf_sane.tokenization._safetensors_header import fetch_header, read_header
from hf_sane.tokenization._state_dicts import choose_state_dict, choose_tensors
from hf_sane.tokenization._weight_files import is_index


def read_meta_state_dict(
    source: str | Path | CheckpointSource, *, revision: str | None = None, key: str | None = None
) -> StateDict:
    """Read names, shapes and dtypes of a checkpoint, without its weights.

    Args:
        source: A file of safetensors or `torch.save`, a folder, a shard index, or a Hub repo (only headers are
            downloaded), as in `load_state_dict`.
        revision: Branch, tag or commit of a Hub repo.
        key: Name of the state dict, if there are several.

    Returns:
        Tensors on the meta device, by name, in the order of the files.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        InvalidFileError: If a header is damaged or names an unknown dtype, or a file has an unsupported format or
            holds no network or several.
    """
    checkpoint = as_checkpoint(source, revision=revision, key=key)
    place = find_source(checkpoint.source, revision=checkpoint.revision)
    if isinstance(place, HubRepo):
        return choose_tensors(_read_repository(place, checkpoint), str(place), key=checkpoint.key)
    return read_outlines(weights_path(checkpoint), key=checkpoint.key)


def read_outlines(path: Path, *, key: str | None = None) -> StateDict:
    """The tensors of `read_weights` without values, on the meta device."""
    reader = weights_reader(path)
    if reader in WHOLE:  # loading to the meta device would lose which tensors are shared
        return _outlines(choose_state_dict(load_whole(path), path, key=key))
    return choose_tensors(
        read_shards(path, _read_shard_header) if reader == "index" else read_header(path), path, key=key
    )


def _read_shard_header(path: Path) -> StateDict:
    return _outlines(read_shard(path)) if weights_reader(path) in WHOLE else read_header(path)


def _read_repository(repo: HubRepo, checkpoint: CheckpointSource) -> StateDict:
    api = HfApi()
    info = patiently(api.model_info, repo.repo_id, revision=repo.revision)
    name = find_remote_weights(repo, checkpoint, info)
    if not is_index(name):
        return patiently(fetch_header, repo.repo_id, name, revision=info.sha, api=api)
    index = Path(patiently(hf_hub_download, repo.repo_id, name, revision=info.sha))
    folder = PurePosixPath(name).parent
    return join_shards(
        index,
        parse_index(index),
        lambda file: patiently(fetch_header, repo.repo_id, (folder / file).as_posix(), revision=info.sha, api=api),
    )


def _outlines(tensors: StateDict) -> StateDict:
    """The tensors without their values; tensors that share memory still share it."""
    storages: dict[int, torch.UntypedStorage] = {}
    outlines = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:  # not tokenized by the layout
            outlines[name] = tensor.to("meta")
            continue
        memory = tensor.untyped_storage()
        storage = storages.setdefault(memory._cdata, torch.UntypedStorage(memory.nbytes(), device="meta"))
        empty = torch.empty(0, dtype=tensor.dtype, device="meta")
        outlines[name] = empty.set_(storage, int(tensor.storage_offset()), tensor.shape, tensor.stride())
    return outlines
