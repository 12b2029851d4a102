"""Spectra of a zoo: alpha during the training of one run, and summaries against test accuracy over all runs.

    python experiments/zoo_spectra.py --zoo my_zoo --output my_zoo_spectra
    python experiments/zoo_spectra.py --zoo my_zoo --run-id 00017 --min-values 20 --output my_zoo_spectra

The last epoch of every run is used, in all splits: nothing is fitted, so nothing is held out. Writes `training.png`,
`correlation.png` and the run record `run.json`. It takes a tenth of a second per network on one CPU core.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script_options import ScriptParser
from zoo_populations import plot_correlations, plot_training, spectra_against_property, spectra_through_training

from hf_sane.analysis._spectral import SpectrumSettings
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._outputs import check_may_replace, output_folder
from hf_sane.records._run_record import RECORD, RUN_RECORD, RunRecord
from hf_sane.zoo._dataset import Zoo, ZooSplit


def best_run(splits: dict[str, ZooSplit]) -> str:
    """The run with the highest validation accuracy at its last epoch."""
    finals = {name: split.final_epochs() for name, split in splits.items()}
    scored = [
        (score, run_id)
        for split in finals.values()
        for score, run_id in zip(split.column("validation_accuracy"), split.run_ids, strict=True)
    ]
    return max(scored)[1]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the options, analyse the zoo, draw and report."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--zoo", required=True, help="zoo folder or Hub repo id")
    parser.add_argument("--zoo-config", dest="config", help="name of the zoo, if there are several")
    parser.add_argument("--run-id", help="run to show the training of; by default the best one on validation images")
    parser.add_argument("--conv", default="flatten", choices=["flatten", "slices", "pooled"])
    parser.add_argument("--min-values", type=int, default=50, help="least number of eigenvalues of a layer for alpha")
    parser.add_argument(
        "--min-tail", type=int, default=2, help="least number of eigenvalues of a tail; few suffice for a trend"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for pictures and run record")
    parser.add_argument("--record", type=Path, help="another place for the run record")
    arguments = parser.parse_args(argv)
    tune_allocator()
    limits = {"conv": arguments.conv, "min_values": arguments.min_values, "min_tail": arguments.min_tail}
    record = RunRecord.start(seed=0, arguments=limits)
    if arguments.record is not None:
        check_may_replace(arguments.record, RUN_RECORD)
    with output_folder(arguments.output, "analysis of a zoo") as partial:
        zoo = Zoo.load(arguments.zoo, arguments.config)
        settings = SpectrumSettings(**limits, num_bootstrap=0)
        run_id = arguments.run_id or best_run(zoo.splits)
        holder = next((split for split in zoo.splits.values() if run_id in split.run_ids), zoo.splits["train"])
        curves = spectra_through_training(holder, run_id, settings)
        found = spectra_against_property([split.final_epochs() for split in zoo.splits.values()], settings)
        plot_training(curves, partial / "training.png")
        plot_correlations(found, partial / "correlation.png")
        for name, row in found["correlation"].items():
            print(f"{name:28} {'  '.join(f'{key} {value}' for key, value in row.items())}")
        results = {"through_training": curves, "against_test_accuracy": found}
        settings_of_zoo = zoo.facts.arguments
        record.data |= {
            "zoo": f"{found['networks']} runs of the preset `{settings_of_zoo['architecture']}` on {zoo.facts.name}",
            "zoo_arguments": dict(settings_of_zoo),
        }
        record.finish(results).save(arguments.record or partial / RECORD)
    print(f"wrote {arguments.output}{'' if arguments.record is None else f' and {arguments.record}'}")
    return results


if __name__ == "__main__":
    run_script(main, name="zoo_spectra.py")
