"""Measure the accuracy of sampled networks against their distance from all trained ones; a record per family and seed.

    python experiments/paper_tradeoff.py --zoo ../zoos --images ../shared/data/images --work ../sane \
        --records runs/paper/tradeoff
    python experiments/paper_tradeoff.py ... --families usps --seeds 0          # one family and seed
    python experiments/paper_tradeoff.py ... --plot docs/results/tradeoff.png   # draw all existing records

Run it after `paper_tables.py`, whose autoencoders it loads from `--work`. That script uses one bandwidth per family,
chosen on validation images; this one measures every bandwidth, and compares it with noise on anchors at the same
distance and with the same selection. Nothing is fine-tuned, so a family of CNN-s takes two to three minutes per seed
on one CPU core.
"""

import argparse
import importlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_sane.analysis._pictures import save_picture
from hf_sane.networks._images import load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import check_may_replace
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.compare import compare_samplers
from hf_sane.zoo._facts import read_facts

tables = importlib.import_module("paper_tables")  # the script next to this one
page = importlib.import_module("results.paper")

BANDWIDTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
REFERENCES = ("anchors", "reconstructed_anchors")  # for every bandwidth
METHODS = {name: page.METHODS[name] for name in page.SELECTED_METHODS}
DRAWN: Mapping[str, tuple[str, dict[str, str]]] = {  # colour-blind safe colours of Okabe and Ito
    "sane_subsampled": ("sampled with SANE, subsampling", {"color": "#0072B2", "marker": "o"}),
    "sane_bootstrapped": (
        "sampled with SANE, bootstrapping",
        {"color": "#56B4E9", "marker": "s", "linestyle": "--"},
    ),
    "anchor_noise_selected": ("noise on anchors, same distance and selection", {"color": "#D55E00", "marker": "^"}),
}


def run_family(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Results of one family and seed, which are read from its record if it exists."""
    family, path = tables.FAMILIES[name], options.records / f"{name}_{seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    record = RunRecord.start(seed=seed, arguments={"family": name, "bandwidths": list(BANDWIDTHS)})
    zoo = tables.open_zoo(family.sampled, family.token_dim, options.zoos, options.work)
    sane = tables.open_sane(options.work / f"{name}_{seed}" / "model")
    data = load_zoo_images(read_facts(options.zoos)[family.sampled], path=options.images / family.images)
    judge = tables.judge_of(data, condition=family.condition)
    results: dict[str, Any] = {"references": {}, "bandwidths": {}}
    for bandwidth in BANDWIDTHS:
        compared = compare_samplers(
            zoo,
            sane,
            data,
            judge=judge,
            methods=[*REFERENCES, *METHODS],
            seed=seed,
            bandwidth=[bandwidth],
            num_candidates=options.num_candidates,
            num_samples=options.num_kept,
        )
        distances = compared.to_dict()
        rows = {
            key: {
                "test_accuracy": networks.evaluate(*data.split("test"))[1].tolist(),
                "nearest_training_distance": distances["nearest_training_distance"][key],
                "pairwise_distance": distances["pairwise_distance"][key],
            }
            for key, networks in compared.methods.items()
        }
        results["references"] = {key: rows[key] for key in REFERENCES}
        results["bandwidths"][str(bandwidth)] = {key: rows[key] for key in METHODS}
    counts = {part: len(rows) for part, rows in zoo.splits.items()}
    record.finish(results, data={"networks": {family.sampled: counts}, "split": "by training run"}).save(path)
    return results


def curve(runs: Sequence[Mapping[str, Any]], method: str) -> tuple[list[float], list[float], list[float]]:
    """Distance, mean accuracy and its standard deviation over seeds, at every bandwidth."""
    distances, means, spreads = [], [], []
    for bandwidth in runs[0]["bandwidths"]:
        rows = [run["bandwidths"][bandwidth][method] for run in runs]
        accuracies = [statistics.mean(row["test_accuracy"]) for row in rows]
        distances.append(statistics.mean(row["nearest_training_distance"] for row in rows))
        means.append(statistics.mean(accuracies))
        spreads.append(statistics.stdev(accuracies) if len(rows) > 1 else 0.0)
    return distances, means, spreads


def draw(families: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel per family: accuracy before fine-tuning against the distance to the nearest training network."""
    figure = Figure(figsize=(3.1 * len(families), 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, runs) in zip(figure.subplots(1, len(families), squeeze=False)[0], families.items(), strict=True):
        anchors = statistics.mean(statistics.mean(run["references"]["anchors"]["test_accuracy"]) for run in runs)
        axes.axhline(anchors, color="black", linestyle=":", label="trained networks (anchors)")
        for method, (title, style) in DRAWN.items():
            distances, means, spreads = curve(runs, method)
            axes.errorbar(distances, means, yerr=spreads, markersize=4, capsize=2, label=title, **style)
        axes.set(title=page.FAMILIES[name])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy, no fine-tuning")
    figure.supxlabel(
        "distance to the nearest training network (standard deviations of the weights)", fontsize="medium"
    )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    save_picture(figure, path)


def load_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by family and seed, for families with records."""
    found = {name: [record["results"] for record in page.load_runs(folder, name)] for name in tables.FAMILIES}
    return {name: runs for name, runs in found.items() if runs}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and measure each family and seed."""
    parser = tables.parser_of_places(__doc__)
    parser.add_argument(
        "--families", nargs="+", choices=sorted(tables.FAMILIES), default=list(tables.FAMILIES), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-candidates", type=int, default=100)
    parser.add_argument("--num-samples", dest="num_kept", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="PNG file for all existing records")
    options = parser.parse_args(argv)
    tune_allocator()
    if options.plot is not None:
        check_may_replace(options.plot, PICTURE)
    for seed in options.seeds:
        for name in options.families:
            run_family(name, seed, options)
            print(f"{name} seed {seed}: {options.records / f'{name}_{seed}.json'}", flush=True)
    if options.plot is not None:
        draw(load_runs(options.records), options.plot)


if __name__ == "__main__":
    run_script(main, name="paper_tradeoff.py")
