"""Which bytes of a checkpoint are read: whole tensors, or a stratified sample of their rows."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_sane.tokenization._byte_ranges import Range
from hf_sane.tokenization._safetensors_header import TensorEntry

BLOCK_BYTES = 2**17  # read in one piece, at most; several rows, or a part of a long one
LEAST_BLOCK_BYTES = 2**12  # of a small share: to read less takes as long
WHOLE_BYTES = 2**15  # tensors up to this are always read whole: biases, norms
MIN_BLOCKS = 4  # of a sampled tensor: fewer say nothing of their spread
WHOLE_BLOCK_BYTES = 2**22  # of tensors that are read whole, at a time


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What is read of a tensor.

    Attributes:
        blocks: Ranges of bytes in the file, ascending.
        is_whole: Whether they are all of it.
    """

    blocks: tuple[Range, ...]
    is_whole: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(stop - start for start, stop in self.blocks)


def plan_reads(entries: Mapping[str, TensorEntry], budget: int, *, seed: int = 0) -> dict[str, TensorPlan]:
    """Share a number of bytes out among tensors.

    Every tensor is cut into as many strata as it has blocks, and one block is drawn in each, so that the first rows
    count as much as the last. Tensors of one shape and dtype are read at the same places: equal tensors give equal
    bytes.

    Args:
        entries: Tensors of one file.
        budget: Bytes to read. Small tensors and a few kilobytes of each other one are read in any case.
        seed: Random seed of the places.

    Returns:
        What to read, by tensor.
    """
    sizes = {name: entry.stop - entry.start for name, entry in entries.items()}
    small = sum(size for size in sizes.values() if size <= WHOLE_BYTES)
    large = sum(size for size in sizes.values() if size > WHOLE_BYTES)
    share = 1.0 if budget >= small + large else max(0, budget - small) / max(1, large)
    return {name: _plan(entry, share, seed) for name, entry in entries.items()}


def _plan(entry: TensorEntry, share: float, seed: int) -> TensorPlan:
    size, outline = entry.stop - entry.start, entry.outline
    row = math.prod(outline.shape[1:]) * outline.itemsize
    count = max(MIN_BLOCKS, round(share * size / BLOCK_BYTES))
    longest = min(BLOCK_BYTES, max(LEAST_BLOCK_BYTES, round(share * size / count)))
    if share >= 1 or size <= WHOLE_BYTES or count * longest >= size:
        step = WHOLE_BLOCK_BYTES - WHOLE_BLOCK_BYTES % (row if 0 < row <= BLOCK_BYTES else outline.itemsize)
        starts = range(entry.start, entry.stop, step)
        return TensorPlan(tuple((start, min(start + step, entry.stop)) for start in starts), is_whole=True)
    unit = row if row <= longest else outline.itemsize
    length = longest // unit
    # Not `hash`, which differs from process to process.
    text = f"{seed} {list(outline.shape)} {outline.dtype}"
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    # What is not read lies between the blocks: a place is drawn in each of `count` equal parts of it.
    free = size // unit - count * length
    gaps = np.floor((np.arange(count) + generator.random(count)) * (free + 1) / count).astype(np.int64)
    firsts = entry.start + unit * (gaps + length * np.arange(count))
    return TensorPlan(tuple((int(first), int(first) + unit * length) for first in firsts), is_whole=False)
