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
        self, split: str, *, seed: int | None = None, epoch: int = 0, buffer_size: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split, in file order or shuffled.

        Args:
            split: Name of the split.
            seed: Random seed of the order: row groups are shuffled, and each row is drawn from a buffer of
                `buffer_size`. If `None`, rows are in file order.
            epoch: Number of the epoch; each has a different order.
            buffer_size: Number of rows in memory.

        Yields:
            Rows with the columns of `FEATURES`; tokens are NumPy arrays.

        Raises:
            InvalidFileError: If files are damaged.
        """
        with reading(
            self.source, expected="the parquet files of a zoo", remedy=REMEDY, also=UNREADABLE, by_arrow=True
        ):
            stream = patiently(
                datasets.load_dataset,
                *self._place(split),
                split=split,
                revision=self.revision,
                streaming=True,
                fragment_scan_options=ParquetFragmentScanOptions(
                    cache_options=pa.CacheOptions(range_size_limit=REQUEST_BYTES)
                ),
            ).with_format("arrow")
            if seed is None:
                yield from _rows(stream)
            else:
                yield from _shuffled(stream.reshard(), np.random.default_rng((seed, epoch)), buffer_size)

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


def _rows(stream: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
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
    stream: datasets.IterableDataset, generator: np.random.Generator, buffer_size: int
) -> Iterator[dict[str, Any]]:
    """Like `IterableDataset.shuffle`, which converts every scalar to a Python number and is 15 times slower here."""
    order = generator.permutation(stream.num_shards)
    buffer: list[dict[str, Any]] = []
    for row in chain.from_iterable(_rows(stream.shard(stream.num_shards, int(shard))) for shard in order):
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(generator.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    for place in generator.permutation(len(buffer)):
        yield buffer[place]
