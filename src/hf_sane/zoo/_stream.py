"""Streamed zoos: facts are read immediately, rows one after the other."""

import glob
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from pyarrow.dataset import ParquetFragmentScanOptions

from hf_sane.records._errors import reading
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._patience import patiently
from hf_sane.zoo._alignment_record import FILE_NAME as ALIGNMENT_NAME
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import REMEDY, UNREADABLE, ZooSplit, choose_config
from hf_sane.zoo._facts import ZooFacts, data_folder, find_facts, read_facts
from hf_sane.zoo._records import FEATURES
from hf_sane.zoo._writing import check_stream, check_zoo

Row = dict[str, Any]
COUNTED_AT_ONCE = 1000  # rows
ROWS_AT_ONCE = 64  # rows in one Arrow table
REQUEST_BYTES = 8 * 2**20  # read in one request; the default of 32 MiB is far more than a short run needs


@dataclass(frozen=True)
class ZooStream:
    """A zoo whose rows are streamed; only its facts and alignment (kilobytes) are on this machine.

    Attributes:
        source: Folder, or repo id of a dataset.
        config: Name of the zoo in the source.
        facts: Layouts, architectures and splits.
        alignment: Permutations of all runs, if the zoo was aligned.
        revision: Commit from which all rows are read, so that changes to the zoo do not affect a run.
    """

    source: str
    config: str
    facts: ZooFacts
    alignment: Alignment | None = None
    revision: str | None = None

    @classmethod
    def open(cls, source: str | Path, config: str | None = None, *, revision: str | None = None) -> "ZooStream":
        """Read facts and alignment of a zoo; see [`Zoo.load`][hf_sane.zoo._dataset.Zoo.load] for errors."""
        place, folder = find_facts(source, revision)
        known = read_facts(folder)
        config = choose_config(config, list(known), str(source))
        if isinstance(place, Path):
            check_zoo(place, config)
            return cls(str(place), config, known[config], Alignment.load(data_folder(place, config)))
        commit = folder.name  # the cache stores each commit in a folder named after it
        data = data_folder(Path(), config)
        small = (f"{data}/{name}" for name in (MANIFEST, ALIGNMENT_NAME))
        for name in small:
            with suppress(EntryNotFoundError):
                patiently(hf_hub_download, place.repo_id, name, repo_type="dataset", revision=commit)
        check_stream(folder, config)
        return cls(place.repo_id, config, known[config], Alignment.load(folder / data), commit)

    def count(self, split: str) -> int:
        """Number of networks in a split, according to the facts.

        Raises:
            KeyError: If there is no such split.
        """
        if split not in self.facts.splits:
            raise KeyError(f"the zoo {self.source} has no split {split!r}; it has {', '.join(self.facts.splits)}")
        return int(self.facts.splits[split]["networks"])

    def rows(
        self, split: str, *, seed: int | None = None, epoch: int = 0, buffer_size: int = 1000, skip: int = 0
    ) -> Iterator[Row]:
        """Yield the rows of a split, in file order or shuffled.

        Args:
            split: Name of the split.
            seed: Random seed of the order: row groups are shuffled, and each row is drawn from a buffer of
                `buffer_size`. If `None`, rows are in file order.
            epoch: Number of the epoch; each has a different order.
            buffer_size: Number of rows in memory.
            skip: Number of rows to leave out at the beginning; of a shuffled stream, only row counts and the rows
                that the buffer would hold then are read.

        Yields:
            Rows with the columns of `FEATURES`; tokens are NumPy arrays.

        Raises:
            InvalidFileError: If files are damaged.
        """
        with reading(
            self.source, expected="the parquet files of a zoo", remedy=REMEDY, also=UNREADABLE, by_arrow=True
        ):
            stream = self._open(split)
            if seed is None:
                yield from islice(_rows(stream), skip, None)
                return
            groups = stream.reshard()
            counted = self._open(split, columns=["epoch"]).reshard() if skip else groups
            yield from _shuffled(groups, counted, np.random.default_rng((seed, epoch)), buffer_size, skip)

    def _open(self, split: str, **options: Any) -> datasets.IterableDataset:
        return patiently(
            datasets.load_dataset,
            *self._place(split),
            split=split,
            revision=self.revision,
            streaming=True,
            fragment_scan_options=ParquetFragmentScanOptions(
                cache_options=pa.CacheOptions(range_size_limit=REQUEST_BYTES)
            ),
            **options,
        ).with_format("arrow")

    def _place(self, split: str) -> tuple[Any, ...]:
        """Path, configuration and files for Datasets, which would interpret a local path `zoo[1]` as a pattern."""
        if self.revision is not None:
            return self.source, self.config
        folder = data_folder(Path(self.source), self.config)
        files = sorted(glob.escape(str(path)) for path in folder.glob(f"{split}-*.parquet"))
        return "parquet", None, None, {split: files}

    def sample(self, split: str, num_rows: int, *, seed: int = 0) -> ZooSplit:
        """A sample of a split's rows, in memory, as a split of its own.

        Args:
            split: Name of the split.
            num_rows: Maximum number of rows; drawn from about twice as many at the beginning of the shuffled row
                groups.
            seed: Random seed of the sample.
        """
        wanted = min(num_rows, self.count(split))
        stream = self.rows(split, seed=seed, buffer_size=wanted) if wanted else ()  # an empty split has no files
        rows = list(islice(stream, wanted))
        columns = {name: [row[name] for row in rows] for name in FEATURES}
        return ZooSplit(datasets.Dataset.from_dict(columns, features=FEATURES), self.facts, self.alignment)


def _rows(stream: datasets.IterableDataset) -> Iterator[Row]:
    """Yield rows of Arrow tables, tokens as views; the NumPy format would strip trailing zero bytes of templates."""
    for batch in stream.iter(batch_size=ROWS_AT_ONCE):
        table = pa.table(batch)
        plain = [name for name in table.column_names if name != "tokens"]
        values = zip(*(table.column(name).to_pylist() for name in plain), strict=True)
        tokens = (row for chunk in table.column("tokens").chunks for row in _views(chunk))
        for row, flat in zip(values, tokens, strict=True):
            yield {**dict(zip(plain, row, strict=True)), "tokens": flat}


def _views(chunk: pa.ListArray) -> Iterator[np.ndarray]:
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
    return (values[start:stop] for start, stop in pairwise(offsets))


def _shuffled(
    groups: datasets.IterableDataset,
    counted: datasets.IterableDataset,
    generator: np.random.Generator,
    buffer_size: int,
    skip: int,
) -> Iterator[Row]:
    """Like `IterableDataset.shuffle`, which converts every scalar to a Python number and is 15 times slower here.

    Args:
        groups: Row groups, one per shard.
        counted: The same with one small column, to count the rows of groups that are skipped.
        generator: Random generator of the order.
        buffer_size: Number of rows from which the next row is drawn.
        skip: Number of rows to leave out at the beginning.
    """
    order = [int(group) for group in generator.permutation(groups.num_shards)]
    buffer: list[Row] = []
    begun = left = 0
    if skip:
        places, order, begun, left = _skip(counted, order, generator, buffer_size, skip)
        buffer = _read_places(groups, places)
    rows = chain.from_iterable(_rows(groups.shard(groups.num_shards, group)) for group in order)
    for row in islice(rows, begun, None):
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(generator.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    for place in generator.permutation(len(buffer))[left:]:
        yield buffer[place]


def _skip(
    counted: datasets.IterableDataset, order: list[int], generator: np.random.Generator, buffer_size: int, skip: int
) -> tuple[list[tuple[int, int]], list[int], int, int]:
    """Draw from a buffer of places, row group and row, as from one of rows.

    Returns:
        The places in the buffer, the row groups that are left, the number of rows of the first of these that were in
        the buffer, and the number of rows to leave out that are still in the buffer.
    """
    buffer: list[tuple[int, int]] = []
    left = skip
    for number, group in enumerate(order):
        tables = counted.shard(counted.num_shards, group).iter(batch_size=COUNTED_AT_ONCE)
        for row in range(sum(pa.table(table).num_rows for table in tables)):
            if not left:
                return buffer, order[number:], row, 0
            if len(buffer) < buffer_size:
                buffer.append((group, row))
                continue
            buffer[int(generator.integers(buffer_size))] = (group, row)
            left -= 1
    return buffer, [], 0, left


def _read_places(groups: datasets.IterableDataset, places: list[tuple[int, int]]) -> list[Row]:
    """The rows at these places; each row group is read once."""
    wanted = set(places)
    found = {
        (group, number): row
        for group in sorted({group for group, _ in places})
        for number, row in enumerate(_rows(groups.shard(groups.num_shards, group)))
        if (group, number) in wanted
    }
    return [found[place] for place in places]
