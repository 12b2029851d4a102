"""What all benchmarks share: their command line, their record, and how they end."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sane.records._allocator import tune_allocator
from hf_sane.records._redaction import hide_folders_in
from hf_sane.records._run_record import RunRecord


def new_parser(description: str | None, *, needs_output: bool = False) -> argparse.ArgumentParser:
    """A parser with the option `--output`; the docstring of the benchmark is its help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=needs_output, help="JSON file that receives the run record")
    return parser


def start(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, hidden: Sequence[str] = ()
) -> tuple[argparse.Namespace, RunRecord]:
    """Parse the command line and start the record.

    Args:
        parser: From [`new_parser`], with the benchmark's own options.
        argv: Arguments; those of the process when `None`.
        hidden: Options that the record leaves out, beside `output`.

    Returns:
        Options, and a record of them, without the folders that paths are in; its seed is the option `seed`, or the
        first of `seeds`, or 0.
    """
    options = parser.parse_args(argv)
    tune_allocator()
    shown = {name: value for name, value in vars(options).items() if name not in ("output", *hidden)}
    seeds = getattr(options, "seeds", 0)
    seed = getattr(options, "seed", seeds[0] if isinstance(seeds, list) else 0)
    arguments = {name: value.name if isinstance(value, Path) else value for name, value in shown.items()}
    return options, RunRecord.start(seed=seed, arguments=hide_folders_in(arguments))


def finish(
    record: RunRecord,
    results: dict[str, Any],
    output: Path | None,
    *,
    data: Mapping[str, Any] | None = None,
    shows: bool = False,
) -> dict[str, Any]:
    """Write the record when asked to, and give the results back.

    Args:
        record: From [`start`].
        results: What was measured.
        output: Where to.
        data: What it was measured on.
        shows: Whether to print the results as JSON.
    """
    record.finish(results, data=data)
    if shows:
        print(json.dumps(results, indent=2))
    if output is not None:
        record.save(output)
    return results
