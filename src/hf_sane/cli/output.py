"""What verbs print and leave on disk."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import typer

from hf_sane.records.errors import shorten
from hf_sane.records.outputs import output_folder

RECORD = "run.json"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; the first to the left, numbers to the right."""
    table = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        typer.echo("  ".join([first, *rest]).rstrip())


@contextmanager
def new_output(output: Path, job: str) -> Iterator[Path]:
    """Write the output of a verb: see [`output_folder`]; at the end, say where it is."""
    with output_folder(output, job) as partial:
        yield partial
    typer.echo(f"wrote {output}")


def optional_output(output: Path | None, job: str) -> AbstractContextManager[Path | None]:
    """As [`new_output`], for verbs that need not write anything."""
    return nullcontext() if output is None else new_output(output, job)


def hide_loading_bars() -> None:
    """Keep Transformers and Datasets from drawing a bar for every small file; downloads keep theirs."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else shorten(value)
