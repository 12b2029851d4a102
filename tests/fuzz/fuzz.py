"""`make fuzz`: many mutations of real files for every reader, and a record of what became of them.

Usage: `python tests/fuzz/fuzz.py --inputs 200000 --record runs/robustness/fuzz.json`
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
from fuzz_mutations import mutations
from fuzz_readers import READERS, Trial
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from hf_sane.records._run_record import RunRecord

# Hypothesis keeps what it tried, to shrink it: batches of this size bound its memory.
BATCH = 500


def main(argv: Sequence[str] | None = None) -> None:
    """Mutate, read, count, and write the record; an exception that is not the library's own ends the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="Inputs in total; slow readers get fewer.")
    parser.add_argument(
        "--record", type=Path, default=Path("runs/robustness/fuzz.json"), help="Where the record goes."
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    parser.add_argument("--readers", nargs="*", default=list(READERS), help="Which readers; all by default.")
    options = parser.parse_args(argv)
    record = RunRecord.start(seed=options.seed, arguments={"inputs": options.inputs, "readers": options.readers})
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs each file that it cannot read
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        trials = {name: Trial(name, Path(folder) / name) for name in options.readers}
        weights = {name: 0.2 if trial.reader.is_slow else 1.0 for name, trial in trials.items()}
        for name, trial in trials.items():
            started = time.perf_counter()
            share = math.ceil(options.inputs * weights[name] / sum(weights.values()))
            number = 0
            while trial.accepted + trial.refused < share:
                run_batch(trial, options.seed * 10_000 + number)
                number += 1
            results[name] = {**trial.counts(), "seconds": round(time.perf_counter() - started, 1)}
            sys.stdout.write(f"{name}: {results[name]}\n")
            sys.stdout.flush()
    totals = {key: sum(result[key] for result in results.values()) for key in ("inputs", "accepted", "refused")}
    record.finish({"readers": results, "total": {**totals, "other_exceptions": 0}}).save(options.record)


def run_batch(trial: Trial, number: int) -> None:
    """One batch of inputs; Hypothesis raises what the reader must not, with the input that led to it."""

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.one_of(st.binary(max_size=64), *(mutations(content, trial.reader.file) for content in trial.reader.seeds))
    )
    def run(content: bytes) -> None:
        trial.run(content)

    run()


if __name__ == "__main__":
    main()
