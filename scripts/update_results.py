"""Write the results of run records into README.md and docs/performance.md: no figure there is typed by hand.

python scripts/update_results.py            # after `make demo` and the benchmarks; seconds
python scripts/update_results.py --check    # exit 1 if a page differs from its record
"""

import argparse
import json
import re
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from hf_sane.demo.report import readme_block
from hf_sane.hub.tables import markdown_table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Claim:
    """A figure of docs/performance.md and what it has to reach.

    Attributes:
        work: What was measured.
        record: File in runs/benchmarks.
        places: Keys that lead to the number in the record's results; several places give the worst of them.
        wanted: Bound.
        at_most: Whether smaller is better.
        unit: `"x"` for a ratio, `"%"` for a share, `"s"` for seconds.
    """

    work: str
    record: str
    places: tuple[tuple[str, ...], ...]
    wanted: float
    unit: str
    at_most: bool = False

    def row(self, folder: Path) -> list[str]:
        """Table row: work, wanted, measured, record."""
        results = json.loads((folder / self.record).read_text(encoding="utf-8"))["results"]
        found = [reduce(lambda part, key: part[key], place, results) for place in self.places]
        value = max(found) if self.at_most else min(found)
        reached = value <= self.wanted if self.at_most else value >= self.wanted
        bound = f"{'at most' if self.at_most else 'at least'} {self._shown(self.wanted)}"
        measured = self._shown(value) + ("" if reached else " **(not reached)**")
        return [self.work, bound, measured, f"[{self.record}](../runs/benchmarks/{self.record})"]

    def _shown(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "%" else f"{value:.2f} {self.unit}"


TOKENIZATION = ("rowwise, none", "rowwise, standardize", "dense, none", "dense, standardize")
CLAIMS = (
    Claim(
        "encode a ResNet-18 (both layouts, plain and standardised; worst), share of `torch.clone`",
        "tokenization.json",
        tuple((name, "encode_share_of_clone") for name in TOKENIZATION),
        0.35,
        "%",
    ),
    Claim(
        "decode a ResNet-18 (worst of the same four), share of `torch.clone`",
        "tokenization.json",
        tuple((name, "decode_share_of_clone") for name in TOKENIZATION),
        0.35,
        "%",
    ),
    Claim(
        "pre-training step, d_model 512, 6+6 layers, fp32, share of the measured product rate",
        "pretraining_step.json",
        (("ratios", "ours_fp32_share_of_products"),),
        0.8,
        "%",
    ),
    Claim(
        "the same in bf16, tokens/s against a plain fp32 transcription of the paper's loop",
        "pretraining_step.json",
        (("ratios", "ours_bf16_over_plain"),),
        2.0,
        "x",
    ),
    Claim(
        "the same two, loss after six steps: largest difference from that loop's",
        "pretraining_step.json",
        (("ratios", "largest_loss_difference"),),
        0.01,
        "%",
        at_most=True,
    ),
    Claim(
        "density sampling, 39k tokens x 128, 50 from 100 anchors (modes joint and token; worst), against drawing the "
        "normals alone",
        "kde_sampling.json",
        (("ratios", "joint_over_normals_alone"), ("ratios", "token_over_normals_alone")),
        1.3,
        "x",
        at_most=True,
    ),
    Claim(
        "window loader, two views with noise and permutation: batches per training step of the demo's SANE",
        "zoo_loader.json",
        (("ratios", "step_over_batch"),),
        5.0,
        "x",
    ),
    Claim(
        "zoo training, 128 CNN-s: (images x networks) / s against a plain loop over networks",
        "zoo_training.json",
        (("ratios", "stacked_over_plain"),),
        2.0,
        "x",
    ),
    Claim(
        "spectra of a released CIFAR ResNet (worst of two): rate against `weightwatcher`, which has no bootstrap",
        "spectra.json",
        (("ratios", "weightwatcher_over_ours"),),
        1.0,
        "x",
    ),
    Claim(
        "the same with 100 bootstrap resamples of every alpha",
        "spectra.json",
        (("ratios", "weightwatcher_over_ours_bootstrapped"),),
        1.0,
        "x",
    ),
    Claim(
        "power-law fit of 1,024 values: rate against `powerlaw`",
        "spectra.json",
        (("ratios", "powerlaw_over_ours"),),
        1.0,
        "x",
    ),
    Claim(
        "alpha: largest difference from `powerlaw` and `weightwatcher` where the tail is the same",
        "spectra.json",
        (("ratios", "largest_alpha_difference_same_tail"),),
        0.05,
        "in alpha",
        at_most=True,
    ),
    Claim("aligning 1,000 CNN-s", "alignment.json", (("seconds_for_all", "match_many"),), 15.0, "s", at_most=True),
    Claim("aligning a ResNet-18", "alignment.json", (("resnet_18", "match_seconds"),), 10.0, "s", at_most=True),
)


def performance_block(folder: Path) -> str:
    """The table of docs/performance.md, and what limits the pre-training step."""
    table = markdown_table(
        ["work", "wanted", "measured", "record"], [claim.row(folder) for claim in CLAIMS], numbers=True
    )
    step = json.loads((folder / "pretraining_step.json").read_text(encoding="utf-8"))
    results, ratios = step["results"], step["results"]["ratios"]
    shares = results["time_shares_of_ours_fp32"]
    return f"""{table}

The pre-training step was measured on a processor with {results["cpu_capability"]}, where a large bf16 product runs at
{ratios["bf16_product_over_fp32_product"]:.2f} x the rate of an fp32 one: bf16 can gain only where the processor has matrix units. Matrix products
take {shares["products"]:.0%} of the fp32 step, attention over the short windows {shares["attention"]:.0%}, GELU {shares["gelu"]:.0%}; the rate it is compared with
is that of the fastest of its products, run alone."""


PROPERTY_TITLES = {"test_accuracy": "test accuracy", "epoch": "epoch", "generalization_gap": "generalisation gap"}
SUMMARY_TITLES = {
    "mean_alpha": "mean alpha",
    "mean_alpha_weighted": "mean weighted alpha",
    "mean_log_frobenius_norm": "mean log Frobenius norm",
    "mean_log_spectral_norm": "mean log spectral norm",
    "mean_stable_rank": "mean stable rank",
    "mean_weight_correlation": "mean weight correlation",
}


def zoo_spectra_block(folder: Path) -> str:
    """The part of docs/analysis.md about one zoo: correlations, and alpha at both ends of one run."""
    record = json.loads((folder / "zoo_spectra.json").read_text(encoding="utf-8"))
    found, curves = record["results"]["against_test_accuracy"], record["results"]["through_training"]
    rows = [
        [title, f"{found['correlation'][name]['pearson']:.2f}", f"{found['correlation'][name]['kendall_tau']:.2f}"]
        for name, title in SUMMARY_TITLES.items()
    ]
    table = markdown_table([f"{found['networks']} networks, against test accuracy", "Pearson", "Kendall tau"], rows)
    changes = "; ".join(f"`{name}` {alpha[0]:.1f} to {alpha[-1]:.1f}" for name, alpha in curves["alpha"].items())
    return f"""{table}

{record["data"]["zoo"]}; test accuracy {min(found["test_accuracy"]):.2f} to {max(found["test_accuracy"]):.2f}. Correlations over
one small zoo, nothing more. Alpha of the run with the best validation accuracy from epoch {curves["epoch"][0]} to {curves["epoch"][-1]}: {changes}
(record: [zoo_spectra.json](../runs/analysis/zoo_spectra.json))."""


def spectral_probe_block(folder: Path) -> str:
    """R2 on test networks of spectra beside the other features."""
    record = json.loads((folder / "spectral_probe.json").read_text(encoding="utf-8"))
    poolings = " or ".join(f"`{name}`" for name in record["arguments"]["poolings"])
    titles = {"weights": "W", "layer_statistics": "s(W)", "spectral_features": "spectra"}
    titles["sane_best"] = f"SANE, {poolings}"
    probe = record["results"]["probe"]
    rows = [[PROPERTY_TITLES[name], *(f"{row[kind]['r2']:.3f}" for kind in titles)] for name, row in probe.items()]
    table = markdown_table(["R2 on test networks", *titles.values()], rows)
    return f"{table}\n\nRecord: [spectral_probe.json](../runs/analysis/spectral_probe.json)."


def barrier_block(folder: Path) -> str:
    """The table of docs/symmetries.md: one row per data, kind of network and width."""
    rows = []
    for name in ("barrier.json", "barrier_cnn.json"):
        record = json.loads((folder / name).read_text(encoding="utf-8"))
        for data, kinds in record["results"].items():
            for kind, widths in kinds.items():
                for width, found in widths.items():
                    barrier, accuracy = found["mean"]["test_barrier"], found["mean"]["test_middle_accuracy"]
                    left = found["remaining_share"]["test"]
                    shown = (
                        "no barrier" if left is None else f"{left:.0%}" + (" **(not reached)**" if left > 0.5 else "")
                    )
                    numbers = [f"{barrier[when]:.3f}" for when in ("before", "after")]
                    middle = [f"{accuracy[when]:.1%}" for when in ("before", "after")]
                    rows.append([data, kind, width, *numbers, shown, *middle, f"[{name}](../runs/benchmarks/{name})"])
    header = ["data", "network", "width", "barrier", "matched", "left", "accuracy half way", "matched", "record"]
    return markdown_table(header, rows)


def replaced(page: Path, name: str, block: str, *, text: str | None = None) -> str:
    """The text of `page`, or a later version of it, with what stands between its `name` markers replaced."""
    pattern = re.compile(rf"(<!-- {name}:start -->).*?(<!-- {name}:end -->)", flags=re.DOTALL)
    text = page.read_text(encoding="utf-8") if text is None else text
    if not pattern.search(text):
        raise ValueError(f"{page} lacks the markers <!-- {name}:start --> and <!-- {name}:end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def pages() -> dict[Path, str]:
    """Every page with results, as its records want it."""
    demo: dict[str, Any] = json.loads((ROOT / "runs/demo/report.json").read_text(encoding="utf-8"))
    performance, analysis, symmetries = (ROOT / "docs" / f"{name}.md" for name in ("performance", "analysis", "symmetries"))
    records = ROOT / "runs" / "analysis"
    with_zoo = replaced(analysis, "zoo_spectra", zoo_spectra_block(records))
    with_spectra = replaced(analysis, "spectral_probe", spectral_probe_block(records), text=with_zoo)
    return {
        ROOT / "README.md": replaced(ROOT / "README.md", "demo", readme_block(demo)),
        performance: replaced(performance, "benchmarks", performance_block(ROOT / "runs" / "benchmarks")),
        analysis: with_spectra,
        symmetries: replaced(symmetries, "barriers", barrier_block(ROOT / "runs" / "benchmarks")),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with `--check` only compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    arguments = parser.parse_args(argv)
    outdated = {page: text for page, text in pages().items() if page.read_text(encoding="utf-8") != text}
    for page, text in outdated.items():
        print(f"{'out of date' if arguments.check else 'written'}: {page.relative_to(ROOT)}")
        if not arguments.check:
            page.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(outdated))


if __name__ == "__main__":
    raise SystemExit(main())
