"""Plan which bytes of a checkpoint to read: whole tensors, or a stratified sample of their rows."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_sane.tokenization._byte_ranges import Range
from hf_sane.tokenization._safetensors_header import TensorEntry

BLOCK_BYTES = 2**17  # largest block: several rows, or part of a long row
LEAST_BLOCK_BYTES = 2**12  # smallest block of a sample, since reading less takes as long
WHOLE_BYTES = 2**15  # tensors up to this size are always read in full: biases, norms
MIN_BLOCKS = 4  # blocks of a sampled tensor, since fewer do not show the spread
WHOLE_BLOCK_BYTES = 2**22  # blocks of tensors that are read in full


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The parts of a tensor to read.

    Attributes:
        blocks: Ranges of bytes in the file, ascending.
        is_whole: Whether they cover the whole tensor.
    """

    blocks: tuple[Range, ...]
    is_whole: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(stop - start for start, stop in self.blocks)


def plan_reads(entries: Mapping[str, TensorEntry], budget: int, *, seed: int = 0) -> dict[str, TensorPlan]:
    """Distribute a budget of bytes over tensors.

    Every tensor is divided into as many strata as blocks, with one random block in each, so that all rows are equally
    represented. Tensors of the same shape and dtype are read at the same positions, so that equal tensors give equal
    bytes.

    Args:
        entries: Tensors of one file.
        budget: Bytes to read. Small tensors, and a few kilobytes of every other tensor, are always read.
        seed: Random seed of the positions.

    Returns:
        Plans by tensor name.
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
    # Blocks are placed at random, one in each of `count` equal parts.
    free = size // unit - count * length
    gaps = np.floor((np.arange(count) + generator.random(count)) * (free + 1) / count).astype(np.int64)
    firsts = entry.start + unit * (gaps + length * np.arange(count))
    return TensorPlan(tuple((int(first), int(first) + unit * length) for first in firsts), is_whole=False)
