"""Read the published format of the SANE papers' model zoos: one folder per run, with settings and results.

Ray Tune writes such folders: `params.json` (settings), `result.json` (one JSON object per epoch), and checkpoints in
`checkpoint_000007/checkpoints`, files of `torch.save` without a suffix.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from hf_sane.records._errors import InvalidFileError, name_some, reading
from hf_sane.zoo.importing._network_names import NetworkName
from hf_sane.zoo.importing._property_files import RUN, PropertyTable, flat_values

# Files that the code of these zoos and Ray Tune write next to networks.
BESIDE = re.compile(r"(optimizer|dataset)(\.pt)?|params\.pkl|.*\.tune_metadata")
PARAMS, RESULTS = "params.json", "result.json"
EPOCH = "training_iteration"  # Ray Tune's counter
# How trainers name folders that form one run together with their siblings.
CHECKPOINT_FOLDER = re.compile(
    r"^((checkpoint|ckpt|epoch|global_step|step|iter|iteration)[-_]?\d+|best|last|latest|final)"
    r"([-_](model|checkpoint))?$"
)
NUMBER = re.compile(r"\d+")
# Ray Tune's entries about itself and its machine: not properties of a network, and private.
BOOKKEEPING = re.compile(
    r"(time_|timesteps|timestamp$|date$|pid$|hostname$|node_ip$|done$|episodes_total$|experiment_|trial_|"
    r"iterations_since_restore$|warmup_time$|should_checkpoint$|config\.|should_)"
)


def run_folders(paths: Iterable[str]) -> set[PurePosixPath]:
    """Find folders with the settings and results of a run."""
    return {path.parent for path in map(PurePosixPath, paths) if path.name in (PARAMS, RESULTS)}


def find_run(path: PurePosixPath, runs: set[PurePosixPath]) -> str | None:
    """The run of a checkpoint that is in a folder such as `checkpoint_000007` inside a run's folder."""
    for folder in (path, *path.parents):
        if CHECKPOINT_FOLDER.match(folder.name) and folder.parent in runs:
            return str(folder.parent) if folder.parent.name else "."
    return None


def read_published_name(name: str, run: str) -> NetworkName:
    """Read the epoch of a checkpoint from the name of its folder."""
    for part in reversed(PurePosixPath(name).parts):
        if CHECKPOINT_FOLDER.match(part) and (number := NUMBER.search(part)):
            return NetworkName(name, run, {"epoch": int(number[0])})
    return NetworkName(name, run)


def published_table(networks: Iterable[NetworkName], fetch: Callable[[str], Path | None]) -> PropertyTable | None:
    """The settings and results of runs at the epochs of their checkpoints, as one table.

    Args:
        networks: Checkpoints, from [`read_published_name`].
        fetch: Function that returns the local file for a path below the root; `None` if there is none.

    Returns:
        Rows with a run and an epoch; `None` if there are none.

    Missing and damaged parts are noted.
    """
    epochs: dict[str, set[int]] = {}
    for network in networks:
        if network.run is not None:
            epochs.setdefault(network.run, set()).update(network.times.values())
    rows: list[Mapping[str, Any]] = []
    places, broken = [], 0
    without_settings, without_results = [], []
    for run, wanted in epochs.items():
        path = fetch(f"{run}/{PARAMS}")
        settings = {}
        with suppress(InvalidFileError):  # networks can be imported without them
            settings = {} if path is None else read_run_settings(path)
        without_settings += [] if settings else [run]
        found, bad = _read_results(fetch(f"{run}/{RESULTS}"), wanted)
        broken += bad
        for epoch in sorted(wanted):
            place = f"{run} at epoch {epoch}"
            without_results += [] if epoch in found else [place]
            rows.append({RUN: run, EPOCH: epoch, **settings, **found.get(epoch, {})})
            places.append(place)
    notes = [f"lines of {RESULTS} that are not JSON, left out: {broken}"] if broken else []
    if without_settings:
        notes.append(
            f"runs without settings, since {PARAMS} is missing or not a JSON object: {len(without_settings)} "
            f"({name_some(without_settings)})"
        )
    if without_results:
        notes.append(f"networks without results in {RESULTS}: {len(without_results)} ({name_some(without_results)})")
    return PropertyTable(RESULTS, rows, places, tuple(notes)) if rows else None


def read_run_settings(path: Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        InvalidFileError: If they are not JSON.
    """
    with reading(path, expected="the settings of a run (JSON)", remedy="correct or remove it"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("the JSON is not an object")
        return dict(flat_values(found))


def _read_results(path: Path | None, epochs: set[int]) -> tuple[dict[int, dict[str, Any]], int]:
    """The last result of each epoch (a resumed run repeats some), and the number of bad lines."""
    found: dict[int, dict[str, Any]] = {}
    bad = 0
    if path is None:
        return found, bad
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                values = json.loads(line) if line.strip() else None
            except (json.JSONDecodeError, RecursionError):
                bad += 1
                continue
            if isinstance(values, dict) and isinstance(epoch := values.get(EPOCH), int) and epoch in epochs:
                told = flat_values(values)
                found[epoch] = {name: value for name, value in told if not BOOKKEEPING.match(name)}
    return found, bad
