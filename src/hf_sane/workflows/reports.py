"""Reports: a result as one HTML file, which any browser shows without a network."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

from markupsafe import Markup

from hf_sane.analysis._pictures import Picture, collecting_pictures
from hf_sane.cards._rendering import render_page
from hf_sane.cards._tables import fact_text, is_known
from hf_sane.records._errors import shorten
from hf_sane.records._file_kinds import REPORT_PAGE
from hf_sane.records._outputs import add_file, output_file
from hf_sane.records._run_files import REPORT
from hf_sane.records._run_record import RunRecord

# Parts of run records that are shown as the origin of a result, and their headings.
PARTS = {"arguments": "Settings", "data": "Data", "hardware": "Machine", "versions": "Versions"}
SHORT = 32  # characters of a cell that is not broken into lines
MAX_TOGETHER = 4  # facts on one line
SINGULAR = (  # first columns that head a table in the plural
    *("architecture", "checkpoint", "epoch", "excluded run", "file", "ingredient", "kind", "network", "split"),
    "tensor",
)


class Reported(Protocol):
    """The content of a report; see `Result`."""

    JOB: ClassVar[str]
    record: RunRecord
    output: Path | None
    notes: list[str]

    def report_summary(self) -> list[str]:
        """Sentences before the tables."""

    def report_tables(self) -> Sequence[Any]:
        """Tables of the report, see `Table`."""

    def draw(self, partial: Path) -> None:
        """Draw plots into a folder."""


def report(result: Reported, path: str | Path | None = None) -> Path:
    """Write a result as one HTML file: tables that can be sorted and filtered, plots, and how it was made.

    ```python
    hf_sane.report(hf_sane.scan("downloads"), "scan.html")
    ```

    Args:
        result: Result of a workflow.
        path: The file; by default report.html in the output folder of the result.

    Returns:
        The file.

    Raises:
        ValueError: If there is neither a path nor an output folder.
        FileExistsError: If the file is not a report.
    """
    page = draw_report(result)
    if path is None and (result.output is None or not result.output.is_dir()):
        raise ValueError("the result has no output folder for its report; give a path: report(result, 'report.html')")
    if path is None:
        target = Path(result.output or "", REPORT)
        with add_file(target.parent, REPORT) as partial:
            partial.write_text(page, encoding="utf-8")
        return target
    with output_file(path, REPORT_PAGE) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)


def draw_report(result: Reported) -> str:
    """A result as a page in HTML, with its plots."""
    with collecting_pictures(files=False) as pictures:
        result.draw(Path())
    return render_report(result, pictures)


def render_report(result: Reported, pictures: Sequence[Picture] = ()) -> str:
    """A result as a page in HTML.

    Args:
        result: Result of a workflow.
        pictures: Its plots.
    """
    record = result.record
    seconds = "" if record.seconds is None else f", in {_seconds(record.seconds)} seconds"
    started = (record.started_at or "some time").replace("T", " ").replace("+00:00", " UTC")
    return render_page(
        "report.html",
        script="report.js",
        title=f"hf_sane: {result.JOB or 'result'}",
        made=f"Made by hf_sane {record.versions.get('hf_sane', '')}, {started}{seconds}",
        summary=[shorten(line) for line in result.report_summary()],
        notes=[shorten(note) for note in result.notes],
        tables=[_table(table) for table in result.report_tables()],
        # Drawn by this library, which escaped their texts.
        pictures=[(picture.name, Markup(picture.svg), Markup(picture.narrow)) for picture in pictures],
        command=record.command,
        facts=[
            ("", [*_facts({"seed": record.seed, "commit of the library": record.commit})]),
            *((title, [*_facts(getattr(record, part))]) for part, title in PARTS.items()),
        ],
    )


def _seconds(seconds: float) -> str:
    return fact_text(float(f"{seconds:.2g}") if seconds < 10 else round(seconds))


def _table(table: Any) -> dict[str, Any]:
    title = table.title or next(filter(None, table.header), "").removesuffix(" of") or "Results"
    title += "s" if not table.title and title in SINGULAR else ""
    shown = [column for column, name in enumerate(table.header) if name or any(row[column] for row in table.rows)]
    rows = [[_cell(row[column]) for column in shown] for row in table.rows]
    header = [
        {"text": shorten(str(table.header[column])), "is_long": any(not row[place]["is_short"] for row in rows)}
        for place, column in enumerate(shown)
    ]
    return {
        "title": shorten(title if table.title else title[:1].upper() + title[1:]),
        "header": header,
        "rows": rows,
        "name_width": max(len(row[0]["text"]) for row in [header, *rows]) if shown else 0,
        "caption": [shorten(line) for line in table.caption.split("\n") if line.strip()],
    }


def _cell(value: Any) -> dict[str, Any]:
    """A cell as it is read, and the number that it is sorted by."""
    text = fact_text(value, lambda text: shorten(str(text)))
    number = value if isinstance(value, int | float) else math.nan
    with suppress(ValueError):
        number = float(text.replace(",", "")) if isinstance(value, str) else number
    return {
        "text": text,
        "number": number if math.isfinite(number) else None,
        "is_short": len(text) <= SHORT,
    }


def _facts(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested facts, on one level; those of the innermost of several levels share a line."""
    for name, value in facts.items():
        label = f"{prefix}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping) and not (prefix and _is_innermost(value)):
            yield from _facts(value, f"{label}: ")
        elif is_known(value):
            yield shorten(label), _fact(value)


def _is_innermost(facts: Mapping[str, Any]) -> bool:
    return 0 < len(facts) <= MAX_TOGETHER and not any(isinstance(value, Mapping | list) for value in facts.values())


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {name: inner for name, inner in value.items() if is_known(inner)}
        return ", ".join(f"{shorten(str(name).replace('_', ' '))} {_fact(inner)}" for name, inner in known.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return fact_text(value, lambda text: shorten(str(text)))


__all__ = ["report"]
