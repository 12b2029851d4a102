"""docs/results/performance.md: every claim about speed, its target, and what was measured on which processor.

Records in runs/benchmarks/ are those of one kind of processor; each further kind has a folder of its own beside them,
written by `make benchmarks BENCHMARKS_OUT=runs/benchmarks/avx2`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/performance.md"


@dataclass(frozen=True)
class Claim:
    """A figure of docs/results/performance.md and its target.

    Attributes:
        work: What was measured.
        record: Name of the file with the record.
        places: Keys that lead to the number in the record's results; several places give the worst of them.
        target: Bound, which has to hold on every kind of processor; `None` for seconds, which depend on the machine.
        unit: `"x"` for a ratio, `"%"` for a share, `"s"` for seconds.
        at_most: Whether smaller is better.
        left_out: Name under which the record says why it has no such number.
    """

    work: str
    record: str
    places: tuple[tuple[str, ...], ...]
    target: float | None
    unit: str
    at_most: bool = False
    left_out: str | None = None

    def row(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        """Table row: benchmark, target, and what was measured on each kind of processor."""
        if self.target is None:
            bound = "none"
        else:
            bound = f"{'at most' if self.at_most else 'at least'} {self._shown(self.target)}"
        return [self.work, bound, *(self.measured(folder, kind) for kind in kinds)]

    def measured(self, folder: Path, kind: str) -> str:
        """The number of a kind of processor and whether it reaches the target, with a link to the record."""
        path = folder / kind / self.record
        if not path.exists():
            return "not measured"
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        link = f"(../../runs/benchmarks/{path.relative_to(folder).as_posix()})"
        if self.left_out in results.get("left_out", {}):
            return f"[left out]{link}"
        try:
            found = [reduce(lambda part, key: part[key], place, results) for place in self.places]
        except KeyError:  # a record that is older than the claim
            return "not measured"
        value = max(found) if self.at_most else min(found)
        missed = self.target is not None and (value > self.target if self.at_most else value < self.target)
        return f"[{self._shown(value)}]{link}" + (" **(not reached)**" if missed else "")

    def _shown(self, value: float) -> str:
        return f"{value:.0%}" if self.unit == "%" else f"{value:.2f} {self.unit}"


TOKENIZATION = ("rowwise, none", "rowwise, standardize", "dense, none", "dense, standardize")
CLAIMS = (
    Claim(
        "encode a ResNet-18 (both layouts, plain and standardised; worst), share of `torch.clone`",
        "tokenization.json",
        tuple((name, "encode_share_of_clone") for name in TOKENIZATION),
        0.15,
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
        left_out="ours_bf16",
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
        2.0,
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
        "the same for a user's own module with the layers of CNN-s, against a plain loop over it",
        "zoo_training.json",
        (("ratios", "own_stacked_over_own_plain"),),
        None,
        "x",
    ),
    Claim(
        "the same, against the built-in CNN-s",
        "zoo_training.json",
        (("ratios", "own_stacked_over_stacked"),),
        None,
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
    Claim(
        "aligning 1,000 CNN-s at once: rate against one after the other",
        "alignment.json",
        (("ratios", "match_weights_loop_over_match_many"),),
        2.0,
        "x",
    ),
    Claim(
        "`import hf_sane` after `import torch, transformers`: seconds added (wall clock and processor; worst)",
        "import_time.json",
        (("seconds", "added"), ("processor_seconds", "added")),
        0.5,
        "s",
        at_most=True,
    ),
    Claim("aligning 1,000 CNN-s", "alignment.json", (("seconds_for_all", "match_many"),), None, "s", at_most=True),
    Claim("aligning a ResNet-18", "alignment.json", (("resnet_18", "match_seconds"),), None, "s", at_most=True),
)


def performance_block(folder: Path) -> str:
    """The table of docs/results/performance.md, which processors it is from, and what limits the pre-training step."""
    kinds = ["", *sorted(path.name for path in folder.iterdir() if path.is_dir())]
    steps = [json.loads((folder / kind / "pretraining_step.json").read_text(encoding="utf-8")) for kind in kinds]
    names = [step["results"]["cpu_capability"] for step in steps]
    table = markdown_table(
        ["benchmark", "target", *names], [claim.row(folder, kinds) for claim in CLAIMS], numbers=True
    )
    processors = "; ".join(
        f"{name}: {step['hardware']['cpu']}, {step['hardware']['usable_cores']} cores, bf16 products at "
        f"{step['results']['ratios']['bf16_product_over_fp32_product']:.2f} x the rate of fp32 ones"
        for name, step in zip(names, steps, strict=True)
    )
    shares = steps[0]["results"]["time_shares_of_ours_fp32"]
    return (
        f"{table}\n\nProcessors, by their vector instructions: {processors}. bf16 is faster only if the processor has "
        f"matrix units for it; otherwise the benchmark omits it. On {names[0]}, matrix products take "
        f"{shares['products']:.0%} of the fp32 step, attention over the short windows {shares['attention']:.0%}, GELU "
        f"{shares['gelu']:.0%}. The reference rate is that of the fastest of its matrix products, run alone."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"benchmarks": performance_block(root / "runs" / "benchmarks")}
