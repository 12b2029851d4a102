"""A checkpoint as a mapping that reads a tensor when it is asked for, so that large ones never lie in memory whole."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_sane.core.types import StateDict
from hf_sane.records.errors import reading
from hf_sane.tokenization.checkpoints import (
    AGAIN,
    PICKLE_SUFFIXES,
    Source,
    find_weights,
    index_shards,
    load_state_dict,
    local_path,
    strip_prefixes,
)
from hf_sane.tokenization.headers import read_meta_state_dict
from hf_sane.tokenization.safetensors_header import read_header

MAX_MAPPED_BYTES = 2**26


class LazyCheckpoint(Mapping[str, Tensor]):
    """The tensors of safetensors files, by name.

    Every access reads anew, and what was read is freed with the last reference to it. A mapping that stays counts as memory
    page by page, so a file is mapped anew after every `MAX_MAPPED_BYTES`; not for every tensor, because each time its header
    is parsed.

    Args:
        path: A safetensors file or a shard index, whose headers are read and checked at once.

    Attributes:
        outlines: Tensors on the meta device: names, shapes and dtypes.
    """

    def __init__(self, path: Path) -> None:
        self.outlines: StateDict = read_meta_state_dict(path)
        if path.name.endswith(".index.json"):
            stored = {name: path.parent / file for file, names in index_shards(path).items() for name in names}
        else:
            stored = dict.fromkeys(read_header(path), path)
        self._mapped: tuple[Path, Any] | None = None  # the open file
        self._mapped_bytes = 0  # read from it
        self._places = strip_prefixes({name: (place, name) for name, place in stored.items()})

    def __getitem__(self, name: str) -> Tensor:
        path, stored_name = self._places[name]
        with reading(path, field=name, expected="a tensor", remedy=AGAIN, also=(SafetensorError,)):
            return self._file(path, self.outlines[name].nbytes).get_tensor(stored_name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor (of its first axis); only they are read."""
        path, stored_name = self._places[name]
        num_bytes = self.outlines[name][start:stop].nbytes
        return self._file(path, num_bytes).get_slice(stored_name)[start:stop]

    def _file(self, path: Path, num_bytes: int) -> Any:
        """The file, mapped, before so many bytes of it are read."""
        if self._mapped is None or self._mapped[0] != path or self._mapped_bytes + num_bytes > MAX_MAPPED_BYTES:
            self._mapped, self._mapped_bytes = (path, safe_open(path, framework="pt")), 0
        self._mapped_bytes += num_bytes
        return self._mapped[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)


def open_checkpoint(source: Source, *, revision: str | None = None) -> Mapping[str, Tensor]:
    """Read a network's tensors one at a time.

    Args:
        source: As in `load_state_dict`. Tensors in memory are shared; of safetensors only the headers are read now; a
            pickle has no other way than to be loaded whole.
        revision: Branch, tag or commit of a Hub repo.

    Returns:
        Tensors by name, without wrapper prefixes.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        ValueError: If a file is damaged, an index points outside its folder, or a pickle holds more than weights.
        TypeError: If `source` is nothing of the above.
    """
    if isinstance(source, str | Path):
        path = find_weights(local_path(source, revision=revision))
        if path.suffix not in PICKLE_SUFFIXES:
            return LazyCheckpoint(path)
        source = path
    return load_state_dict(source)
