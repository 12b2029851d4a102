"""Networks with known embeddings, and the nearest ones to a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_sane.probing._zoo_features import embed_split
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.screening._embedding import Encoder
from hf_sane.zoo._dataset import Zoo

NEAREST = 5  # networks to list
POOLING = "mean"  # pooling of the embeddings to compare
EMBED_AGAIN = "create it with hf-sane embed --poolings mean and the SANE of this scan"


@dataclass(frozen=True)
class KnownModels:
    """Names of networks and their embeddings `[M, Z]`."""

    names: Sequence[str]
    vectors: NDArray[np.float64]

    def nearest(self, vector: Sequence[float]) -> tuple[tuple[str, float], ...]:
        """Names and Euclidean distances of the nearest networks, in ascending order.

        Raises:
            ValueError: If the networks were embedded by another SANE.
        """
        if self.vectors.shape[1] != len(vector):
            raise ValueError(
                f"expected an index of embeddings of {len(vector)} numbers, got {self.vectors.shape[1]}; {EMBED_AGAIN}"
            )
        distances = np.linalg.norm(self.vectors - np.asarray(vector), axis=1)
        return tuple((self.names[index], float(distances[index])) for index in np.argsort(distances)[:NEAREST])


def read_known_models(folder: Path) -> KnownModels:
    """Read the output of `hf-sane embed`.

    Raises:
        InvalidFileError: If there are no embeddings.
    """
    names, vectors = [], []
    for path in sorted(folder.glob("*.parquet")):
        with reading(path, expected="embeddings of networks", remedy=EMBED_AGAIN, also=(pa.ArrowException,)):
            table = pq.read_table(path)
        if POOLING not in table.column_names:
            raise InvalidFileError(
                path, expected=f"a column {POOLING!r}", got=", ".join(table.column_names), remedy=EMBED_AGAIN
            )
        rows = table.to_pylist()
        names += [_name(row) for row in rows]
        vectors += [row[POOLING] for row in rows]
    if not vectors:
        raise InvalidFileError(folder, expected="a zoo, or embeddings", got="no parquet files", remedy=EMBED_AGAIN)
    return KnownModels(names, np.array(vectors, np.float64))


def embed_known_models(zoo: Zoo, encoder: Encoder) -> KnownModels:
    """Embed the networks of a zoo, as they are stored."""
    model, names, parts = encoder.load(), [], []
    for split in zoo.splits.values():
        parts.append(embed_split(model, encoder.extractor, split, poolings=(POOLING,), aligned=False)[POOLING])
        columns = {name: split.column(name) for name in ("run_id", "epoch")}
        names += [_name(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    return KnownModels(names, np.concatenate([part.double().numpy() for part in parts]))


def _name(row: dict[str, Any]) -> str:
    return str(row["checkpoint"]) if "checkpoint" in row else f"{row['run_id']}, epoch {row['epoch']}"
