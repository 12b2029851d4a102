"""Import existing networks of any architecture as a zoo."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from huggingface_hub.dataclasses import strict

from hf_sane.records._errors import shorten
from hf_sane.records._progress import progress
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import ProgressSettings
from hf_sane.workflows.results import Table, report_writer
from hf_sane.workflows.shared import temporary_folder
from hf_sane.workflows.show_zoo import ResultWithZoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import PROPERTIES_KEY, data_folder
from hf_sane.zoo._settings import NewZooSettings
from hf_sane.zoo._writing import REPORT_NAME
from hf_sane.zoo.importing import _importing as importing
from hf_sane.zoo.importing._settings import ImportSettings

EXAMPLE = "--pattern '{run}_epoch{epoch:d}.pt'"
MUCH_PADDING = 0.9  # share of the scalars in a network's tokens
MAX_REASON = 300  # characters; the JSON is complete
NAMES_SHOWN = 5  # networks per reason; the JSON lists all


@strict
@dataclass(kw_only=True)
class ImportZooSettings(ImportSettings, NewZooSettings, ProgressSettings):
    """Settings of [`import_zoo`]: what to import, and the output folder."""


class LeftOutJson(TypedDict):
    """Networks that were not imported for one reason.

    Attributes:
        status: Status of these networks, such as `skipped` or `failed`.
        reason: Reason.
        networks: Names of the networks.
    """

    status: str
    reason: str
    networks: list[str]


class ImportZooJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        splits: Number of networks by split.
        taken: Names of the imported networks.
        properties: How tables of properties were matched with networks.
        left_out: Networks that were not imported, by reason.
    """

    splits: dict[str, int]
    taken: list[str]
    properties: dict[str, Any]
    left_out: list[LeftOutJson]


@dataclass(kw_only=True)
class ImportZooResult(ResultWithZoo):
    """A zoo of imported networks, and the outcome for each network.

    Attributes:
        entries: One entry per network, and per repository without networks.
    """

    JSON: ClassVar[Any] = ImportZooJson

    entries: tuple[importing.ImportEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Networks per split, names of imported networks, and all others by status and reason."""
        left_out = importing.left_out(self.entries)
        return {
            "splits": {name: len(split) for name, split in self.zoo.splits.items()},
            "taken": [entry.run_id for entry in self.entries if entry.status == "taken"],
            "properties": self.zoo.facts.data.get(PROPERTIES_KEY, {}),
            "left_out": [
                {"status": status, "reason": reason, "networks": names} for (status, reason), names in left_out.items()
            ],
        }

    def summary(self) -> list[str]:
        """Networks that were not imported, by reason."""
        lines = []
        for (status, reason), names in importing.left_out(self.entries).items():
            lines.append(f"{status}: {len(names)}, {shorten(reason, MAX_REASON)}")
            lines += [f"  {shorten(network)}" for network in names[:NAMES_SHOWN]]
            lines += [f"  and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
        return ["not taken", *lines] if lines else []

    def tables(self) -> list[Table]:
        """Number of networks, of runs or repositories, and of layouts per split."""
        kind, key = ("runs", "run_id") if self.zoo.facts.arguments.get("folder") else ("repositories", "repo_id")
        rows = [
            [name, len(split), *(len(set(split.column(column))) for column in (key, "layout"))]
            for name, split in self.zoo.splits.items()
        ]
        return [Table(("split", "networks", kind, "structures"), rows)]

    def details(self) -> list[Table]:
        """Files that were not imported, with the reason, and rows of property tables that belong to no network."""
        files = [[entry.run_id, entry.status, entry.reason] for entry in self.entries if entry.status != "taken"]
        rows = [[place] for place in self.zoo.facts.data.get(PROPERTIES_KEY, {}).get("unmatched_rows", ())]
        found = [Table(("file", "status", "reason"), files, title="Files that were not imported")] if files else []
        return [*found, Table(("row",), rows, title="Rows without a network")] if rows else found


def import_zoo(
    folder: str | Path | None = None,
    *,
    properties: str | Path | Sequence[str | Path] = (),
    output: str | Path | None = None,
    **options: Any,
) -> Zoo:
    """Import existing networks from a folder or the Hub as a zoo.

    ```python
    zoo = hf_sane.import_zoo("checkpoints", properties="runs.csv", output="zoo")
    zoo = hf_sane.import_zoo(repos=["org/resnet-a", "org/resnet-b"], output="zoo")
    ```

    Args:
        folder: Folder to search for networks, including its subfolders.
        properties: One or several tables of properties: accuracies, hyper-parameters, runs, epochs.
        output: Folder of the zoo; if `None`, a temporary folder, whose path is logged.
        **options: Other fields of [`ImportZooSettings`].

    Returns:
        The zoo. Networks that were left out are listed with the reason in `data/import.json` in its folder.

    Raises:
        ValueError: If no source is given, or nothing could be imported.
        FileExistsError: If the output folder holds something else.
    """
    place = output or temporary_folder("zoo")
    return run_import_zoo(
        ImportZooSettings(**{"folder": folder, "properties": properties, "output": place, **options})
    ).zoo


def run_import_zoo(settings: ImportZooSettings) -> ImportZooResult:
    """Import existing networks of any architecture as a zoo; those that cannot be imported are listed with the reason.

    Repeat the command to continue an interrupted import.
    """
    with progress(desc="importing", unit="network", wanted=settings.progress_bar) as bar:

        def report(entry: importing.ImportEntry) -> None:
            bar.update()
            bar.set_postfix_str(f"{entry.status} {shorten(entry.run_id)}", refresh=False)

        def expect(places: int) -> None:
            bar.total = places

        found = importing.import_zoo(
            settings,
            settings.output,
            config=settings.zoo_config,
            on_entry=report,
            on_found=expect,
            describe=report_writer(partial(_result, settings)),
        )
    return _result(settings, found)


def _result(settings: ImportZooSettings, found: importing.ImportResult) -> ImportZooResult:
    notes = [
        *found.notes,
        f"outcome for each network: {data_folder(Path(settings.output), settings.zoo_config) / REPORT_NAME}",
    ]
    if settings.folder is not None and settings.pattern is None and _lacks_runs(found.zoo):
        notes.append(
            "no run names were found, so every file counts as its own run; if some are checkpoints of one run, "
            f"group them by a pattern of their paths: {EXAMPLE}"
        )
    layouts = found.zoo.facts.parsed_layouts.values()
    if wasteful := sum(layout.padding_share > MUCH_PADDING for layout in layouts):
        notes.append(
            f"layouts that are at least {MUCH_PADDING:.0%} padding: {wasteful} of {len(layouts)}; --token-layout "
            "dense takes less space"
        )
    if any(entry.status == "failed" for entry in found.entries):
        notes.append("some networks could not be read or reached: repeat the call to try them again")
    return ImportZooResult(
        record=found.zoo.run_record or RunRecord.start(seed=settings.seed, arguments=settings.to_dict()),
        output=Path(settings.output),
        notes=notes,
        zoo=found.zoo,
        entries=found.entries,
    )


def _lacks_runs(zoo: Zoo) -> bool:
    """Whether networks share folders, so that they could be of one run, but no run names were found."""
    runs, networks, groups = (
        sum(split.get(name, 0) for split in zoo.facts.splits.values()) for name in ("runs", "networks", "groups")
    )
    return bool(0 < groups < networks == runs)


__all__ = ["import_zoo"]
