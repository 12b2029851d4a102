"""README.md: the main results in one table, and the results of the demo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table
from hf_sane.sampling._comparison import METHODS
from results import paper

PAGE = "README.md"
SHOWN = (
    *("sane_subsampled", "sane_bootstrapped", "linear_subsampled", "linear_bootstrapped"),
    *("anchor_noise", "anchor_noise_selected", "anchor_average", "scratch"),
    *("anchors", "reconstructed_anchors", "linear_reconstructed"),
)
PROPERTIES = {"test_accuracy": "test accuracy", "epoch": "epoch", "generalization_gap": "generalisation gap"}
COLUMNS = {
    "weights": "W",
    "layer_statistics": "s(W)",
    "weight_profile": "profile of W",
    "sane_mean": "SANE, mean (paper)",
    "sane_best": "SANE, best pooling",
    "linear_best": "linear code, best pooling",
}


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    demo = _record(root / "runs/demo/report.json")
    return {"results": results_block(root / "runs", demo), "demo": demo_block(demo)}


def _record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def results_block(runs: Path, demo: Mapping[str, Any]) -> str:
    """One row per question of a visitor, with the answer and a link to its page or record."""
    sampled, probe = demo["sampling"]["epoch_0"], demo["probe_details"]["test_accuracy"]
    cells = paper.probed(runs / "paper", "probe")
    large = _record(runs / "benchmarks/lazy_large.json")["results"]["networks"]["large"]
    scans = _record(runs / "benchmarks/scan_large.json")["results"]
    scan = scans["budgets"]["1%"]
    record = "[demo](runs/demo/report.json)"
    rows = [
        [
            "Do encoded and decoded networks still work?",
            f"Small CNNs keep at least {_kept(demo):.1%} of their test accuracy.",
            record,
        ],
        [
            "Are sampled networks accurate before any training?",
            f"Their test accuracy is {sampled['sane_subsampled']:.3f}, and {sampled['linear_subsampled']:.3f} with a "
            "linear code in place of SANE. The trained networks around which they are sampled have "
            f"{sampled['anchors']:.3f}, and these with noise of the same size {sampled['anchor_noise_selected']:.3f}.",
            record,
        ],
        [
            "Can test accuracy be predicted from weights?",
            f"R2 is {probe['sane_best']['r2']:.3f} with SANE, {probe['layer_statistics']['r2']:.3f} with layer "
            f"statistics, and {probe['weights']['r2']:.3f} with raw weights.",
            record,
        ],
        [
            "Does this hold for larger zoos?",
            f"SANE predicts better than layer statistics in {paper.cells_won(cells, 'r2')} of {len(cells)} cases, but "
            "finer statistics of the weights, which need no autoencoder, predict better than SANE in "
            f"{len(cells) - paper.cells_won(cells, 'r2', ('weight_best',))}.",
            "[larger zoos](docs/results/zoos.md#property-prediction)",
        ],
        [
            "How large may a network be?",
            f"{large['weights'] / 1e9:.1f} billion weights were embedded in {large['seconds']:.0f} s and "
            f"{large['peak_anonymous_bytes'] / 1e9:.2f} GB of memory.",
            "[large models](docs/results/large_models.md)",
        ],
        [
            "How long does a scan take?",
            f"{scan['seconds']:.1f} s for 1% of {scan['weights'] / 1e9:.1f} billion weights "
            f"({scans['weight_bytes'] / 1e9:.1f} GB).",
            "[scans](docs/results/scanning.md)",
        ],
    ]
    return markdown_table(["question", "result", "measured in"], rows)


def _kept(demo: Mapping[str, Any]) -> float:
    return min(part["accuracy_kept"] for part in demo["reconstruction"].values())


def demo_block(record: Mapping[str, Any]) -> str:
    """The tables of the demo, from its run record."""
    sampling, probe = record["sampling"], record["probe_details"]
    epochs = [sampling[f"epoch_{epoch}"] for epoch in (0, 1, 5)]
    distances = sampling["nearest_training_distance"]
    rows = [[METHODS[name], *(f"{part[name]:.3f}" for part in epochs), f"{distances[name]:.2f}"] for name in SHOWN]
    probes = [[title, *(f"{probe[name][key]['r2']:.3f}" for key in COLUMNS)] for name, title in PROPERTIES.items()]
    cores = record["hardware"]["usable_cores"]
    return "\n\n".join(
        [
            f"Networks trained on scikit-learn's digits; seed {record['seed']}, {record['seconds']:.0f} s on {cores} "
            "CPU cores; record: [runs/demo/report.json](runs/demo/report.json). Reconstructed test networks have an "
            f"R2 of {record['reconstruction_r2']:.3f} and keep at least {_kept(record):.1%} of their accuracy.",
            markdown_table(
                ["test accuracy after fine-tuning epochs", "0", "1", "5", "distance to the nearest training network"],
                rows,
                numbers=True,
            ),
            markdown_table(["property, R2 on test networks", *COLUMNS.values()], probes, numbers=True),
        ]
    )
