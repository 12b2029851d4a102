"""What verbs print and leave on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from hf_sane.records.run_record import RunRecord

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


def save_record(record: "RunRecord", folder: Path, results: dict[str, Any]) -> None:
    """Complete a run record and save it beside what the run wrote."""
    path = record.finish(results).save(folder / RECORD)
    typer.echo(f"wrote {folder} (results and run record: {path.name})")


def hide_loading_bars() -> None:
    """Keep Transformers and Datasets from drawing a bar for every small file; downloads keep theirs."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def new_folder(folder: Path) -> Path:
    """Make an output folder.

    Raises:
        FileExistsError: If there is a run in it already.
    """
    if (folder / RECORD).exists():
        raise FileExistsError(f"{folder} already holds a run ({RECORD}); choose another output folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
