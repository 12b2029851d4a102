"""Mix zoos of different data sets or architectures into one with tokens of the same size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, Value

from hf_sane.core._layout import Layout
from hf_sane.records._run_record import RunRecord
from hf_sane.zoo._dataset import Zoo, ZooSplit, open_data
from hf_sane.zoo._facts import DEFAULT_CONFIG, MIX_KEY, ZooFacts, layout_key
from hf_sane.zoo._records import ANCESTOR, SPLITS, write_parquet
from hf_sane.zoo._writing import RECORD_NAME, writing_zoo

SOURCE_COLUMN = "zoo"  # column with the zoo that a network is from


def mix_zoos(
    zoos: Mapping[str, Zoo],
    output: str | Path,
    *,
    config: str = DEFAULT_CONFIG,
    name: str | None = None,
    token_dim: int | None = None,
    token_layout: str | None = None,
    describe: Callable[[Path, Zoo], object] | None = None,
) -> Zoo:
    """Mix zoos into one, so that a single SANE can be trained on all of them.

    If the zoos differ in token size, weights are tokenized again without rounding. Splits are kept: a run in the test
    split of one zoo is in the test split of the mixture. Runs are renamed to `<zoo>/<run>`, and the column `zoo` names
    the zoo of each network. Alignments are dropped, since `align_zoo` gives each architecture of the mixture a single
    reference for all of its networks. Columns that only some zoos have are null for the others.

    Args:
        zoos: At least one zoo, by its name in the mixture.
        output: Folder of the mixture; it may already hold zoos under other names.
        config: Name of the mixture in that folder.
        name: Title on cards; the names of the zoos if `None`.
        token_dim: Scalars per token; the largest among the zoos if `None`.
        token_layout: `"rowwise"` or `"dense"`; as in the zoos if `None`.
        describe: Called with the folder of the files and the zoo, before it is finished, to add a report.

    Returns:
        The mixture, as loaded by `Zoo.load(output, config)`.

    Raises:
        ValueError: If there is no zoo, a name is not allowed in the names of runs, zoos differ in token layout and
            none is chosen, or they differ in how BatchNorm is stored or in the type of a column.
        FileExistsError: If the folder holds something else, or a zoo of that name.
    """
    _check(zoos)
    with writing_zoo(output, config) as writer:
        record = RunRecord.start(seed=0)
        stage = writer.begin()
        facts = _write_rows(zoos, stage, name, token_dim, token_layout)
        record.finish({"splits": facts.splits}).save(stage / RECORD_NAME)
        if describe is not None:
            describe(stage, open_data(stage, facts, writer.cache))
        writer.publish(facts)
    return Zoo.load(output, config)


def _write_rows(
    zoos: Mapping[str, Zoo], folder: Path, name: str | None, token_dim: int | None, token_layout: str | None
) -> ZooFacts:
    """Write the parquet files of the mixture."""
    layouts = [layout for zoo in zoos.values() for layout in zoo.facts.parsed_layouts.values()]
    kinds = sorted({layout.token_layout for layout in layouts})
    if token_layout is None and len(kinds) > 1:
        raise ValueError(f"the zoos have the token layouts {kinds}; choose one (token_layout)")
    if len(places := sorted({layout.batch_norm for layout in layouts})) > 1:
        raise ValueError(
            f"the zoos differ in how BatchNorm is stored: {places}; build them with the same setting (--batch-norm)"
        )
    geometry = _Geometry(token_layout or kinds[0], token_dim or max(layout.token_dim for layout in layouts))
    features = _features(zoos)
    for split in SPLITS:
        tables = (
            table for label, zoo in zoos.items() for table in geometry.tables(label, zoo.splits[split], features)
        )
        write_parquet(tables, folder, split)
    return ZooFacts(
        name=name or " + ".join(zoos),
        layouts={key: layout.to_dict() for key, layout in geometry.mixed.items()},
        architectures={key: value for zoo in zoos.values() for key, value in zoo.facts.architectures.items()},
        arguments={"token_layout": geometry.token_layout, "token_dim": geometry.token_dim},
        data={MIX_KEY: {key: part for label, zoo in zoos.items() for key, part in _origins(label, zoo.facts).items()}},
        excluded=tuple(
            {**entry, "run_id": f"{label}/{entry['run_id']}"}
            for label, zoo in zoos.items()
            for entry in zoo.facts.excluded
        ),
        splits={split: _counts([zoo.facts.splits[split] for zoo in zoos.values()]) for split in SPLITS},
    )


def _origins(label: str, facts: ZooFacts) -> dict[str, dict[str, Any]]:
    """Name, arguments and data of a zoo or, for a mixture, of the zoos in it."""
    if MIX_KEY in facts.data:
        return {f"{label}/{key}": dict(part) for key, part in facts.data[MIX_KEY].items()}
    return {label: {"name": facts.name, "arguments": dict(facts.arguments), "data": dict(facts.data)}}


def _check(zoos: Mapping[str, Zoo]) -> None:
    if not zoos:
        raise ValueError("expected at least one zoo to mix, got none")
    if bad := [label for label in zoos if not label or "/" in label]:
        raise ValueError(f"expected names without '/', since they become part of the names of runs, got {bad}")


def _features(zoos: Mapping[str, Zoo]) -> Features:
    """Columns of the mixture: those of all zoos, in order of first appearance."""
    found: dict[str, Any] = {}
    for label, zoo in zoos.items():
        for column, kind in zoo.splits["train"].table.dataset.features.items():
            if found.setdefault(column, kind) != kind:
                raise ValueError(
                    f"column {column!r} is {kind} in {label}, but {found[column]} in an earlier zoo; rename one"
                )
    return Features({**found, SOURCE_COLUMN: Value("string")})


def _counts(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Number of runs and networks in one split of all zoos, and their mean accuracy if all have measured it."""
    found: dict[str, Any] = {key: sum(part[key] for part in parts) for key in ("runs", "networks")}
    if all("test_accuracy" in part for part in parts):
        total = sum(part["runs"] * part["test_accuracy"] for part in parts if part["runs"])
        found["test_accuracy"] = total / found["runs"] if found["runs"] else None
    return found


@dataclasses.dataclass
class _Geometry:
    """Token size and layout of all networks in the mixture, and the resulting layouts."""

    token_layout: str
    token_dim: int
    mixed: dict[str, Layout] = dataclasses.field(default_factory=dict)

    def tables(self, label: str, split: ZooSplit, features: Features) -> Iterator[pa.Table]:
        """The rows of one zoo, with new tokens and names."""
        schema, start = features.arrow_schema, 0
        for table in split.arrow_tables():
            rows = range(start, start := start + len(table))
            tokens, keys = self._tokens(split, rows)
            own = {entry.name: table.column(entry.name) for entry in schema if entry.name in table.schema.names}
            sources = own[SOURCE_COLUMN].to_pylist() if SOURCE_COLUMN in own else [None] * len(rows)
            for name in {"run_id", ANCESTOR} & own.keys():
                named = [run_id and f"{label}/{run_id}" for run_id in own[name].to_pylist()]
                own[name] = pa.array(named, pa.string())
            own |= {
                "tokens": tokens,
                "layout": pa.array(keys, pa.string()),
                SOURCE_COLUMN: pa.array([f"{label}/{s}" if s else label for s in sources], pa.string()),
            }
            columns = [own[entry.name] if entry.name in own else pa.nulls(len(rows), entry.type) for entry in schema]
            yield pa.Table.from_arrays(columns, schema=schema)

    def _tokens(self, split: ZooSplit, rows: range) -> tuple[pa.ListArray, list[str]]:
        """The token column of some networks, and the keys of their layouts."""
        flat, keys = [], []
        for row in rows:
            layout = split.facts.parsed_layouts[str(split.column("layout")[row])]
            new = dataclasses.replace(layout, token_layout=self.token_layout, token_dim=self.token_dim)
            tokens = split.tokens(row)
            if new != layout:
                tokens = new.tokens(layout.tensors(tokens, cast=False))
            keys.append(layout_key(new))
            self.mixed.setdefault(keys[-1], new)
            flat.append(tokens.reshape(-1).to(torch.float32).numpy())
        offsets = np.concatenate([[0], np.cumsum([len(values) for values in flat])])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(flat))), keys
