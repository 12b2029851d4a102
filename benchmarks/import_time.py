"""How much `import hf_sane` adds to `import torch, transformers`, in fresh processes side by side.

    python benchmarks/import_time.py --output runs/benchmarks/import_time.json

Each round starts one process without and one with the library, in turn first, so that both see the same machine; a round
that is thrown away fills the caches of the disk. About 2 minutes on 2 cores.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from hf_sane.records.run_record import RunRecord

BASE = "import torch, transformers"
STATEMENTS = {"torch_transformers": BASE, "and_hf_sane": f"{BASE}, hf_sane"}
TIMED = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


def import_seconds(statement: str) -> float:
    """Seconds that an import takes in a process of its own."""
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, and those of their differences and ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for index in range(rounds + 1):
        names = list(STATEMENTS) if index % 2 else list(reversed(STATEMENTS))
        found = {name: import_seconds(STATEMENTS[name]) for name in names}
        if index:
            for name in names:
                seconds[name].append(found[name])
    base, ours = seconds.values()
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": {
            "with_over_without": statistics.median(b / a for a, b in zip(base, ours, strict=True)),
            "added_seconds": statistics.median(b - a for a, b in zip(base, ours, strict=True)),
        },
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run, print, and on request save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="Pairs of processes, after one that does not count.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    record = RunRecord.start(seed=0)
    results = measure(arguments.rounds)
    for name, value in results["seconds"].items():
        print(f"{STATEMENTS[name]:36} {value:.2f} s")
    print(f"added: {results['ratios']['added_seconds']:.2f} s, x {results['ratios']['with_over_without']:.2f}")
    if arguments.output:
        record.finish(results).save(arguments.output)
    return results


if __name__ == "__main__":
    main()
