"""Rate against function: accuracy and agreement of networks encoded with few latents and bits; one record per zoo.

    python experiments/paper_rates.py --zoo ../zoos --images ../shared/data/images --work ../rates \
        --records runs/paper/rates --plot docs/results/rates.png
    python experiments/paper_rates.py ... --families usps_seed --epochs 100     # one zoo, longer training
    python experiments/paper_rates.py ... --behavior-weight 1      # SANEs that are also trained to keep predictions

Compares the linear code and SANE (1 to 1/16 latents per weight, with 8 and 4 bits) with rounding of weights (1 to 8
bits). A SANE is trained for every rate. The grouping of the linear code is selected on validation networks. With 30
epochs, a zoo of 100 CNN-s takes about half an hour on one CPU core.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoencoders import train_sane
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paper_zoos import GREY
from rates import measure_rates, one_network, rounded_weights
from results import rates as page
from script_options import ScriptParser

from hf_sane.analysis._pictures import save_picture
from hf_sane.networks._images import load_zoo_images
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import check_may_replace
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling import NetworkCodec
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo

RATES = {"1": 1.0, "1/2": 0.5, "1/4": 0.25, "1/8": 0.125, "1/16": 0.0625}  # latents per weight
LATENT_BITS = (8, 4)
WEIGHT_BITS = (1, 2, 3, 4, 6, 8)
GROUPINGS = ("kind", "layer", "position")
GREY_LINE = "#969696"
STYLES: dict[str, dict[str, Any]] = {
    "sane": {"color": "#3182bd", "marker": "o"},
    "linear": {"color": "#807dba", "marker": "s"},
    "rounded": {"color": "#636363", "marker": "x"},
}


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Results of all codes for one zoo, which are read from its record if it exists."""
    variant = f"{name}{page.BEHAVIOR if options.behavior_weight else ''}"
    path = options.records / f"{variant}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    settings = {key: getattr(options, key) for key in ("epochs", "hidden_size", "behavior_weight")}
    record = RunRecord.start(seed=options.seed, arguments={"zoo": name, **settings})
    zoo = Zoo.load(options.zoos, name)
    images = options.images / GREY[name.partition("_")[0]]
    data = load_zoo_images(zoo.facts, path=images)
    layout, config = zoo.splits["train"].layout_and_config()
    tokens = {part: aligned_tokens(split) for part, split in zoo.splits.items()}
    tokens |= {part: aligned_tokens(zoo.splits[part].final_epochs()) for part in ("validation", "test")}

    def measure(codec: NetworkCodec, part: str, bits: Sequence[int]) -> list[dict[str, Any]]:
        found = measure_rates(codec, tokens["train"], tokens[part], *data.split(part), bits=bits)
        return [point.to_dict() for point in found]

    training: dict[str, Any] = {"batch_size": 32, "behavior_weight": options.behavior_weight}
    training |= {"behavior_data": str(images)} if options.behavior_weight else {}
    results: dict[str, Any] = {"codes": {}, "rates": {}}
    for rate, share in RATES.items():
        latent_dim = max(1, round(share * layout.num_weights / layout.num_tokens))
        folder = options.work / f"{variant}_{latent_dim}_{options.seed}"
        sane = train_sane(zoo, zoo.splits["train"].layout(0), latent_dim, folder, options, **training)
        codec = NetworkCodec(sane.model, sane.extractor, layout, config)
        linear = {grouping: codec.linear(tokens["train"], grouping) for grouping in GROUPINGS}
        scores = {
            grouping: sum(measure(code, "validation", [LATENT_BITS[0]])[0]["accuracy"])
            for grouping, code in linear.items()
        }
        chosen = max(scores, key=lambda grouping: scores[grouping])
        results["rates"][rate] = {"latent_dim": latent_dim, "grouping": chosen}
        for key, code in {"sane": codec, "linear": linear[chosen]}.items():
            results["codes"].setdefault(key, []).extend(measure(code, "test", LATENT_BITS))
        kept = {key: found[-2]["accuracy"] for key, found in results["codes"].items()}
        print(name, rate, chosen, {key: f"{sum(part) / len(part):.3f}" for key, part in kept.items()}, flush=True)
    results["codes"]["rounded"] = measure(rounded_weights(codec), "test", WEIGHT_BITS)
    constant = one_network(codec, tokens["train"], tokens["test"], data.split("validation"), data.split("test"))
    results["one_network"] = constant.to_dict()
    original = codec.networks(tokens["test"]).evaluate(*data.split("test"))[1]
    results |= {"original_accuracy": original.tolist(), "chance": 1 / data.num_classes}
    data_facts = {"images": data.describe(), "networks": {part: len(found) for part, found in tokens.items()}}
    record.finish(results, data=data_facts).save(path)
    return results


def draw(families: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Two panels per zoo: accuracy kept and agreement against bits per weight, one curve per code."""
    figure = Figure(figsize=(3.4 * len(families), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(families), squeeze=False, sharex=True, sharey="row")
    for column, (name, results) in zip(panels.T, families.items(), strict=True):
        for axes, measured in zip(column, page.MEASURED, strict=True):
            for code, title in page.CODES.items():
                points = page.curve(results, code, measured)
                found = sorted(points)
                axes.plot(*zip(*found, strict=True), linestyle="", markersize=4, label=title, **STYLES[code])
                steps = page.best_so_far(found)
                axes.step(*zip(*steps, strict=True), where="post", color=STYLES[code]["color"], linewidth=1.2)
            if (one := results.get("one_network")) is not None:
                rows = range(len(results["original_accuracy"]))
                level = page.value(one, results, measured, rows)
                axes.axhline(
                    level, color=GREY_LINE, linestyle=":", linewidth=1.2, label="one training network for all"
                )
            axes.set_xscale("log", base=2)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set_title(page.title(name).replace("; ", "\n"))
    for axes, title in zip(panels[:, 0], page.MEASURED.values(), strict=True):
        axes.set_ylabel(title)
    figure.supxlabel("bits per weight", fontsize="medium")
    named = {
        title: line for axes in figure.axes for line, title in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside upper center", ncols=len(named), frameon=False)
    save_picture(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and measure each zoo."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--zoo", dest="zoos", type=Path, required=True, help="folder of paper_zoos.py")
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder of the run records")
    parser.add_argument("--families", nargs="*", default=[f"{data}_seed" for data in GREY], metavar="ZOO")
    parser.add_argument("--epochs", type=int, default=30, help="windows per training network")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--behavior-weight", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="PNG file for all existing records")
    options = parser.parse_args(argv)
    tune_allocator()
    if options.plot is not None:
        check_may_replace(options.plot, PICTURE)
    for name in options.families:
        run_family(name, options)
    if options.plot is not None:
        draw({name: record["results"] for name, record in page.load_records(options.records).items()}, options.plot)


if __name__ == "__main__":
    run_script(main, name="paper_rates.py")
