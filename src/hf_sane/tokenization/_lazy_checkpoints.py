"""Checkpoints as mappings that read tensors on access, so that large ones need not fit in memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._errors import reading
from hf_sane.tokenization._checkpoints import (
    AGAIN,
    CheckpointSource,
    Source,
    as_checkpoint,
    index_shards,
    is_lazy,
    load_state_dict,
    read_weights,
    weights_path,
)
from hf_sane.tokenization._formats import weights_reader
from hf_sane.tokenization._headers import read_outlines
from hf_sane.tokenization._safetensors_header import read_header
from hf_sane.tokenization._state_dicts import choose_tensors

MAX_MAPPED_BYTES = 2**26


class LazyCheckpoint(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, read on access.

    Every access reads the file again, and a tensor is freed with its last reference. Pages of a memory-mapped file
    count as memory, so the file is mapped again after every `MAX_MAPPED_BYTES`, but not for every tensor, since that
    parses its header each time.

    Args:
        path: A safetensors file or a shard index; headers are read and checked immediately.
        key: Name of the network, if the file also holds its average.

    Attributes:
        outlines: Tensors on the meta device: names, shapes and dtypes.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.outlines: StateDict = read_outlines(path, key=key)
        if weights_reader(path) == "index":
            stored = {name: path.parent / file for file, names in index_shards(path).items() for name in names}
        else:
            stored = dict.fromkeys(read_header(path), path)
        self._mapped: tuple[Path, Any] | None = None  # the open file
        self._mapped_bytes = 0  # read from it
        self._places = choose_tensors({name: (place, name) for name, place in stored.items()}, path, key=key)

    def __getitem__(self, name: str) -> Tensor:
        path, stored_name = self._places[name]
        with reading(path, field=name, expected="a tensor", remedy=AGAIN, also=(SafetensorError,)):
            return self._file(path, self.outlines[name].nbytes).get_tensor(stored_name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read only some rows of a tensor, along its first axis."""
        path, stored_name = self._places[name]
        num_bytes = self.outlines[name][start:stop].nbytes
        return self._file(path, num_bytes).get_slice(stored_name)[start:stop]

    def _file(self, path: Path, num_bytes: int) -> Any:
        """The mapped file, ready to read `num_bytes` from."""
        if self._mapped is None or self._mapped[0] != path or self._mapped_bytes + num_bytes > MAX_MAPPED_BYTES:
            self._mapped, self._mapped_bytes = (path, safe_open(path, framework="pt")), 0
        self._mapped_bytes += num_bytes
        return self._mapped[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


def open_checkpoint(source: Source, *, revision: str | None = None, key: str | None = None) -> Mapping[str, Tensor]:
    """Read a network's tensors one at a time.

    Args:
        source: As in `load_state_dict`. Tensors in memory are shared; only the headers of safetensors are read
            immediately; pickles have to be loaded in full.
        revision: Branch, tag or commit of a Hub repo.
        key: Name of the state dict, if there are several.

    Returns:
        Tensors by name, without wrapper prefixes.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        ValueError: If a file is damaged, an index points outside its folder, or a pickle holds more than weights.
        TypeError: If `source` is nothing of the above.
    """
    if isinstance(source, str | Path | CheckpointSource):
        checkpoint = as_checkpoint(source, revision=revision, key=key)
        path = weights_path(checkpoint)
        if is_lazy(path):
            return LazyCheckpoint(path, checkpoint.key)
        return read_weights(path, key=checkpoint.key)
    return load_state_dict(source, key=key)
