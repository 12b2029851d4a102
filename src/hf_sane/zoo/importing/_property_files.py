"""Read tables of network properties: CSV, JSON, parquet, and exports of experiment trackers."""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_sane.records._errors import InvalidFileError, name_some, reading, shorten
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.records._separators import count_fields, find_separator
from hf_sane.tokenization._formats import file_format
from hf_sane.zoo.importing._event_files import is_event_file, read_scalars
from hf_sane.zoo.importing._network_names import TIMES
from hf_sane.zoo.importing._property_columns import numbers_of, zoo_name

MAX_BYTES = 2**30
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".csv.gz", ".tsv.gz")
MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "?", "<na>"}  # in lower case
NAME, RUN, STEP = "name", "run", "step"  # column names of tables without such a header
# Exports: TensorBoard names a file after run and tag, Weights & Biases a column after run and metric.
SCALARS_HEADER = ("wall time", "step", "value")
SCALARS_FILE = re.compile(r"(?:run-(?P<run>.*)-tag-)?(?P<tag>.+?)(?:\.csv|\.json)(?:\.gz)?$", re.IGNORECASE)
HISTORY_COLUMN = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?")
HISTORY_STEPS = ("step", "_step", "epoch", "relative time (process)", "wall time")
REMEDY = "save the table again as CSV (UTF-8), JSON or parquet, one row per network"
# Unsupported tables and logs, by their first bytes.
SAVE_AS_CSV = "open it and save it as CSV (UTF-8)"
NO_TABLES = (
    (b"PK\x03\x04", "an Excel or OpenDocument table, or another zip archive", SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an Excel table from before 2007", SAVE_AS_CSV),
    (b"SQLite format 3", "an SQLite database", "export its table as CSV"),
)
EVENTS = "tfevents"  # part of the names of TensorBoard's event files
SEPARATOR = re.compile(r'"?sep=(?P<mark>.)"?', re.IGNORECASE)  # the first line of files from Excel
NETWORK_COLUMN = re.compile(r"(^|_|\b)(file|filename|path|network|net|checkpoint|ckpt|weights)($|_|\b)", re.IGNORECASE)
NETWORK_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
MOSTLY_BAD = 0.5  # share of bad rows above which the whole table is wrong


@dataclass(frozen=True)
class PropertyTable:
    """Rows about networks, as in the file: text remains text, and missing values are `None`.

    Attributes:
        file: Name of the file.
        rows: Values by column; nested JSON objects have columns such as `config.lr`.
        places: Location of each row in the file, for messages: `"line 12"`.
        notes: Messages about rows that were left out, with the reasons.
        digest: SHA-256 of the file.
        is_one_of_many: Whether the file is one of several in a folder.
    """

    file: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    notes: tuple[str, ...] = ()
    digest: str = ""
    is_one_of_many: bool = False

    @property
    def columns(self) -> list[str]:
        """All columns, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_all_tables(paths: Sequence[Path]) -> list[PropertyTable]:
    """The tables in all files and folders, without damaged ones, which are noted.

    Raises:
        FileNotFoundError: If a file does not exist, or a folder contains no table.
        InvalidFileError: If all tables are damaged.
    """
    tables: list[PropertyTable] = []
    errors: list[tuple[Path, InvalidFileError]] = []
    for path in paths:
        try:
            found = read_tables(path)
        except InvalidFileError as error:
            errors.append((path, error))
            continue
        tables += [replace(table, is_one_of_many=True) for table in found] if len(paths) > 1 else found
    if errors and not tables:
        raise errors[0][1]
    notes = [str(error).replace(str(path), path.name) + ": left out" for path, error in errors]
    return _with_notes(tables, notes)


def _with_notes(tables: Sequence[PropertyTable], notes: Sequence[str]) -> list[PropertyTable]:
    """Tables of which the first notes why others were left out."""
    return [replace(table, notes=(*notes, *table.notes)) if table is tables[0] else table for table in tables]


def read_tables(path: Path) -> list[PropertyTable]:
    """The table in a file, or all tables below a folder, without damaged ones, which are noted.

    Logs are joined into one table: event files of TensorBoard, files exported from it (one for every run and scalar),
    and files of the same name in several folders, such as `version_0/metrics.csv`, which name no run but their folder.

    Raises:
        FileNotFoundError: If there is no such file, or no table in the folder.
        InvalidFileError: If it is not a table, or all tables in the folder are damaged.
    """
    if path.is_file():
        return [read_properties(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file; expected a table of properties (CSV, JSON or parquet)")
    files = sorted(file for file in path.rglob("*") if _may_be_table(file.name) and file.is_file())
    if not files:
        raise FileNotFoundError(f"{path} holds no table of properties; expected files such as runs.csv")
    count = Counter(file.name for file in files)
    tables: list[PropertyTable] = []
    logs: list[PropertyTable] = []
    errors = []
    for file in files:
        try:
            table = with_path(read_properties(file), file.relative_to(path).as_posix())
        except InvalidFileError as error:
            errors.append(error)
            continue
        table = replace(table, is_one_of_many=True)
        run = file.parent.relative_to(path).as_posix() if file.parent != path else path.resolve().name
        if EVENTS in file.name:
            logs.append(replace(table, rows=[{**row, RUN: run} for row in table.rows]))
        elif set(table.columns[:2]) == {RUN, STEP}:
            logs.append(table)
        elif count[file.name] > 1 and (times := times_of_log(table)):
            rows = [{RUN: run, times[0]: time, **row} for time, row in rows_by_time(table, times[0]).items()]
            logs.append(replace(table, rows=rows))
        else:
            tables.append(table)
    if not (tables or logs):
        raise errors[0]
    tables += [_joined(path, logs)] if logs else []
    notes = tuple(str(error).replace(f"{path}/", "") + ": left out" for error in errors)
    return _with_notes(tables, notes)


def with_path(table: PropertyTable, path: str) -> PropertyTable:
    """A table whose notes name its file by a longer path."""
    notes = (path + note.removeprefix(table.file) if note.startswith(table.file) else note for note in table.notes)
    return replace(table, notes=tuple(notes))


def _may_be_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or EVENTS in name


def times_of_log(table: PropertyTable) -> list[str]:
    """`epoch` and `step`, as far as a table has them, if it is the log of one run, which names no others."""
    roles = {zoo_name(name): name for name in table.columns}
    is_log = RUN not in roles and not any(_names_networks(table, name) for name in text_columns(table))
    return [time for time in TIMES if time in roles] if is_log else []


def text_columns(table: PropertyTable) -> list[str]:
    """Columns with values that are not numbers."""
    found = []
    for name in table.columns:
        values = {str(number): row[name] for number, row in enumerate(table.rows) if row.get(name) is not None}
        if len(numbers_of(values)) < len(values):
            found.append(name)
    return found


def _names_networks(table: PropertyTable, column: str) -> bool:
    """Whether a column of texts names files or networks."""
    values = [value for row in table.rows if isinstance(value := row.get(column), str)]
    is_named = NETWORK_COLUMN.search(column) is not None and len(set(values)) > 1
    return is_named or any(PurePosixPath(value).suffix.lower() in NETWORK_SUFFIXES for value in values)


def rows_by_time(table: PropertyTable, time: str) -> dict[int, dict[str, Any]]:
    """Values of a log by epoch or step; a loop that logs several times in one epoch leaves its last values.

    If a column such as `phase` distinguishes rows of one epoch that share other columns, their values are named after
    it: `loss` becomes `train_loss` and `val_loss`.
    """
    table = _by_phase(table, time)
    found: dict[int, dict[str, Any]] = {}
    for row in table.rows:
        numbers = {zoo_name(name): value for name, value in row.items() if zoo_name(name) in TIMES}
        if (number := whole(numbers.get(time))) is not None:
            known = {name: value for name, value in row.items() if value is not None and zoo_name(name) not in TIMES}
            found.setdefault(number, {}).update(known)
    return found


def _by_phase(table: PropertyTable, time: str) -> PropertyTable:
    phases: dict[str, dict[Any, set[Any]]] = {name: {} for name in text_columns(table)}
    times = [name for name in table.columns if zoo_name(name) == time]
    for name, found in phases.items():
        for row in table.rows:
            if row.get(name) is not None:
                found.setdefault(_number(row.get(times[0])), set()).add(row[name])
    varying = [name for name, found in phases.items() if any(len(values) > 1 for values in found.values())]
    rows = []
    for row in table.rows:
        kept = {name: value for name, value in row.items() if name not in varying}
        prefix = "_".join(str(row[name]) for name in varying if row.get(name) is not None)
        rows.append(
            {
                f"{prefix}_{name}" if prefix and name not in phases and zoo_name(name) not in TIMES else name: value
                for name, value in kept.items()
            }
        )
    return replace(table, rows=rows) if varying else table


def _joined(path: Path, logs: Sequence[PropertyTable]) -> PropertyTable:
    """Join logs to one row per run and epoch or step, with all scalars."""
    rows: dict[tuple[Any, str, Any], dict[str, Any]] = {}
    for table in logs:
        for row in table.rows:
            time = STEP if STEP in row else TIMES[0]
            rows.setdefault((row[RUN], time, _number(row[time])), {}).update(row)
    places = [f"{time} {number} of {run}" for run, time, number in rows]
    notes = tuple(note for table in logs for note in table.notes)
    digest = sha256("".join(table.digest for table in logs).encode()).hexdigest()
    return PropertyTable(path.name, list(rows.values()), places, notes, digest, is_one_of_many=True)


def whole(value: Any) -> int | None:
    """A whole number, written as a number or a text."""
    number = _number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else None


def _number(step: Any) -> Any:
    """A step as a number, regardless of the file's format."""
    try:
        return float(step)
    except (TypeError, ValueError):
        return step


def read_properties(path: Path) -> PropertyTable:
    """Read a table in the format that its first bytes indicate.

    Delimited text may separate its fields by commas, semicolons, tabs or bars, and may have a byte order mark, any
    line endings, and decimal commas (see [`numbers_of`]). JSON is a list of objects, one object per line, an object of
    objects by name, or an object of columns. Event files of TensorBoard, exports of it (`Wall time,Step,Value`, or
    its JSON) and of Weights & Biases (`<run> - <metric>` columns) become rows with a run and a step.

    Raises:
        InvalidFileError: If the file has none of these formats, or is empty.
        FileNotFoundError: If there is no such file.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InvalidFileError(path, expected=f"at most {MAX_BYTES:,} bytes", got=f"{size:,}", remedy="split it")
    content = path.read_bytes()
    digest = sha256(content).hexdigest()
    with reading(path, expected="a table of properties", remedy=REMEDY, also=(csv.Error, OSError, pa.ArrowException)):
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        if content.startswith(b"PAR1"):
            return _from_objects(path, pq.read_table(BytesIO(content)).to_pylist(), digest)
        if is_event_file(content):
            return _from_events(path, digest)
        _refuse_others(path, content)
        text = _decode(path, content).strip("\n\r")
        if not text.strip():
            raise InvalidFileError(path, expected="a table of properties", got="an empty file", remedy=REMEDY)
        if text.lstrip()[0] in "{[":
            return _from_json(path, text, digest)
        return _from_text(path, text, digest)


def _refuse_others(path: Path, content: bytes) -> None:
    """Raise an error for a known format that is not supported."""
    kinds = [(name, remedy) for start, name, remedy in NO_TABLES if content.startswith(start)]
    if EVENTS in path.name:
        kinds = [("an event file of TensorBoard that is damaged or empty", "pass the folder of the others")]
    elif not kinds and content.lstrip()[:1] in (b"<", b"\x80", b"\x93"):
        kinds = [(file_format(path).name, REMEDY)]
    if kinds:
        raise InvalidFileError(path, expected="a table of properties", got=kinds[0][0], remedy=kinds[0][1])


def _decode(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    with reading(path, expected="text in UTF-8 (or UTF-16 with a byte order mark)", remedy=REMEDY):
        return content.decode(encoding)


def _from_text(path: Path, text: str, digest: str) -> PropertyTable:
    text, skipped, delimiter = _without_preamble(text)
    # The reader counts lines, since a quoted field may contain line breaks.
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header = [name.strip() for name in next(reader)]
    if len(header) < 2:
        raise InvalidFileError(
            path, expected="a header with several columns", got=header[0], remedy="separate them by commas"
        )
    if repeated := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise InvalidFileError(path, expected="different column names", got=repeated, remedy="rename them")
    rows: list[dict[str, Any]] = []
    places, bad = [], []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            bad.append(f"line {skipped + reader.line_num} has {len(fields)} fields")
            continue
        rows.append({name: _present(field) for name, field in zip(header, fields, strict=True) if name})
        places.append(f"line {skipped + reader.line_num}")
    if bad and len(bad) > MOSTLY_BAD * (len(rows) + len(bad)):
        raise InvalidFileError(
            path,
            expected=f"{len(header)} fields in every line, as in its header",
            got=bad[0],
            remedy="quote values that contain the separator, such as decimal commas, or separate the "
            "fields by semicolons",
        )
    notes = [f"{path.name}: {name_some(bad)}, its header has {len(header)}: left out"] if bad else []
    if "" in header:
        notes.append(f"{path.name}: left out a column without a name")
    table = PropertyTable(path.name, rows, places, tuple(notes), digest)
    if tuple(name.lower() for name in header) == SCALARS_HEADER:
        triples = [[row[name] for name in header] for row in rows]
        return _from_scalars(path, triples, digest)
    return _unfolded(table, header) if _is_history(header) else _checked(path, table)


def _without_preamble(text: str) -> tuple[str, int, str]:
    """The table after comments and `sep=;`, the number of lines before it, and its separator.

    The separator is the one that the file names, or that splits the header into most fields.
    """
    named, skipped = None, 0
    while True:
        header, *rest = text.split("\n", 1) if "\n" in text else text.split("\r", 1)
        mark = find_separator(header)
        found = SEPARATOR.fullmatch(header.strip())
        is_comment = header.startswith("#") and count_fields(header, mark) == 1
        if not rest or not (found or is_comment):
            return text, skipped, named or mark
        named, skipped, text = found["mark"] if found else named, skipped + 1, rest[0]


def _present(field: str) -> str | None:
    return None if field.strip().lower() in MISSING else field.strip()


def _from_json(path: Path, text: str, digest: str) -> PropertyTable:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:  # one object per line, as loggers write them; the last may be truncated
        found, bad = [], []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                found += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError:
                bad.append(f"line {number} is not JSON")
        if len(bad) > MOSTLY_BAD * (len(found) + len(bad)):
            raise
        notes = [f"{path.name}: {name_some(bad)}: left out"] if bad else []
        return _from_objects(path, found, digest, notes)
    if isinstance(found, dict) and {"columns", "data"} <= found.keys():  # pandas, orient="split"
        rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
        names = found.get("index", range(len(rows)))
        return _from_objects(path, [{**row, NAME: name} for row, name in zip(rows, names, strict=True)], digest)
    if isinstance(found, dict) and found and all(isinstance(value, Mapping) for value in found.values()):
        if _is_by_column(found):
            names = dict.fromkeys(name for column in found.values() for name in column)
            found = {name: {key: column.get(name) for key, column in found.items()} for name in names}
        return _from_objects(path, [{NAME: name, **value} for name, value in found.items()], digest)
    if isinstance(found, dict) and found and all(isinstance(value, list) for value in found.values()):
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        return _from_objects(path, rows, digest)
    if isinstance(found, dict):
        found = [found]
    if found and all(isinstance(row, list) and len(row) == len(SCALARS_HEADER) for row in found):
        return _from_scalars(path, found, digest)
    return _from_objects(path, found, digest)


def _is_by_column(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether outer names are columns and inner names are rows, as pandas writes by default."""
    inner = {name for column in found.values() for name in column}
    return all(name.isdigit() for name in inner) or (
        any(zoo_name(name) for name in found) and not any(zoo_name(name) for name in inner)
    )


def _from_objects(path: Path, objects: Sequence[Any], digest: str, notes: Sequence[str] = ()) -> PropertyTable:
    if wrong := [value for value in objects if not isinstance(value, Mapping)]:
        raise TypeError(f"expected objects with a name for every value, got {shorten(json.dumps(wrong[0]))}")
    rows = [dict(flat_values(value)) for value in objects if value]
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    lists = dict.fromkeys(name for value in objects for name in _lists_in(value))
    told = [f"{path.name}: columns with lists, left out: {name_some(map(shorten, lists))}"] if lists else []
    return _checked(path, PropertyTable(path.name, rows, places, (*notes, *told), digest))


def _lists_in(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of values that [`flat_values`] leaves out."""
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _lists_in(entry, f"{prefix}{key}.")
        elif isinstance(entry, list | tuple | bytes):
            yield f"{prefix}{key}"


def flat_values(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested objects, by path; lists are not properties of one network."""
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping):
            yield from flat_values(entry, f"{name}.")
        elif isinstance(entry, str):
            yield name, _present(entry)
        elif entry is None or isinstance(entry, bool | int | float):
            yield name, None if isinstance(entry, float) and entry != entry else entry
        elif not isinstance(entry, list | tuple | bytes):
            yield name, str(entry)  # dates in parquet


def _from_scalars(path: Path, triples: Sequence[Sequence[Any]], digest: str) -> PropertyTable:
    """Rows of a scalar exported from TensorBoard, in a file named `run-<run>-tag-<tag>`."""
    named = SCALARS_FILE.match(path.name)
    tag = named["tag"] if named else path.stem
    run = named["run"] if named and named["run"] else path.parent.name
    rows = [{RUN: run, STEP: step, tag: value} for _, step, value in triples]
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    return _checked(path, PropertyTable(path.name, rows, places, (), digest))


def _from_events(path: Path, digest: str) -> PropertyTable:
    """Rows of the scalars of a run by step; the run is the folder of the file."""
    rows: dict[int, dict[str, Any]] = {}
    scalars, damage = read_scalars(path)
    run = path.resolve().parent.name
    for tag, step, value in scalars:
        rows.setdefault(step, {RUN: run, STEP: step})[tag] = value
    if damage is not None and not rows:
        raise InvalidFileError(path, expected="rows about networks", got=damage, remedy="copy it again")
    notes = () if damage is None else (f"{path.name}: {damage}: the rest is left out",)
    places = [f"step {step}" for step in rows]
    return _checked(path, PropertyTable(path.name, list(rows.values()), places, notes, digest))


def _is_history(header: Sequence[str]) -> bool:
    """Whether columns are `<run> - <metric>`, as in charts exported from Weights & Biases."""
    return header[0].lower() in HISTORY_STEPS and all(HISTORY_COLUMN.fullmatch(name) for name in header[1:])


def _unfolded(table: PropertyTable, header: Sequence[str]) -> PropertyTable:
    """Convert one column per run to one row per run and step."""
    step = "epoch" if header[0].lower() == "epoch" else STEP
    found: dict[tuple[str, Any], dict[str, Any]] = {}
    places = {}
    for row, place in zip(table.rows, table.places, strict=True):
        for column in header[1:]:
            part = HISTORY_COLUMN.fullmatch(column)
            assert part is not None  # _is_history
            if part["bound"] is None and row[column] is not None:
                key = (part["run"], row[header[0]])
                found.setdefault(key, {RUN: key[0], step: key[1]})[part["metric"]] = row[column]
                places[key] = place
    return PropertyTable(table.file, list(found.values()), list(places.values()), table.notes, table.digest)


def _checked(path: Path, table: PropertyTable) -> PropertyTable:
    if not table.rows:
        raise InvalidFileError(path, expected="rows about networks", got="none", remedy=REMEDY)
    return table
