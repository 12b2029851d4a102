"""Read zoos that are stored as one array, the format of the small-CNN zoo of Unterthiner et al. (2020).

`weights.npy` has one network per row, `layout.csv` maps columns to tensors (`varname`, `start_idx`, `end_idx`,
`shape`), and `metrics.csv` (or `.csv.gz`) has one row of properties per network. Tensors of TensorFlow are converted
to PyTorch: `conv2d/kernel:0` (height, width, inputs, outputs) is `conv2d.weight` (outputs, inputs, height, width).
"""

import ast
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.tokenization._formats import file_format
from hf_sane.zoo.importing._property_files import STEP, PropertyTable, read_properties
from hf_sane.zoo.importing._trees import Tree

logger = logging.getLogger(__name__)

WEIGHTS, LAYOUT, METRICS = "weights.npy", "layout.csv", ("metrics.csv", "metrics.csv.gz")
ARRAY_FILES = (WEIGHTS, LAYOUT, *METRICS)
COLUMNS = ("varname", "start_idx", "end_idx", "shape")
NAMES = {"kernel:0": "weight", "bias:0": "bias", "kernel": "weight", "bias": "bias"}
# Permutation from TensorFlow's axes to PyTorch's, by the number of axes of a kernel.
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
EPOCH = "epoch"  # the zoo's name for a step
REMEDY = "download the zoo again"


@dataclass(frozen=True)
class ArrayTensor:
    """A tensor as columns of the array.

    Attributes:
        name: Name in PyTorch.
        start: First column.
        shape: Shape in the array.
        axes: Order of the axes in PyTorch.
    """

    name: str
    start: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of scalars."""
        return int(np.prod(self.shape, dtype=np.int64))


class ArrayZoo:
    """The networks of an array, read row by row from a memory-mapped file.

    Args:
        tree: Tree with the files; members of an archive are unpacked.
        folder: Folder of `weights.npy` below the root.

    Raises:
        InvalidFileError: If the files are damaged or inconsistent.
    """

    def __init__(self, tree: Tree, folder: PurePosixPath) -> None:
        self.folder = folder
        if str(folder / LAYOUT) not in tree.sizes:
            expected = f"the file {LAYOUT} next to it, which maps columns to tensors"
            raise InvalidFileError(str(folder / WEIGHTS), expected=expected, got="none", remedy=REMEDY)
        self.table = self._properties(tree)  # small files first, since an archive keeps only a few members unpacked
        self.tensors = _read_layout(tree.fetch(str(folder / LAYOUT)))
        path = tree.fetch(str(folder / WEIGHTS))
        expected = "an array of weights (npy)"
        if not (found := file_format(path)).holds_weights:
            raise InvalidFileError(path, expected=expected, got=found.name, remedy=REMEDY)
        with reading(path, expected=expected, remedy=REMEDY):
            self.weights = np.load(path, mmap_mode="r", allow_pickle=False)
        wanted = max(tensor.start + tensor.size for tensor in self.tensors)
        shape = self.weights.shape
        if len(shape) != 2 or shape[1] != wanted or self.weights.dtype.kind != "f":
            raise InvalidFileError(
                path,
                expected=f"floating-point rows of {wanted} weights, as in {LAYOUT}",
                got=f"{self.weights.dtype} of shape {shape}",
                remedy=REMEDY,
            )
        if self.table is not None and len(self.table.rows) != len(self.weights):
            raise InvalidFileError(
                path,
                expected=f"as many networks as {self.table.file} has rows, {len(self.table.rows):,}",
                got=f"{len(self.weights):,}",
                remedy=REMEDY,
            )

    def __len__(self) -> int:
        return len(self.weights)

    def name(self, row: int) -> str:
        """Name of a network."""
        return f"{self.folder / WEIGHTS}/{row:06d}"

    def header(self) -> StateDict:
        """The tensors of every network, on the meta device."""
        return self._cut(torch.empty(self.weights.shape[1], device="meta"))

    def state_dict(self, row: int) -> StateDict:
        """A copy of the tensors of one network, in float32."""
        return self._cut(torch.from_numpy(np.array(self.weights[row], dtype=np.float32)))

    def _cut(self, values: Tensor) -> StateDict:
        return {
            tensor.name: values[tensor.start : tensor.start + tensor.size]
            .reshape(tensor.shape)
            .permute(tensor.axes)
            .contiguous()
            for tensor in self.tensors
        }

    def _properties(self, tree: Tree) -> PropertyTable | None:
        for name in METRICS:
            path = str(self.folder / name)
            if tree.sizes.get(path) is not None:
                table = read_properties(tree.fetch(path))
                if EPOCH in table.columns:
                    return table
                rows = [{EPOCH if name == STEP else name: v for name, v in row.items()} for row in table.rows]
                return replace(table, rows=rows)
        logger.warning(
            "%s: no %s next to it, so nothing is known about its networks, and each counts as its own run",
            self.folder / WEIGHTS,
            METRICS[0],
        )
        return None


def find_arrays(tree: Tree) -> Iterator[PurePosixPath]:
    """Find folders with a zoo as one array."""
    for path in map(PurePosixPath, tree.sizes):
        if path.name == WEIGHTS and any(str(path.parent / name) in tree.sizes for name in (LAYOUT, *METRICS)):
            yield path.parent


def _read_layout(path: Path) -> list[ArrayTensor]:
    """Read the tensors of the array, which must not overlap or leave gaps."""
    table = read_properties(path)
    found = []
    end = 0
    for place, row in zip(table.places, table.rows, strict=True):
        if missing := [name for name in COLUMNS if row.get(name) is None]:
            expected = f"the columns {', '.join(COLUMNS)}"
            raise InvalidFileError(path, field=place, expected=expected, got=f"no {missing}", remedy=REMEDY)
        expected = "whole numbers and a shape such as (3, 3, 1, 16)"
        with reading(path, expected=expected, remedy=REMEDY, field=place, also=(SyntaxError,)):
            start, stop = int(row["start_idx"]), int(row["end_idx"])
            shape = tuple(int(size) for size in np.atleast_1d(ast.literal_eval(str(row["shape"]))))
        *layer, kind = str(row["varname"]).split("/")
        name = ".".join([*layer[-1:], NAMES.get(kind, kind)])
        axes = KERNEL_AXES.get(len(shape)) if NAMES.get(kind) == "weight" else tuple(range(len(shape)))
        size = int(np.prod(shape, dtype=np.int64))
        if axes is None or start != end or stop - start != size:
            raise InvalidFileError(
                path,
                field=place,
                expected=f"a tensor that starts at column {end} and has the length of its shape",
                got=f"{row['varname']} of shape {shape} from {start} to {stop}",
                remedy=REMEDY,
            )
        end = stop
        found.append(ArrayTensor(name, start, shape, axes))
    names = [tensor.name for tensor in found]
    if len(set(names)) < len(names):
        raise InvalidFileError(path, expected="tensors with different names", got=names, remedy=REMEDY)
    return found
