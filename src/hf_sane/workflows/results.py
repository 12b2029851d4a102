"""Results of workflows: printed as tables, converted to JSON, and saved with a run record."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from hf_sane.analysis._pictures import collecting_pictures
from hf_sane.cards._tables import fact_text
from hf_sane.records._errors import shorten
from hf_sane.records._files import write_atomically
from hf_sane.records._outputs import output_folder
from hf_sane.records._processes import joined_processes
from hf_sane.records._run_files import REPORT, is_leaving_run_file
from hf_sane.records._run_record import RECORD, RunRecord
from hf_sane.workflows.reports import draw_report, render_report

FINDING = 1  # exit code: the workflow succeeded, and found a fault in its input
MAX_LINE = 4000  # characters
UNLIMITED = 10_000  # columns: tables in files and pipes are not wrapped


@dataclass(frozen=True)
class Table:
    """A table. The first column holds names, the others are right-aligned.

    Attributes:
        header: Titles of the columns; if empty, only title and caption are printed.
        rows: One cell per column; `None` is shown as a dash, NaN as "undefined".
        title: Printed above the table.
        caption: Printed below it.
    """

    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    title: str = ""
    caption: str = ""


@dataclass(kw_only=True)
class Result:
    """Base class of all results.

    Attributes:
        record: Command, settings, versions and measurements of the run.
        output: The folder or file that was written; `None` if nothing was.
        notes: Messages for the user, such as what was left out.
        is_silent: Whether another process prints the result.
    """

    JOB: ClassVar[str] = "result"  # the folder's name in manifests
    JSON: ClassVar[Any] = dict[str, Any]  # type of `to_dict`, see [`result_schema`]

    record: RunRecord
    output: Path | None = None
    notes: list[str] = field(default_factory=list)
    is_silent: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # which `dataclass` would replace

    def summary(self) -> list[str]:
        """Lines that are printed before the tables."""
        return []

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if the workflow found a fault in the input."""
        return 0

    def tables(self) -> list[Table]:
        """Tables to print."""
        return []

    def details(self) -> list[Table]:
        """Tables that only the report shows."""
        return []

    def report_summary(self) -> list[str]:
        """Lines before the tables of the report: those that are printed, unless a later command can change them."""
        return self.summary()

    def report_tables(self) -> list[Table]:
        """Tables of the report: those that are printed, and the details."""
        return [*self.tables(), *self.details()]

    def to_dict(self) -> dict[str, Any]:
        """The measurements in a form that JSON supports, with `None` for non-finite numbers."""
        return self.record.to_dict().get("results", {})

    def to_json(self) -> str:
        """The content of [`to_dict`] and the output folder, as JSON text."""
        found = self.to_dict()
        found |= {} if self.output is None else {"output": str(self.output)}
        found |= {"notes": self.notes} if self.notes else {}
        return json.dumps(found, indent=2, allow_nan=False)

    def save(self, folder: str | Path) -> Self:
        """Write the result to a new folder, with its run record.

        Raises:
            FileExistsError: If the folder holds something else.
        """
        with output_folder(folder, self.JOB) as partial:
            self.write_all(partial)
        self.output = Path(folder)
        return self

    def write(self, partial: Path) -> None:
        """Write the files of the result to a folder made by [`output_folder`]: its record, with what was found."""
        replace(self.record, results=self.record.results or self.to_dict()).save(partial / RECORD)

    def draw(self, partial: Path) -> None:
        """Draw plots into a folder, if there are any to draw."""

    def write_all(self, partial: Path) -> None:
        """Write all files of the result to a folder made by [`output_folder`], its report among them."""
        with collecting_pictures() as pictures:
            self.draw(partial)
        self.write(partial)
        with write_atomically(partial / REPORT) as page:
            page.write_text(render_report(self, pictures), encoding="utf-8")

    def print(self, console: Console | None = None, *, notes: bool = True) -> None:
        """Print notes (unless they were already shown), tables, and the output path."""
        console = console or _Console(soft_wrap=True)
        wide = console if console.is_terminal else _Console(file=console.file, width=UNLIMITED)
        shown = self.notes if notes else []
        lines = self.summary()
        for line in (*shown, *lines):
            console.print(_text(line))
        for index, table in enumerate(self.tables()):
            if index or shown or lines:
                console.print()
            if table.title:
                console.print(_text(table.title, style="bold"))
            if table.header:
                _print_table(table, wide)
            if table.caption:
                for line in table.caption.split("\n"):
                    console.print(_text(line))
        if self.output is not None:
            console.print(_text(f"wrote {self.output}"))

    def __str__(self) -> str:
        text = io.StringIO()
        self.print(Console(file=text, width=UNLIMITED, no_color=True))
        return text.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>\n{self}"


AnyResult = TypeVar("AnyResult", bound=Result)


@dataclass(frozen=True)
class OptionalOutput:
    """The output folder of a workflow, if it has one; made by [`optional_output`].

    Attributes:
        output: Path of the folder once it is complete.
        partial: Folder that holds its files until then.
        is_silent: Whether another process prints the result.
    """

    output: Path | None
    partial: Path | None
    is_silent: bool = False

    def write(self, result: AnyResult) -> AnyResult:
        """Write the files of a result, if there is an output folder; return the result with its folder."""
        if self.partial is not None:
            result.write_all(self.partial)
        result.output, result.is_silent = self.output, self.is_silent
        return result


@contextmanager
def optional_output(output: Path | None, job: str) -> Iterator[OptionalOutput]:
    """Like [`output_folder`], for workflows whose output is optional."""
    if output is None:
        yield OptionalOutput(None, None)
    else:
        with output_folder(output, job) as partial:
            yield OptionalOutput(output, partial)


@contextmanager
def joined_output(output: Path | None, job: str) -> Iterator[OptionalOutput]:
    """Like [`optional_output`], in processes that share the work: only the main process has an output and prints."""
    with joined_processes() as processes:
        if not processes.is_main:
            yield OptionalOutput(None, None, is_silent=True)
            return
        with optional_output(output, job) as found:
            yield found


def report_writer(make_result: Callable[..., Result], name: str = REPORT) -> Callable[..., None] | None:
    """Function that adds a report to an output that others write, before it is finished; `None` if no command runs.

    Args:
        make_result: Makes the result from what the writer of the output gives.
        name: Name of the file.
    """
    if not is_leaving_run_file():
        return None

    def write(folder: Path, *found: Any) -> None:
        with write_atomically(folder / name) as page:
            page.write_text(draw_report(make_result(*found)), encoding="utf-8")

    return write


def rows_of(measured: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of a table, from `{name: {column: value}}`."""
    return [[name, *row.values()] for name, row in measured.items()]


def _text(line: str, *, style: str = "") -> Text:
    """Strip markup and terminal control sequences from a line that may contain untrusted names."""
    indent = line[: len(line) - len(line.lstrip(" "))]
    return Text(indent + shorten(line, MAX_LINE), style=style)


class _Console(Console):
    """A console that raises an error when its reader closes the pipe; the program has an exit code for that."""

    def on_broken_pipe(self) -> None:
        """Raise the error again, which the base class would hide."""
        raise


def _print_table(table: Table, console: Console) -> None:
    made = RichTable(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(table.header):
        made.add_column(Text(title), justify="left" if index == 0 else "right", no_wrap=not console.is_terminal)
    for row in table.rows:
        made.add_row(*(Text(fact_text(value, shorten)) for value in row))
    text = io.StringIO()
    aside = Console(file=text, width=console.width, force_terminal=console.is_terminal, no_color=console.no_color)
    aside.print(made)
    for line in text.getvalue().splitlines():
        console.file.write(line.rstrip() + "\n")


__all__ = ["Result", "Table"]
