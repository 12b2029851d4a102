"""docs/performance.md: every claim about speed, what it has to reach and what was measured."""

import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from hf_sane.hub.tables import markdown_table

PAGE = "docs/performance.md"


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


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"benchmarks": performance_block(root / "runs" / "benchmarks")}
