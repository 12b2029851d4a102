"""Match rows of a table with networks, by path, file name or stem, or by run and epoch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import PurePosixPath
from typing import Any

from hf_sane.records._errors import did_you_mean, name_some, shorten
from hf_sane.zoo._records import MEASURES, NUMBERS
from hf_sane.zoo.importing._network_names import TIMES, NetworkName, run_of
from hf_sane.zoo.importing._property_columns import zoo_name
from hf_sane.zoo.importing._property_files import PropertyTable, text_columns, whole

NO_NAMES = (*TIMES, *MEASURES, *NUMBERS)  # columns that do not name networks, even if their numbers match names
LISTED = 3


@dataclass
class Matched:
    """Rows of tables by network.

    Attributes:
        rows: Properties of each network, by their names in the table.
        runs: Training run of each network, if known.
        times: Epoch or step of each network, if known.
        last: Networks that are called the last of their run.
        unmatched: Rows of tables without a network, with their locations.
        notes: Messages about how rows were matched, and which rows were left out.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    times: dict[str, dict[str, int]] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def match_rows(tables: Sequence[PropertyTable], networks: Sequence[NetworkName], key: str | None = None) -> Matched:
    """Find the row of every network in every table.

    A table has a column that names files (by a path relative to the folder, an absolute path, a file name or a stem),
    or a column that names runs (by a folder, or the pattern's `{run}`), with an epoch or step if a run has several
    networks. The column that matches most networks is used.

    Args:
        tables: Tables of properties.
        networks: Names of all networks.
        key: Column that names the network or its run.

    Raises:
        ValueError: If a table matches no network (or, for a folder, none of its tables does), or no table has the
            column `key`.
    """
    result = Matched()
    for network in networks:
        result.rows[network.name] = dict(network.properties)
        result.times[network.name] = dict(network.times)
        if network.is_last:
            result.last.add(network.name)
        if network.run is not None:
            result.runs[network.name] = network.run
    if key is not None and tables and not any(key in table.columns for table in tables):
        columns = [name for table in tables for name in table.columns]
        raise ValueError(
            f"expected a column {key!r} that names the networks, got {', '.join(map(shorten, columns))}"
            f"{did_you_mean(key, columns)}"
        )
    errors: dict[str, ValueError] = {}
    unused = 0
    for table in tables:
        result.notes += table.notes
        try:
            _match_table(table, networks, key, result)
        except ValueError as error:
            if not table.is_one_of_many:
                raise
            errors[table.file] = error
            unused += 1
    if unused and unused == len(tables):
        raise next(iter(errors.values()))
    if unused:
        result.notes.append(f"tables that match no network: {unused} ({name_some(errors)})")
    return result


@dataclass(frozen=True)
class _Match:
    """Rows of a table by network, matched by one of its columns."""

    column: str
    rows: Mapping[str, int]
    runs: Mapping[str, str] = field(default_factory=dict)
    is_by_run: bool = False
    several: Mapping[str, Sequence[int]] = field(default_factory=dict)  # different rows of one network: none is used


def _match_table(table: PropertyTable, networks: Sequence[NetworkName], key: str | None, result: Matched) -> None:
    table = _with_joined_rows(_without_repeats(table, result.notes))
    columns = [name for name in table.columns if zoo_name(name) not in NO_NAMES]
    if key is not None and key in table.columns:
        columns = [key]
    by_file = [_by_file(table, column, networks) for column in columns]
    by_run = [_by_run(table, column, networks, result) for column in columns]
    by_fields = [_by_fields(table, networks)] if key is None else []
    # the first of equals
    best = max([*by_fields, *by_file, *by_run], key=lambda match: len(match.rows), default=None)
    if (best is None or not best.rows) and (
        count := max((len(match.several) for match in (*by_file, *by_run)), default=0)
    ):
        raise ValueError(
            f"{table.file}: {count} networks have several different rows; expected one row per network, or per "
            "run and epoch; remove the others, or say which part of a path is the epoch (--pattern)"
        )
    if best is None or not best.rows:
        first = (columns or table.columns)[0]  # not the epoch
        named = ", ".join(repr(shorten(row.get(first))) for row in table.rows[:LISTED])
        raise ValueError(
            f"{table.file}: no row matches any of {len(networks)} networks; expected a column with names such as "
            f"{', '.join(repr(shorten(n.name)) for n in networks[:LISTED])}, got {named} in the column {first!r}; "
            "name the column (--properties-key), or describe the paths (--pattern)"
        )
    _take_rows(table, best, result)
    several = {name: numbers for name, numbers in best.several.items() if name not in best.rows}
    used = {*best.rows.values(), *(number for numbers in several.values() for number in numbers)}
    free = [place for number, place in enumerate(table.places) if number not in used]
    result.unmatched += [f"{table.file}, {place}" for place in free]
    missing = [network.name for network in networks if network.name not in best.rows.keys() | several.keys()]
    unclear = [f"{name}: {', '.join(table.places[number] for number in numbers)}" for name, numbers in several.items()]
    how = f"run, in the column {best.column!r}" if best.is_by_run else f"the column {best.column!r}"
    result.notes += [
        f"{table.file}: {len(best.rows)} of {len(networks)} networks matched by {how}",
        *([f"{table.file}: rows that match no network: {len(free)} ({name_some(free)})"] if free else []),
        *(
            [
                f"{table.file}: networks with several different rows, none of which is used: {len(several)} "
                f"({name_some(unclear)})"
            ]
            if several
            else []
        ),
        *([f"{table.file}: networks without a row: {len(missing)} ({name_some(missing)})"] if missing else []),
    ]
    if any(_is_named(network, best.column) for network in networks if network.name in missing):
        result.notes.append(
            f"{table.file}: the first line has no names of columns but those of a network ({shorten(best.column)}), "
            "which is left out; add a line with names of columns above it"
        )


def _is_named(network: NetworkName, text: str) -> bool:
    """Whether a text names a network: by its path, file name, stem, folder or run."""
    path = PurePosixPath(network.name)
    return text in (network.name, network.run, path.stem, *path.parts)


def _without_repeats(table: PropertyTable, notes: list[str]) -> PropertyTable:
    """The table without duplicate rows, which are noted."""
    first = {repr(sorted(row.items(), key=str)): number for number, row in reversed([*enumerate(table.rows)])}
    kept = sorted(first.values())
    if len(kept) == len(table.rows):
        return table
    notes.append(f"{table.file}: duplicate rows, left out: {len(table.rows) - len(kept)}")
    rows, places = ([values[number] for number in kept] for values in (table.rows, table.places))
    return replace(table, rows=rows, places=places)


def _with_joined_rows(table: PropertyTable) -> PropertyTable:
    """The table with one row for rows of one epoch or step that complete each other, as of training and tests."""
    times = {str(zoo_name(name)): name for name in reversed(table.columns) if zoo_name(name) in TIMES}
    time = next((times[name] for name in TIMES if name in times), None)
    if time is None:
        return table
    names = [name for name in table.columns if zoo_name(name) == "run" or name in text_columns(table)]
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        groups[(*(row.get(name) for name in names), whole(row.get(time)))].append(number)
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    for numbers in groups.values():
        joined: dict[str, Any] = {}
        fits = True
        for number in numbers:
            known = {name: value for name, value in table.rows[number].items() if value is not None}
            fits &= all(
                joined.get(name, value) == value for name, value in known.items() if name not in times.values()
            )
            joined |= known
        kept = [joined] if fits else [table.rows[number] for number in numbers]
        rows += kept
        places += [table.places[number] for number in numbers[: len(kept)]]
    return replace(table, rows=rows, places=places)


def _by_fields(table: PropertyTable, networks: Sequence[NetworkName]) -> _Match:
    """Match all fields of the pattern with the columns of the same names."""
    fields = {name for network in networks for name in network.properties}
    shared = [name for name in table.columns if name in fields]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        places[tuple(_plain(row.get(name)) for name in shared)].append(number)
    rows = {}
    several = {}
    for network in networks if shared else ():
        found = places.get(tuple(_plain(network.properties.get(name)) for name in shared), [])
        if len(found) == 1:
            rows[network.name] = found[0]
        elif found:
            several[network.name] = found
    return _Match(", ".join(shared), rows, several=several)


def _plain(value: Any) -> str:
    """A value as text, so that equal numbers are equal regardless of notation."""
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value)


def _by_file(table: PropertyTable, column: str, networks: Sequence[NetworkName]) -> _Match:
    """Match values of a column with the names of networks, longest paths first."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        value = row.get(column)
        if value is not None and not isinstance(value, bool | float):
            places[str(value).replace("\\", "/").removeprefix("./").rstrip("/")].append(number)
    if not places:
        return _Match(column, {})
    # A table may name a network by its path, a longer (absolute) path, or part of its path.
    endings: dict[str, list[list[int]]] = defaultdict(list)
    for name, found in places.items():
        parts = name.split("/")
        for start in range(1, len(parts)):
            endings["/".join(parts[start:])].append(found)
    rows: dict[str, int] = {}
    several: dict[str, list[int]] = {}
    levels = [_levels(network.name) for network in networks]
    counts: list[dict[str, int]] = [defaultdict(int) for _ in levels[0]]
    for names in levels:
        for level, name in enumerate(names):
            counts[level][name] += 1
    for network, names in zip(networks, levels, strict=True):
        for level, name in enumerate(names):
            found = places.get(name, [])
            if not found and level < 2 and len(endings.get(name, ())) == 1:  # absolute paths
                found = endings[name][0]
            if len(found) == 1 and counts[level][name] == 1:
                rows[network.name] = found[0]
                break
            if found and counts[level][name] == 1:  # two rows for one name: neither can be used
                several.setdefault(network.name, found)
    return _Match(column, rows, several=several)


def _levels(name: str) -> tuple[str, ...]:
    """Possible names of a network: its path with and without suffix, its file name, its stem."""
    path = PurePosixPath(name)
    return (name, path.with_suffix("").as_posix() if path.suffix else name, path.name, path.stem)


def _by_run(table: PropertyTable, column: str, networks: Sequence[NetworkName], matched: Matched) -> _Match:
    """Match values of a column with runs, and rows of a run with its networks by epoch or step."""
    of_value: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        value = row.get(column)
        if value is not None and not isinstance(value, bool | float):
            of_value[str(value).replace("\\", "/").removeprefix("./").rstrip("/")].append(number)
    times = {str(zoo_name(name)): name for name in reversed(table.columns) if zoo_name(name) in TIMES}
    rows: dict[str, int] = {}
    runs: dict[str, str] = {}
    several: dict[str, Sequence[int]] = {}
    for network in networks:
        found = next((name for name in _run_names(network, matched) if name in of_value), None)
        if found is None:
            continue
        places = _rows_at(table, of_value[found], times, matched.times[network.name])
        if len(places) == 1:
            rows[network.name], runs[network.name] = places[0], found
        elif places:
            several[network.name] = places
    return _Match(column, rows, runs, is_by_run=True, several=several)


def _run_names(network: NetworkName, matched: Matched) -> Iterable[str]:
    """Possible names of a run: from the pattern, or any folder of the network, innermost first."""
    if network.name in matched.runs:
        yield matched.runs[network.name]
    for folder in PurePosixPath(network.name).parents:
        if folder.name:
            yield folder.as_posix()
            yield folder.name


def _rows_at(
    table: PropertyTable, numbers: Sequence[int], columns: Mapping[str, str], times: Mapping[str, int]
) -> Sequence[int]:
    """The rows of a run at an epoch or step, if rows have epochs or steps."""
    shared = [name for name in TIMES if name in columns and name in times]
    pairs = [(columns[name], times[name]) for name in shared[:1]]
    # an epoch in one place, a step in the other
    if not pairs and len(columns) == 1 and len(times) == 1:
        pairs = [(next(iter(columns.values())), next(iter(times.values())))]
    for column, time in pairs:
        return [number for number in numbers if whole(table.rows[number].get(column)) == time]
    return numbers


def _take_rows(table: PropertyTable, match: _Match, result: Matched) -> None:
    """Add the properties of a table to those known so far; of two values for a property, the first is kept."""
    roles = {name: zoo_name(name) for name in table.columns}
    last = _last_of_rows(match, result)
    partial = 0
    for network, number in match.rows.items():
        row = table.rows[number]
        known = result.rows[network]
        for name, value in row.items():
            role = roles[name]
            if value is None or name == match.column or role in ("run", *TIMES):
                continue
            if role in MEASURES and network not in last:
                partial += 1
                continue
            known.setdefault(name, value)
        for name, role in roles.items():
            if role in TIMES and (time := whole(row.get(name))) is not None:
                result.times[network].setdefault(str(role), time)
            if role == "run" and row.get(name) is not None and not match.is_by_run:
                # some name the checkpoint, instead of its run
                result.runs.setdefault(network, run_of(str(row[name])) or str(row[name]))
        if network in match.runs:
            result.runs.setdefault(network, match.runs[network])
    if partial:
        result.notes.append(
            f"{table.file}: one row per run, so accuracies and losses are assigned only to the last network of each "
            f"run"
        )


def _last_of_rows(match: _Match, result: Matched) -> set[str]:
    """The network that was trained longest among those of a run that share a row, unless that is unknown."""
    members: dict[tuple[int, str], list[str]] = defaultdict(list)
    for network, number in match.rows.items():
        members[number, result.runs.get(network, match.runs.get(network, network))].append(network)
    last = set()
    for names in members.values():
        reached = {
            name: inf if name in result.last else max(result.times[name].values(), default=None) for name in names
        }
        known = [time for time in reached.values() if time is not None]
        if len(names) == 1:
            last.add(names[0])
        elif len(known) == len(names) and known.count(max(known)) == 1:
            last.add(max(names, key=lambda name: reached[name] or 0))
    return last
