"""The columns of a zoo on disk: one row per network and epoch, in parquet files that are read in place."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, List, Value
from safetensors.torch import save as save_tensors
from torch import Tensor

from hf_sane.networks._shifts import STRENGTHS
from hf_sane.records._progress import tracked

SPLITS = ("train", "validation", "test")
MEASURES = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "generalization_gap",
)
NUMBERS = ("learning_rate", "weight_decay", "dropout", "data_fraction")
CHOICES = ("optimizer", "initialization", "activation", "architecture")
# A flat list of float32 is read in place (Arrow, zero-copy) and streams fast; benchmarks/zoo_columns.py compares
# others.
FEATURES = Features(
    {
        "run_id": Value("string"),
        "epoch": Value("int32"),
        "layout": Value("string"),
        "tokens": List(Value("float32")),
        "template": Value("binary"),
        **{name: Value("float32") for name in (*MEASURES, *NUMBERS)},
        **{name: Value("string") for name in CHOICES},
        "seed": Value("int64"),
    }
)
# Columns of zoos with children in addition to those of `FEATURES`: the run that a network continues (null for
# ancestors), and the shifts of its images.
ANCESTOR = "ancestor"
CHILD_FEATURES = Features(
    {
        **FEATURES,
        ANCESTOR: Value("string"),
        "combination": Value("string"),
        **{f"shift_{name}": Value("float32") for name in STRENGTHS},
        "shift_classes": Value("string"),
    }
)
# Columns of imported networks in addition to those of `FEATURES`. Unknown values are null.
IMPORT_FEATURES = Features(
    {
        "repo_id": Value("string"),
        "file": Value("string"),
        "revision": Value("string"),
        "author": Value("string"),
        "base_model": Value("string"),
        "license": Value("string"),
        "library_name": Value("string"),
        "pipeline_tag": Value("string"),
        "downloads": Value("int64"),
        "likes": Value("int64"),
        "num_weights": Value("int64"),
        "file_bytes": Value("int64"),
    }
)
METRIC_PREFIX = "metric_"  # prefix of columns with metrics from cards: float64, null if a card has none
# Stored once per file.
REPEATING = (*CHOICES, ANCESTOR, "combination", "author", "base_model", "license", "library_name", "pipeline_tag")
ROW_GROUP_BYTES = 8 * 2**20  # one Arrow batch; readers hold several times as much, and list offsets are int32
MAX_ROWS_PER_GROUP = 1000
SHARD_BYTES = 500 * 2**20


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A row of the zoo: one network at one epoch.

    Attributes:
        tokens: `[N, D]` float32, raw (not normalised), with zeros as padding.
        template: Tensors that are not tokenized (integer buffers, or BatchNorm), by name.
        properties: The other columns by name; missing ones are null.
    """

    tokens: Tensor
    template: Mapping[str, Tensor]
    properties: Mapping[str, Any]


def template_bytes(template: Mapping[str, Tensor]) -> bytes:
    """The template in safetensors format; no bytes for an empty template."""
    return save_tensors({name: tensor.contiguous() for name, tensor in template.items()}) if template else b""


def record_table(records: list[ModelRecord], features: Features = FEATURES) -> pa.Table:
    """Rows as an Arrow table with the schema of `features`; token arrays are copied once."""
    schema = features.arrow_schema
    flat = [record.tokens.reshape(-1).to(torch.float32).numpy() for record in records]
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in flat])])
    columns: dict[str, Any] = {
        "tokens": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(flat))),
        "template": pa.array([template_bytes(record.template) for record in records], pa.binary()),
    }
    for entry in schema:
        if entry.name not in columns:
            columns[entry.name] = pa.array([record.properties.get(entry.name) for record in records], entry.type)
    return pa.Table.from_arrays([columns[entry.name] for entry in schema], schema=schema)


def batched(records: Iterable[ModelRecord], features: Features = FEATURES) -> Iterator[pa.Table]:
    """Yield tables of at most `ROW_GROUP_BYTES` of tokens."""
    rows: list[ModelRecord] = []
    size = 0
    for record in records:
        nbytes = 4 * record.tokens.numel()
        if rows and (size + nbytes > ROW_GROUP_BYTES or len(rows) == MAX_ROWS_PER_GROUP):
            yield record_table(rows, features)
            rows, size = [], 0
        rows.append(record)
        size += nbytes
    if rows:
        yield record_table(rows, features)


def write_parquet(tables: Iterable[pa.Table], folder: Path, split: str) -> list[Path]:
    """Write a split as files `<split>-0000i-of-0000n.parquet` of about `SHARD_BYTES`, replacing older ones.

    The files get their names once everything is written. The same content always gives the same bytes.

    Args:
        tables: Row groups with the same schema. Without any, no file is written, since readers reject files without
            rows.
        folder: Output folder; created if missing.
        split: Name of the split.

    Returns: Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial: list[Path] = []
    writer: pq.ParquetWriter | None = None
    written = 0
    for table in tracked(tables, desc=f"writing {split}", unit="block"):
        if writer is None or written + table.nbytes > SHARD_BYTES:
            if writer is not None:
                writer.close()
            partial.append(folder / f".{split}-{len(partial):05d}.partial")
            repeating = [name for name in REPEATING if name in table.schema.names]
            writer = pq.ParquetWriter(partial[-1], table.schema, use_dictionary=repeating)
            written = 0
        writer.write_table(table)
        written += table.nbytes
    if writer is not None:
        writer.close()
    for old in folder.glob(f"{split}-*.parquet"):
        old.unlink()
    names = [f"{split}-{i:05d}-of-{len(partial):05d}.parquet" for i in range(len(partial))]
    return [path.replace(folder / name) for path, name in zip(partial, names, strict=True)]
