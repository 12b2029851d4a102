"""The command line, run record, memory measurement and error handling that all benchmarks share."""

import argparse
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_sane.records._allocator import tune_allocator
from hf_sane.records._redaction import hide_folders_in
from hf_sane.records._run_record import RunRecord

sys.path.append(str(Path(__file__).parents[1] / "experiments"))  # whose command lines are parsed alike

from script_options import ScriptParser

SAMPLE_SECONDS = 0.02  # between two memory measurements


def new_parser(
    description: str | None, *, needs_output: bool = False, former: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """A parser with the option `--output`; the docstring of the benchmark is its help.

    `former` holds former spellings of options, see [`ScriptParser`].
    """
    parser = ScriptParser(description, former)
    parser.add_argument("--output", type=Path, required=needs_output, help="JSON file for the run record")
    return parser


def start(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, hidden: Sequence[str] = ()
) -> tuple[argparse.Namespace, RunRecord]:
    """Parse the command line and start the record.

    Args:
        parser: Parser from [`new_parser`] with the options of the benchmark.
        argv: Arguments; by default those of the process.
        hidden: Options that the record omits, in addition to `output`.

    Returns:
        Options, and a record of them without folders of paths; its seed is the option `seed`, the first of `seeds`, or
        0.
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
    """Complete the record, write it if requested, and return the results.

    Args:
        record: Record from [`start`].
        results: Measurements.
        output: File to write, if any.
        data: Description of the data.
        shows: Whether to print the results as JSON.
    """
    record.finish(results, data=data)
    if shows:
        print(json.dumps(results, indent=2))
    if output is not None:
        record.save(output)
    return results


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by files (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@contextmanager
def watched_memory() -> Iterator[dict[str, int]]:
    """Samples anonymous memory until the block ends; `peak` is the maximum."""
    seen = {"before": anonymous_bytes(), "peak": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            seen["peak"] = max(seen["peak"], anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        seen["peak"] = max(seen["peak"], anonymous_bytes())
