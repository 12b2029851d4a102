"""docs/results/performance.md: every claim about speed, its target, and results by processor.

Records in runs/benchmarks/ are from one kind of processor; each other kind has a subfolder, written by
`make benchmarks BENCHMARKS_OUT=runs/benchmarks/avx2`.
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
        work: Description of the measurement.
        record: File name of the record.
        places: Keys of the number in the record's results; of several numbers, the worst is shown.
        target: Bound for every kind of processor; `None` for seconds, which depend on the machine.
        unit: `"x"` for a ratio, `"%"` for a share, `"s"` for seconds, `"GB"` for bytes.
        at_most: Whether smaller is better.
        left_out: Field of the record with the reason for a missing number.
    """

    work: str
    record: str
    places: tuple[tuple[str, ...], ...]
    target: float | None
    unit: str
    at_most: bool = False
    left_out: str | None = None

    def row(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        """Table row: benchmark, target, and results for each kind of processor."""
        if self.target is None:
            bound = "none"
        else:
            bound = f"{'at most' if self.at_most else 'at least'} {self._shown(self.target)}"
        return [self.work, bound, *(self.measured(folder, kind) for kind in kinds)]

    def measured(self, folder: Path, kind: str) -> str:
        """The number for a kind of processor and whether it reaches the target, with a link to the record."""
        path = folder / kind / self.record
        if not path.exists():
            return "not measured"
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        link = f"(../../runs/benchmarks/{path.relative_to(folder).as_posix()})"
        if self.left_out in results.get("left_out", {}):
            return f"[left out]{link}"
        try:
            found = [reduce(lambda part, key: part[key], place, results) for place in self.places]
        except KeyError:  # added to the benchmark later
            return "not measured"
        value = max(found) if self.at_most else min(found)
        missed = self.target is not None and (value > self.target if self.at_most else value < self.target)
        return f"[{self._shown(value)}]{link}" + (" **(not reached)**" if missed else "")

    def _shown(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.0%}"
        return f"{value / 1e9 if self.unit == 'GB' else value:.2f} {self.unit}"


TOKENIZATION = ("rowwise, none", "rowwise, standardize", "dense, none", "dense, standardize")
CLAIMS = (
    Claim(
        "encoding a ResNet-18: share of the speed of `torch.clone` (worst of both layouts, standardised or not)",
        "tokenization.json",
        tuple((name, "encode_share_of_clone") for name in TOKENIZATION),
        0.15,
        "%",
    ),
    Claim(
        "decoding a ResNet-18: share of the speed of `torch.clone` (worst of both layouts, standardised or not)",
        "tokenization.json",
        tuple((name, "decode_share_of_clone") for name in TOKENIZATION),
        0.35,
        "%",
    ),
    Claim(
        "pre-training step in fp32 (width 512, 6 + 6 layers): share of the measured rate of matrix products",
        "pretraining_step.json",
        (("ratios", "ours_fp32_share_of_products"),),
        0.8,
        "%",
    ),
    Claim(
        "pre-training step in bf16: tokens per second, relative to a plain fp32 version of the paper's loop",
        "pretraining_step.json",
        (("ratios", "ours_bf16_over_plain"),),
        2.0,
        "x",
        left_out="ours_bf16",
    ),
    Claim(
        "loss after six pre-training steps in fp32 and bf16: largest difference from the plain loop",
        "pretraining_step.json",
        (("ratios", "largest_loss_difference"),),
        0.01,
        "%",
        at_most=True,
    ),
    Claim(
        "density sampling of 50 networks from 100 anchors, 39,000 latents of size 128 each (worse of modes joint and "
        "token): time relative to drawing the normal noise alone",
        "kde_sampling.json",
        (("ratios", "joint_over_normals_alone"), ("ratios", "token_over_normals_alone")),
        2.0,
        "x",
        at_most=True,
    ),
    Claim(
        "window loader (two views, noise, permutation): batches loaded per training step of the demo's SANE",
        "zoo_loader.json",
        (("ratios", "step_over_batch"),),
        5.0,
        "x",
    ),
    Claim(
        "training 128 CNN-s at once: rate relative to a plain loop over networks",
        "zoo_training.json",
        (("ratios", "stacked_over_plain"),),
        2.0,
        "x",
    ),
    Claim(
        "training a user's own module with the layers of CNN-s, one thread: rate relative to a plain loop",
        "zoo_training_modules.json",
        (("ratios", "own_stacked_over_own_plain"),),
        None,
        "x",
    ),
    Claim(
        "training a user's own module with the layers of CNN-s, one thread: rate relative to the built-in CNN-s",
        "zoo_training_modules.json",
        (("ratios", "own_stacked_over_stacked"),),
        None,
        "x",
    ),
    Claim(
        "spectra of released CIFAR ResNets (worse of two): rate relative to `weightwatcher`",
        "spectra.json",
        (("ratios", "weightwatcher_over_ours"),),
        1.0,
        "x",
    ),
    Claim(
        "spectra with 100 bootstrap resamples of every alpha: rate relative to `weightwatcher`, which has none",
        "spectra.json",
        (("ratios", "weightwatcher_over_ours_bootstrapped"),),
        1.0,
        "x",
    ),
    Claim(
        "power-law fit of 1,024 values: rate relative to `powerlaw`",
        "spectra.json",
        (("ratios", "powerlaw_over_ours"),),
        1.0,
        "x",
    ),
    Claim(
        "alpha: largest difference from `powerlaw` and `weightwatcher` if the tail is the same",
        "spectra.json",
        (("ratios", "largest_alpha_difference_same_tail"),),
        0.05,
        "in alpha",
        at_most=True,
    ),
    Claim(
        "aligning 1,000 CNN-s at once: rate relative to one after the other",
        "alignment.json",
        (("ratios", "match_weights_loop_over_match_many"),),
        2.0,
        "x",
    ),
    Claim(
        "`import hf_sane` after `import torch, transformers`: added time (worse of wall clock and processor)",
        "import_time.json",
        (("seconds", "added"), ("processor_seconds", "added")),
        0.5,
        "s",
        at_most=True,
    ),
    Claim(
        "importing 10,000 files of 10,000 weights from another library: time",
        "zoo_import.json",
        (("seconds",),),
        180,
        "s",
        at_most=True,
    ),
    Claim(
        "importing these files: peak resident memory of the process, including loaded libraries",
        "zoo_import.json",
        (("peak_resident_bytes",),),
        1e9,
        "GB",
        at_most=True,
    ),
    Claim(
        "importing these files: peak memory, without libraries and pages of mapped files",
        "zoo_import.json",
        (("peak_anonymous_bytes",),),
        1e9,
        "GB",
        at_most=True,
    ),
    Claim(
        "importing, embedding and aligning 1,000 such networks (worst of the three): rate of this library's networks "
        "relative to theirs, not counting the loading of PyTorch's exporter",
        "zoo_import.json",
        tuple(("own_over_foreign", name) for name in ("import", "embed", "align")),
        2.0,
        "x",
        at_most=True,
    ),
    Claim(
        "first embedding in the tutorial, installed from the wheel: time from the start of Python",
        "tutorials.json",
        (("seconds_to", "first embedding"),),
        300,
        "s",
        at_most=True,
    ),
    Claim(
        "first sampled network of a user's own module in the tutorial: time from the start of Python",
        "tutorials.json",
        (("seconds_to", "first sampled network"),),
        1200,
        "s",
        at_most=True,
    ),
    Claim(
        "explorer: time from the request to the drawn map of 10,000 networks",
        "explore.json",
        (("load_page_seconds",),),
        None,
        "s",
        at_most=True,
    ),
    Claim("explorer: time to draw this map", "explore.json", (("draw_seconds",),), None, "s", at_most=True),
    Claim("aligning 1,000 CNN-s", "alignment.json", (("seconds_for_all", "match_many"),), None, "s", at_most=True),
    Claim("aligning a ResNet-18", "alignment.json", (("resnet_18", "match_seconds"),), None, "s", at_most=True),
)


def performance_block(folder: Path) -> str:
    """The table of the page, its processors, and the shares of the pre-training step."""
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
        f"{_peak_of_imports(folder, kinds)}"
    )


def _peak_of_imports(folder: Path, kinds: list[str]) -> str:
    """Resident memory of the benchmark of imports, which counts pages of mapped files, too."""
    paths = [folder / kind / "zoo_import.json" for kind in kinds]
    found = [json.loads(path.read_text(encoding="utf-8"))["peak_rss_bytes"] / 1e9 for path in paths if path.is_file()]
    if not found:
        return ""
    return (
        f" The whole process of the benchmark of imports peaks at {max(found):.2f} GB of resident memory, with the "
        "comparison that follows the import, PyTorch's exporter, and pages of mapped Arrow files, which the system "
        "drops when memory is needed."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"benchmarks": performance_block(root / "runs" / "benchmarks")}
