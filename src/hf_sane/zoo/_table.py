"""Read rows of a zoo in place: tokens as views of (memory-mapped) Arrow buffers, other columns as arrays."""

from functools import cached_property

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_sane.zoo._records import FEATURES


class ZooTable:
    """One split of a zoo, stored in Arrow.

    Args:
        dataset: Dataset with the columns of `FEATURES` and any number of Arrow chunks. Selected or shuffled datasets
            are copied to memory.

    Raises:
        KeyError: If columns are missing.
        TypeError: If `tokens` is not a flat list of float32.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        if missing := [name for name in FEATURES if name not in dataset.column_names]:
            raise KeyError(f"this is not a zoo: columns {missing} are missing, it has {dataset.column_names}")
        if dataset.features["tokens"] != FEATURES["tokens"]:
            raise TypeError(f"expected column tokens of {FEATURES['tokens']}, got {dataset.features['tokens']}")
        if dataset._indices is not None:
            dataset = dataset.flatten_indices(keep_in_memory=True)
        self.dataset = dataset.with_format(None)
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _chunks(self) -> tuple[np.ndarray, list[np.ndarray], list[Tensor]]:
        """First row of each chunk, its list offsets, and its scalars (zero-copy)."""
        chunks = [chunk for chunk in self.dataset.data.column("tokens").chunks if len(chunk)]
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        return starts, offsets, [torch.from_dlpack(chunk.values) for chunk in chunks]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of scalars in each row, `[M]` int64."""
        _, offsets, _ = self._chunks
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(found).astype(np.int64) for found in offsets)])

    def tokens(self, row: int) -> Tensor:
        """All scalars of a row, as a flat read-only view of the Arrow buffer, which may be a memory-mapped file."""
        starts, offsets, values = self._chunks
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        within = row - int(starts[chunk])
        return values[chunk][offsets[chunk][within] : offsets[chunk][within + 1]]

    def gather(self, rows: np.ndarray, index: Tensor) -> Tensor:
        """Gather scalars `[k, L]` of rows `[k]`, by their `index` `[k, L]` int64 within each row.

        Only memory pages that contain them are read.

        Raises:
            IndexError: If an index exceeds its row, since the next row follows in memory.
        """
        if index.numel():
            lowest, highest = index.aminmax(dim=1)
            wanting = (lowest < 0) | (highest >= torch.from_numpy(self.lengths[rows]))
            if wanting.any():
                bad = int(wanting.nonzero()[0])
                raise IndexError(
                    f"row {rows[bad]} has {self.lengths[rows[bad]]} scalars, got indices from {int(lowest[bad])} to "
                    f"{int(highest[bad])}; use the layout of that row"
                )
        starts, offsets, values = self._chunks
        chunks = np.searchsorted(starts, rows, side="right") - 1
        result = torch.empty(index.shape)
        for chunk in np.unique(chunks):
            mine = np.flatnonzero(chunks == chunk)
            first = torch.from_numpy(offsets[chunk][rows[mine] - starts[chunk]].astype(np.int64))
            if len(mine) == len(rows):
                return torch.take(values[chunk], index + first.unsqueeze(1))
            result[mine] = torch.take(values[chunk], index[mine] + first.unsqueeze(1))
        return result

    def template(self, row: int) -> bytes:
        """Template of a row in safetensors format; may be empty."""
        return self.dataset[row]["template"]

    @property
    def scalar_columns(self) -> list[str]:
        """Names of the columns with one value per network."""
        return [name for name in self.dataset.column_names if name not in ("tokens", "template")]

    def column(self, name: str) -> np.ndarray:
        """A whole column, read-only and cached: numbers in their dtype (NaN for unknown ones), text as objects.

        Raises:
            KeyError: If there is no such column, or it is not scalar.
        """
        if name not in self.scalar_columns:
            raise KeyError(f"the zoo has no scalar column {name!r}; it has {self.scalar_columns}")
        if name not in self._columns:
            values = self.dataset.data.column(name).to_numpy()
            values.flags.writeable = False
            self._columns[name] = values
        return self._columns[name]
