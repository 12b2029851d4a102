"""Measure the time that `import hf_sane` adds to `import torch, transformers`, in new processes.

    python benchmarks/import_time.py --output runs/benchmarks/import_time.json

Each round starts one process without and one with the library, in alternating order, so that both see the same
machine. A first round, which is discarded, fills the disk caches. About 2 minutes on 2 cores.
"""

import statistics
import subprocess
import sys

from running import finish, new_parser, start

from hf_sane.records._failures import run_script

BASE = "import torch, transformers"
STATEMENTS = {"torch_transformers": BASE, "and_hf_sane": f"{BASE}, hf_sane"}
TIMED = (
    "import time; wall, busy = time.perf_counter(), time.process_time(); {statement}; "
    "print(time.perf_counter() - wall, time.process_time() - busy)"
)
CLOCKS = ("seconds", "processor_seconds")  # the second hardly depends on other processes


def import_seconds(statement: str) -> list[float]:
    """Seconds that an import takes in a process of its own, by each of `CLOCKS`."""
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) for value in ran.stdout.split()]


def measure(rounds: int, discarded: int) -> dict[str, dict[str, float]]:
    """Medians over rounds of times, their differences and ratios, by each of `CLOCKS`."""
    found: dict[str, list[list[float]]] = {name: [] for name in STATEMENTS}
    for index in range(rounds + discarded):
        for name in list(STATEMENTS) if index % 2 else list(reversed(STATEMENTS)):
            seconds = import_seconds(STATEMENTS[name])
            if index >= discarded:
                found[name].append(seconds)
    results = {}
    for place, clock in enumerate(CLOCKS):
        without, with_it = ([seconds[place] for seconds in found[name]] for name in STATEMENTS)
        pairs = list(zip(without, with_it, strict=True))
        results[clock] = {
            "torch_transformers": statistics.median(without),
            "and_hf_sane": statistics.median(with_it),
            "added": statistics.median(ours - base for base, ours in pairs),
            "ratio": statistics.median(ours / base for base, ours in pairs),
        }
    return results


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="Pairs of processes.")
    parser.add_argument("--discarded", type=int, default=1, help="Discarded pairs before them.")
    arguments, record = start(parser, argv)
    results = measure(arguments.rounds, arguments.discarded)
    for clock, row in results.items():
        print(
            f"{clock.replace('_', ' ')}: {row['torch_transformers']:.2f}, with hf_sane {row['and_hf_sane']:.2f}; "
            f"added {row['added']:.3f}, ratio {row['ratio']:.3f}"
        )
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="import_time.py")
