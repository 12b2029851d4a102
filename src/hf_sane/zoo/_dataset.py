"""Zoos as datasets: networks as rows of parquet files, read in place and split by training run."""

import copy
import dataclasses
import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import torch
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import build_model
from hf_sane.core._layout import Layout
from hf_sane.core._types import StateDict
from hf_sane.networks._fields import field_architecture
from hf_sane.networks._modules import (
    ModuleArchitecture,
    find_architecture,
    registered_misfit,
    transformers_architecture,
)
from hf_sane.networks._stacked import StackedNetworks, with_settings
from hf_sane.records._disks import NO_SPACE
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._patience import patiently
from hf_sane.records._run_record import RunRecord
from hf_sane.records._sources import HubRepo
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._facts import DEFAULT_CONFIG, PER_RUN_SETTINGS, ZooFacts, data_folder, find_facts, read_facts
from hf_sane.zoo._facts import FILE_NAME as FACTS_NAME
from hf_sane.zoo._publishing import plan_zoo
from hf_sane.zoo._records import MAX_ROWS_PER_GROUP, ROW_GROUP_BYTES, SPLITS, write_parquet
from hf_sane.zoo._table import ZooTable
from hf_sane.zoo._writing import CACHE_NAME, RECORD_NAME, check_zoo, writing_zoo

REMEDY = "load the zoo from another source, or build it again"
# Read row groups one by one: by default, Arrow reads a whole file of 500 MB before it decodes the first row.
ONE_BY_ONE = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
UNREADABLE = (datasets.exceptions.DatasetsError, pa.ArrowException)  # for damaged parquet files


class ZooSplit:
    """The networks of one split or a selection of them, each at one epoch.

    Args:
        dataset: Rows with the columns of a zoo, or an open table of these.
        facts: Facts about the zoo.
        alignment: Alignment of the zoo, if it was aligned.
        rows: Indices of the selected rows, `[M]`; all if `None`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | ZooTable,
        facts: ZooFacts,
        alignment: Alignment | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.table = dataset if isinstance(dataset, ZooTable) else ZooTable(dataset)
        self.facts = facts
        self.alignment = alignment
        self.rows = np.arange(len(self.table)) if rows is None else rows

    def __repr__(self) -> str:
        columns = ", ".join(self.table.scalar_columns)
        return f"ZooSplit({len(self)} networks of the zoo {self.facts.name!r}, columns: {columns})"

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """A property of all networks, `[M]`: a column of the zoo, such as `"test_accuracy"`.

        Raises:
            KeyError: If there is no such column.
        """
        return self.table.column(name)[self.rows]

    @property
    def run_ids(self) -> list[str]:
        """Training run of each network."""
        return self.column("run_id").tolist()

    def select(self, index: Sequence[int] | np.ndarray | slice) -> "ZooSplit":
        """Select networks by positions or a bool mask, in the order of `index`, without copying."""
        chosen = self.rows[index] if isinstance(index, slice) else self.rows[_positions(index)]
        return ZooSplit(self.table, self.facts, self.alignment, chosen)

    def at_epoch(self, epoch: int) -> "ZooSplit":
        """The networks at one epoch.

        Raises:
            ValueError: If no network of that epoch is stored.
        """
        epochs = self.column("epoch")
        if not (epochs == epoch).any():
            raise ValueError(f"no network at epoch {epoch}; stored epochs: {np.unique(epochs).tolist()}")
        return self.select(np.flatnonzero(epochs == epoch))

    def final_epochs(self) -> "ZooSplit":
        """The network of each run at its last epoch, in order of first appearance."""
        last: dict[str, int] = {}
        epochs = self.column("epoch")
        for i, run_id in enumerate(self.run_ids):
            if run_id not in last or epochs[i] > epochs[last[run_id]]:
                last[run_id] = i
        return self.select(np.array(list(last.values()), dtype=np.int64))

    def layout(self, index: int) -> Layout:
        """Layout of one network, including its template."""
        layout = self.facts.parsed_layouts[self.table.column("layout")[self.rows[index]]]
        if not layout.template:
            return layout
        with reading(
            self.run_ids[index], field="template", expected="tensors", remedy=REMEDY, also=(SafetensorError,)
        ):
            stored = load_tensors(self.table.template(int(self.rows[index])))
            template = {name: stored[name] for name in layout.template}
            for name, tensor in template.items():
                if (tensor.shape, tensor.dtype) != (layout.template[name].shape, layout.template[name].dtype):
                    raise ValueError(f"{name!r} is {tensor.dtype} {list(tensor.shape)}, which contradicts the layout")
        return dataclasses.replace(layout, template=template)

    def tokens(self, index: int) -> Tensor:
        """Raw tokens of one network, `[N, D]` float32: a read-only view of the Arrow buffer."""
        row = int(self.rows[index])
        layout = self.facts.parsed_layouts[self.table.column("layout")[row]]
        return self.table.tokens(row).view(layout.num_tokens, layout.token_dim)

    def stacked_tokens(self) -> Tensor:
        """Raw tokens of all networks, `[M, N, D]` float32; a copy.

        Raises:
            ValueError: If there are no networks, or they have several layouts.
        """
        self.require_one("layout")
        return torch.stack([self.tokens(i) for i in range(len(self))])

    def config(self, index: int) -> ZooConfig | nn.Module:
        """Configuration of one network, with the activation, initialisation and dropout of its run.

        For an imported network, the architecture is the one registered for its tensors, or the Transformers class that
        its configuration names.

        Raises:
            ValueError: If the network was imported and its architecture is neither registered nor part of
                Transformers.
        """
        if (found := self.find_config(index)) is None:
            if misfit := registered_misfit(self.layout(index)):
                raise ValueError(
                    f"expected a module with the tensors of {self.run_ids[index]!r}, got {misfit}; pass the class and "
                    "the arguments of these networks (--module, --module-args, hf_sane.register_architecture)"
                )
            raise ValueError(
                f"the architecture of {self.run_ids[index]!r} is unknown to this library and to Transformers (only "
                "its weights are stored); pass its code: hf_sane.register_architecture(MyModule, example_inputs), or "
                "--module my_file.py:MyModule"
            )
        return found

    def find_config(self, index: int) -> ZooConfig | nn.Module | None:
        """The configuration from [`config`]; `None` if the architecture is unknown."""
        if (config := self.known_config(index)) is not None:
            return config
        found = self._architecture(index)
        return None if found is None else found.structure

    def _architecture(self, index: int) -> ModuleArchitecture | None:
        """The registered architecture of an imported network, or that of its class of Transformers."""
        layout = self.layout(index)
        settings = self.facts.architectures[self.table.column("architecture")[self.rows[index]]]
        known = find_architecture(layout) or field_architecture(settings["config"], layout)
        return known or transformers_architecture(settings["config"], layout)

    def whole_layout(self, index: int) -> Layout:
        """The layout with names of tied tensors that files omit, if the architecture is known.

        If files name tensors otherwise, it also has the names in the module.
        """
        layout = self.layout(index)
        found = None if self.known_config(index) is not None else self._architecture(index)
        return layout if found is None else found.complete(layout)

    def known_config(self, index: int) -> ZooConfig | None:
        """The configuration from [`config`]; `None` for an imported network of an unknown architecture."""
        row = self.rows[index]
        config = self.facts.parsed_architectures[self.table.column("architecture")[row]]
        if config is None:
            return None
        values = {name: self.table.column(name)[row] for name in PER_RUN_SETTINGS if hasattr(config, name)}
        known = {
            name: value if isinstance(value, str) else float(value) for name, value in values.items() if value == value
        }
        return with_settings(config, **known, **self.facts.labels(config.num_classes))

    def state_dict(self, index: int) -> StateDict:
        """A copy of all tensors of one network in their original order and dtypes."""
        layout = self.layout(index)
        return layout.state_dict(self.tokens(index))

    def model(self, index: int) -> nn.Module:
        """One network in evaluation mode: a Transformers model, or an instance of a registered module."""
        config = self.config(index)
        model: nn.Module = build_model(config) if isinstance(config, ZooConfig) else copy.deepcopy(config)
        layout = self.whole_layout(index)
        model.load_state_dict(layout.for_module(layout.state_dict(self.tokens(index))))
        return model.eval()

    def layout_and_config(self) -> tuple[Layout, ZooConfig | nn.Module]:
        """The layout and architecture that all networks share, with the template of the first network.

        Raises:
            ValueError: If there are no networks, or they differ in layout, architecture or activation.
        """
        self.require_one("layout", "architecture")
        if self.known_config(0) is not None:
            self.require_one("activation")
        return self.whole_layout(0), self.config(0)

    def networks(self) -> StackedNetworks:
        """All networks as one stack, to run or train them together.

        Raises:
            ValueError: If there are no networks, or they differ in layout, architecture or activation.
        """
        layout, config = self.layout_and_config()
        return StackedNetworks(config, layout.for_module(layout.complete(self.stacked_tensors())))

    def stacked_tensors(self) -> dict[str, Tensor]:
        """A copy of all tensors of all networks, `{name: [M, *shape]}` in the order of the state dict.

        Raises:
            ValueError: If there are no networks, or they have several layouts.
        """
        tokens, layout = self.stacked_tokens(), self.layout(0)
        tensors = layout.tensors(tokens)
        if layout.template:
            templates = [self.layout(i).template for i in range(len(self))]
            tensors |= {name: torch.stack([template[name] for template in templates]) for name in layout.template}
        return layout.complete(tensors)

    def require_one(self, *columns: str) -> None:
        """Raise an error if networks differ in one of these columns.

        Raises:
            ValueError: If they differ, or there are no networks.
        """
        for column in columns:
            if len(values := sorted(set(self.column(column).tolist()))) != 1:
                raise ValueError(
                    f"expected networks of one {column}, got {values}; select one of them first, or use a zoo of one"
                )

    def arrow_tables(self) -> Iterator[pa.Table]:
        """Yield the rows as Arrow tables of limited size, for writing."""
        data = self.table.dataset.data.table
        size = max(1, min(MAX_ROWS_PER_GROUP, ROW_GROUP_BYTES * max(1, len(self.table)) // max(1, data.nbytes)))
        for start in range(0, len(self), size):
            rows = self.rows[start : start + size]
            if (np.diff(rows) == 1).all():
                yield data.slice(rows[0], len(rows))
            else:  # pyarrow's take would first join all chunks of the column
                yield pa.concat_tables([data.slice(row, 1) for row in rows]).combine_chunks()


def _check_rows(folder: Path, split: str, table: ZooTable, facts: ZooFacts) -> None:
    """Raise an error for rows with an unknown layout, or with a number of scalars that differs from their layout."""
    for column, known in (("layout", facts.layouts), ("architecture", facts.architectures)):
        if unknown := set(table.column(column).tolist()) - known.keys():
            expected = f"a {column} that {FACTS_NAME} describes"
            raise InvalidFileError(folder, field=f"{split}.{column}", expected=expected, got=unknown, remedy=REMEDY)
    sizes = {key: layout.num_tokens * layout.token_dim for key, layout in facts.parsed_layouts.items()}
    wanted = np.array([sizes[key] for key in table.column("layout").tolist()], dtype=np.int64)
    if len(wrong := np.flatnonzero(table.lengths != wanted)):
        row = int(wrong[0])
        expected, got = f"{wanted[row]} scalars, as in its layout", f"{table.lengths[row]}"
        raise InvalidFileError(folder, field=f"{split}[{row}].tokens", expected=expected, got=got, remedy=REMEDY)


def _positions(index: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(index)
    return array if array.dtype == bool else array.astype(np.int64)


class Splits(dict[str, ZooSplit]):
    """Splits by name; the error for an unknown name lists the existing splits."""

    def __missing__(self, name: str) -> ZooSplit:
        raise KeyError(f"the zoo has no split {name!r}; it has {', '.join(self)}")


@dataclass(frozen=True)
class Zoo:
    """A population of trained networks with known generating factors.

    Attributes:
        splits: `"train"`, `"validation"` and `"test"`; each training run is in only one split.
        facts: Layouts, architectures, build settings and excluded runs.
        run_record: Command, commit and hardware of the build, if known.
        revision: Commit on the Hub that the zoo was loaded from.
        source: Folder or repository that the zoo was loaded from; `None` if it was created in this process.

    Raises:
        ValueError: If there are no networks.
    """

    splits: dict[str, ZooSplit]
    facts: ZooFacts
    run_record: RunRecord | None = None
    revision: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not sum(map(len, self.splits.values())):
            raise ValueError(f"the zoo {self.facts.name!r} is empty; expected at least one network")
        object.__setattr__(self, "splits", Splits(self.splits))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(split)}" for name, split in self.splits.items())
        return f"Zoo({self.facts.name!r}, {sizes}{', aligned' if self.alignment else ''}, source={self.source!r})"

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @cached_property
    def alignment(self) -> Alignment | None:
        """Permutations of all runs, if the zoo was aligned."""
        return next((split.alignment for split in self.splits.values() if split.alignment is not None), None)

    def with_alignment(self, alignment: Alignment) -> "Zoo":
        """Return the zoo with an alignment."""
        splits = {
            name: ZooSplit(split.table, self.facts, alignment, split.rows) for name, split in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits)

    @classmethod
    def load(
        cls,
        source: str | Path,
        config: str | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Zoo":
        """Open a zoo from a folder or the Hub.

        Parquet files are decoded once to Arrow files, which are then memory-mapped: the zoo opens instantly from the
        second time on, and only data that is read uses memory. The Arrow files are stored in the folder's `.cache` or,
        for a Hub dataset or a read-only folder, in the cache of `datasets`.

        Args:
            source: Folder, or repo id of a dataset, `owner/name` or `owner/name@revision`.
            config: Name of the zoo, if the folder holds several.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Folder for the Arrow files instead.

        Raises:
            FileNotFoundError: If the folder holds no zoo, or its parquet files are missing.
            InvalidFileError: If the zoo is incomplete, or files are damaged or inconsistent, or were removed or
                changed.
            ValueError: If `config` is unknown, or missing although there are several zoos.
        """
        place, folder = find_facts(source, revision)
        known = read_facts(folder)
        config = choose_config(config, list(known), str(source))
        commit = None
        if isinstance(place, HubRepo):
            commit = folder.name  # the cache stores each commit in a folder named after it
            patterns = [f"{data_folder(Path(), config)}/*", FACTS_NAME]
            folder = Path(
                patiently(
                    snapshot_download, place.repo_id, repo_type="dataset", revision=commit, allow_patterns=patterns
                )
            )
        elif cache_dir is None and os.access(folder, os.W_OK):
            cache_dir = folder / CACHE_NAME
        check_zoo(folder, config)
        zoo = open_data(data_folder(folder, config), known[config], cache_dir, revision=commit)
        return dataclasses.replace(zoo, source=str(source))

    def save(self, folder: str | Path, config: str = DEFAULT_CONFIG, *, replace: bool = False) -> Path:
        """Write parquet files, `zoo.json`, alignment and dataset card; the folder may hold other zoos.

        A card that was edited by hand is not overwritten; this is logged as a warning.

        Args:
            folder: Output folder; created if missing.
            config: Name of the zoo for `load_dataset(folder, config)`.
            replace: Whether to replace a finished zoo of that name, if its files are unchanged.

        Returns:
            `folder`.

        Raises:
            FileExistsError: If the folder holds something else, or a zoo of that name that may not be replaced.
        """
        with writing_zoo(folder, config, replace=replace) as writer:
            stage = writer.begin()
            for name, split in self.splits.items():
                write_parquet(split.arrow_tables(), stage, name)
            if self.alignment is not None:
                self.alignment.save(stage)
            if self.run_record is not None:
                self.run_record.save(stage / RECORD_NAME)
            writer.publish(self.facts)
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, config_name: str = DEFAULT_CONFIG, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the zoo to a dataset repository, which may hold other zoos.

        Args:
            repo_id: `user/name`; created if missing.
            config_name: Name of this zoo in the repository.
            private: Whether a new repository is private; if `None`, the account's default.
            token: Access token; if `None`, the stored one.

        Returns:
            URL of the commit.
        """
        api = HfApi(token=token)
        record = None if self.run_record is None else self.run_record.without_folders()
        with tempfile.TemporaryDirectory() as name:
            folder = replace(self, run_record=record).save(name, config_name)
            return plan_zoo(folder, repo_id, api).push(api, private=private)


def open_data(data: Path, facts: ZooFacts, cache_dir: str | Path | None, *, revision: str | None = None) -> Zoo:
    """Open the data folder of a zoo whose facts are known.

    Args:
        data: Folder with the parquet files and, if the zoo is aligned, the alignment.
        facts: Facts about the zoo.
        cache_dir: Folder for the Arrow files; if `None`, the cache of `datasets`.
        revision: Commit on the Hub of which the folder is a copy.

    Raises:
        FileNotFoundError: If a split with networks has no parquet file.
        InvalidFileError: If files are damaged or contradict the facts.
    """
    files = {split: sorted(map(str, data.glob(f"{split}-*.parquet"))) for split in SPLITS}
    empty = [split for split in SPLITS if not files[split] and facts.count(split) == 0]
    if missing := [split for split, paths in files.items() if not paths and split not in empty]:
        raise FileNotFoundError(f"{data} has no parquet files for {missing}; expected <split>-00000-of-0000n.parquet")
    files = {split: paths for split, paths in files.items() if paths}
    for split, paths in files.items():
        if wrong := [path for path in paths if not path.endswith(f"-of-{len(paths):05d}.parquet")]:
            expected = f"{split} files that are all there"
            raise InvalidFileError(
                data, expected=expected, got=f"{len(paths)} files, {wrong[0]} among them", remedy=REMEDY
            )
    with reading(data, expected="the parquet files of a zoo", remedy=REMEDY, also=UNREADABLE, by_arrow=True):
        with _room_for_copies(cache_dir):
            loaded = datasets.load_dataset(
                "parquet",
                data_files={split: [glob.escape(path) for path in paths] for split, paths in files.items()},
                cache_dir=str(cache_dir) if cache_dir else None,
                fragment_scan_options=ONE_BY_ONE,
            )
        tables = {split: ZooTable(rows) for split, rows in loaded.items()}
        for split in empty:  # has no file, since readers reject files without rows
            tables[split] = ZooTable(next(iter(loaded.values())).select([]))
    for split, table in tables.items():
        _check_rows(data, split, table, facts)
    alignment = Alignment.load(data)
    return Zoo(
        {name: ZooSplit(tables[name], facts, alignment) for name in SPLITS},
        facts,
        RunRecord.load(data / RECORD_NAME) if (data / RECORD_NAME).exists() else None,
        revision,
    )


@contextmanager
def _room_for_copies(cache_dir: str | Path | None) -> Iterator[None]:
    """Report a full disk, which `datasets` reports as unreadable files."""
    try:
        yield
    except DatasetGenerationError as error:
        cause: BaseException | None = error
        while cause is not None and getattr(cause, "errno", None) not in NO_SPACE:
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise OSError(
            f"cannot write to {cache_dir or datasets.config.HF_DATASETS_CACHE}: no space left for decoded copies of "
            "the zoo; free some space"
        ) from error


def choose_config(config: str | None, known: list[str], source: str) -> str:
    """Choose the named zoo, the only zoo, or the default one.

    Raises:
        ValueError: If the choice is ambiguous.
    """
    if config is None and len(known) == 1:
        return known[0]
    if config is None and DEFAULT_CONFIG in known:
        return DEFAULT_CONFIG
    if config not in known or config is None:
        raise ValueError(f"{source} holds the zoos {known}, got {config!r}; name one of them (--zoo-config)")
    return config
