"""docs/results/implicit.md: which digit an implicit network shows, from its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table
from results.sources import source_line

PAGE = "docs/results/implicit.md"
STARTS = {"shared": "same initialisation", "independent": "independent initialisations"}
FEATURES = {
    "weights": "weights (W)",
    "weights_canonical": "weights, units in canonical order and sign",
    "weights_as_trained": "weights, as trained",
    "statistics": "layer statistics, s(W)",
    "profile": "profile of W",
    "linear": "latents of the linear code",
    "sane": "latents of SANE",
    "image": "the image that the network draws, for reference",
}
PROBES = {"ridge": "ridge", "trees": "boosted trees", "mlp": "perceptron", "transformer": "transformer over tokens"}
# Test accuracy on the authors' own sets of implicit networks of MNIST and Fashion-MNIST.
PUBLISHED = {
    "NFN": (0.791, 0.689),
    "DWSNets": (0.857, 0.671),
    "NG-GNN": (0.914, 0.680),
    "ScaleGMN-B": (0.966, 0.808),
}
MISSING = "**There are no results yet.** `experiments/paper_implicit.py` makes the run records of this page."
GOAL, AIM = PUBLISHED["NG-GNN"][0], PUBLISHED["ScaleGMN-B"][0]


def load_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by kind of start, in the order of `STARTS`."""
    paths = {start: folder / f"{start}_0.json" for start in STARTS}
    return {start: json.loads(path.read_text(encoding="utf-8")) for start, path in paths.items() if path.exists()}


def verdict_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the goal was reached, and what SANE adds."""
    lines = []
    for start, record in records.items():
        best, title = record["results"]["best"], STARTS[start]
        sane = best["sane"]
        goals = [
            f"{name} of {value:.3f} is {'reached' if sane['accuracy'] > value else 'not reached'}"
            for name, value in (("goal", GOAL), ("aim", AIM))
        ]
        others = ", ".join(
            f"{_gap(best[name])} against {FEATURES[name]} ({best[name]['accuracy']:.3f})"
            for name in ("weights", "linear", "profile")
            if name in best
        )
        lines.append(
            f"- **{title}: {sane['accuracy']:.3f}** with SANE's latents and a {PROBES[sane['probe']]}; the "
            f"{' and the '.join(goals)}. Paired differences with 95% intervals: {others}. SANE is "
            f"{'' if best['weights']['interval'][0] > 0 else 'not '}ahead of the weights themselves."
        )
    lines += [f"- **{title}:** no record yet." for start, title in STARTS.items() if start not in records]
    return "\n".join(lines)


def _gap(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['gap']:+.3f} ({low:+.3f} to {high:+.3f})"


def table_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Test accuracy of every probe on every kind of features."""
    parts = []
    for start, record in records.items():
        rows = []
        for name, title in FEATURES.items():
            if (found := record["results"]["probes"].get(name)) is None:
                continue
            cells = [
                " / ".join(f"{v:.3f}" for v in found[probe]["test"]) if probe in found else "" for probe in PROBES
            ]
            rows.append([title, f"{found['size']:,}", *cells])
        header = ["features", "numbers", *PROBES.values()]
        parts += [f"### {STARTS[start].capitalize()}", markdown_table(header, rows, numbers=True)]
    return "\n\n".join(parts)


def published_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Published methods on their own sets, beside these."""
    rows = [[name, "their own", f"{mnist:.3f}", f"{fashion:.3f}"] for name, (mnist, fashion) in PUBLISHED.items()]
    for start, record in records.items():
        best = record["results"]["best"]
        for name in ("sane", "weights"):
            title = f"{FEATURES[name]}, {PROBES[best[name]['probe']]}"
            rows.append([title, f"this page, {STARTS[start]}", f"{best[name]['accuracy']:.3f}", ""])
    return markdown_table(["method", "networks", "MNIST", "Fashion-MNIST"], rows, numbers=True)


def fit_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Numbers of networks, and the quality of fits and reconstructions."""
    rows = []
    for start, record in records.items():
        data, results = record["data"], record["results"]
        low, median, high = results["psnr"]["test"]
        counts = [f"{data[split]:,}" for split in ("train", "validation", "test")]
        fit = f"{median:.1f} ({low:.1f} to {high:.1f})"
        rows.append([STARTS[start], *counts, fit, f"{results['sane_r2']:.3f}", results["grouping"]])
    header = ["start", "training networks", "validation", "test", "PSNR in dB, median (5 to 95%)", "R2 of SANE"]
    return markdown_table([*header, "groups of the linear code"], rows, numbers=True)


def source_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the numbers come from."""
    return "\n".join(f"- {STARTS[start]}: {source_line(record)}" for start, record in records.items())


BLOCKS = {
    "verdict": verdict_block,
    "table": table_block,
    "published": published_block,
    "fit": fit_block,
    "source": source_block,
}


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = load_records(root / "runs" / "paper" / "implicit")
    missing = {"verdict": MISSING}
    return {name: block(records) if records else missing.get(name, "") for name, block in BLOCKS.items()}
