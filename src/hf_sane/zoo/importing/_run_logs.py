"""Read what trainers log beside checkpoints: Lightning, TensorBoard, and the Trainer of Transformers."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from hf_sane.records._errors import InvalidFileError, name_some, reading
from hf_sane.zoo.importing._network_names import TIMES, NetworkName, is_part_of_run
from hf_sane.zoo.importing._property_files import (
    EVENTS,
    RUN,
    STEP,
    PropertyTable,
    flat_values,
    read_properties,
    rows_by_time,
    times_of_log,
    whole,
    with_path,
)
from hf_sane.zoo.importing._trees import Tree

FILE = "file"  # column with the network's name in a table of properties that came with networks
EPOCH = TIMES[0]
LOG = re.compile(rf"(metrics|history|logs?|training_log|progress)\.(csv|jsonl)|.*{EVENTS}.*", re.IGNORECASE)
SETTINGS = "hparams.yaml"  # of Lightning
STATE = "trainer_state.json"  # of Transformers, in the folder of the model
# Values that the Trainer logs about its machine, and the current learning rate, which is not the setting.
BOOKKEEPING = re.compile(r"learning_rate|grad_norm|total_flos|.*_(runtime|per_second)")
REMEDY = "correct or remove it"


class _PlainLoader(yaml.SafeLoader):
    """Reads tagged values, such as `!!python/object:argparse.Namespace`, as plain ones; creates no Python objects."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    # Names of classes and functions are in the tag: `!!python/name:torch.optim.Adam ''`.
    return loader.construct_scalar(node) or suffix.rpartition(":")[2]


for tag in ("tag:yaml.org,2002:python/", "!"):
    _PlainLoader.add_multi_constructor(tag, _plain)


@dataclass
class _Run:
    """Settings of a run, and its values by epoch and by step."""

    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def at(self, network: NetworkName) -> dict[str, Any]:
        """Values at the epoch or step of a network."""
        if not self.values:
            return {}
        shared = [time for time in TIMES if time in self.values and time in network.times]
        if shared:
            return self.values[shared[0]].get(network.times[shared[0]], {})
        time, found = next(iter(self.values.items()))
        if network.is_last:
            return {time: max(found), **found[max(found)]}
        # an epoch in one place, a step in the other
        times = list(network.times.values())
        return found.get(times[0], {}) if len(times) == len(self.values) == 1 else {}


def logged_table(networks: Sequence[NetworkName], tree: Tree) -> PropertyTable | None:
    """The settings and values of networks from the logs of their trainers, as one table; `None` if there are none.

    A log is in the folder of a network, or above folders such as `checkpoints`. Damaged logs are noted.
    """
    files: dict[PurePosixPath, list[str]] = {}
    for path in map(PurePosixPath, tree.sizes):
        if path.name == SETTINGS or LOG.fullmatch(path.name):
            files.setdefault(path.parent, []).append(str(path))
    folders = {network.name: _folder_of_log(network, files) for network in networks}
    # One log for several networks of the same epoch in its folder would be the log of one of them, or of neither.
    count = Counter((folders[network.name], *network.times.items()) for network in networks if network.run is None)
    notes: list[str] = []
    runs: dict[PurePosixPath, _Run] = {}
    rows, without_values = [], []
    for network in networks:
        row: dict[str, Any] = {}
        folder = folders[network.name]
        if folder is not None and count[folder, *network.times.items()] < 2:
            if folder not in runs:
                runs[folder] = _read_run(files[folder], tree, notes)
            values = runs[folder].at(network)
            without_values += [] if values or not runs[folder].values else [network.name]
            if found := {**runs[folder].settings, **values}:
                row = {RUN: network.run or (str(folder) if folder.name else tree.name), **found}
        row.update(_read_state(network, tree, notes))
        if row:
            rows.append({FILE: network.name, **row})
    if without_values:
        notes.append(f"networks without values at their epoch: {len(without_values)} ({name_some(without_values)})")
    if not rows:
        return None
    return PropertyTable("logs beside networks", rows, [str(row[FILE]) for row in rows], tuple(notes))


def _folder_of_log(network: NetworkName, folders: Iterable[PurePosixPath]) -> PurePosixPath | None:
    """The innermost folder with a log above a network, if only folders such as `checkpoints` are between them."""
    for folder in PurePosixPath(network.name).parents:
        if folder in folders:
            return folder
        if not is_part_of_run(folder.name):
            return None
    return None


def _read_run(files: Iterable[str], tree: Tree, notes: list[str]) -> _Run:
    run = _Run()
    for name in files:
        try:
            path = tree.fetch(name)
            if path.name == SETTINGS:
                run.settings |= _read_settings(path)
                continue
            table = with_path(read_properties(path), name)
        except InvalidFileError as error:
            notes.append(f"{name}: left out, {error.got}")
            continue
        notes += table.notes
        if EVENTS in path.name:  # they name their run, and have nothing but numbers
            table = PropertyTable(table.file, [{k: v for k, v in row.items() if k != RUN} for row in table.rows], ())
        for time in times_of_log(table):
            known = run.values.setdefault(time, {})
            for number, values in rows_by_time(table, time).items():
                known.setdefault(number, {}).update(values)
    return run


def _read_settings(path: Path) -> dict[str, Any]:
    with reading(path, expected="hyper-parameters (YAML)", remedy=REMEDY, also=(yaml.YAMLError,)):
        found = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # creates no objects
        if not isinstance(found, Mapping | None):
            raise TypeError("the YAML is not an object")
        return dict(flat_values(found or {}))


def _read_state(network: NetworkName, tree: Tree, notes: list[str]) -> dict[str, Any]:
    """Epoch, step and evaluation of a network of the Trainer of Transformers, from the file beside its weights."""
    for folder in (PurePosixPath(network.name), PurePosixPath(network.name).parent):
        if tree.sizes.get(str(folder / STATE)) is None:
            continue
        path = tree.fetch(str(folder / STATE))
        try:
            with reading(path, expected="the state of a Trainer (JSON)", remedy=REMEDY):
                state = json.loads(path.read_text(encoding="utf-8"))
                step = whole(state["global_step"])
                last = [entry for entry in state.get("log_history") or () if whole(entry.get(STEP)) == step]
                found = {name: value for entry in last for name, value in entry.items()}
                times = {EPOCH: state.get(EPOCH), STEP: step}
                return {name: v for name, v in flat_values(found) if not BOOKKEEPING.fullmatch(name)} | times
        except InvalidFileError as error:
            notes.append(f"{folder / STATE}: left out, {error.got}")
    return {}
