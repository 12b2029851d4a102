"""README.md: what the demo measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table
from hf_sane.sampling._comparison import METHODS

PAGE = "README.md"
SHOWN = (
    *("sane_subsampled", "sane_bootstrapped", "anchor_noise", "anchor_noise_selected", "anchor_average", "scratch"),
    *("anchors", "reconstructed_anchors"),
)
PROPERTIES = {"test_accuracy": "test accuracy", "epoch": "epoch", "generalization_gap": "generalisation gap"}
COLUMNS = {
    "weights": "W",
    "layer_statistics": "s(W)",
    "weight_profile": "profile of W",
    "sane_mean": "SANE, mean (paper)",
    "sane_best": "SANE, best pooling",
}


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"demo": readme_block(json.loads((root / "runs/demo/report.json").read_text(encoding="utf-8")))}


def readme_block(record: Mapping[str, Any]) -> str:
    """The README's table of results, from the demo's run record."""
    sampling, probe = record["sampling"], record["probe_details"]
    epochs = [sampling[f"epoch_{epoch}"] for epoch in (0, 1, 5)]
    distances = sampling["nearest_training_distance"]
    rows = [[METHODS[name], *(f"{part[name]:.3f}" for part in epochs), f"{distances[name]:.2f}"] for name in SHOWN]
    probes = [[title, *(f"{probe[name][key]['r2']:.3f}" for key in COLUMNS)] for name, title in PROPERTIES.items()]
    kept = min(part["accuracy_kept"] for part in record["reconstruction"].values())
    cores = record["hardware"]["usable_cores"]
    return "\n\n".join(
        [
            f"What `make demo` measured (seed {record['seed']}, {record['seconds']:.0f} s on {cores} CPU cores, "
            "scikit-learn's digits; record: [runs/demo/report.json](runs/demo/report.json)). Reconstruction of "
            f"test networks: R2 {record['reconstruction_r2']:.3f}, {kept:.1%} of their accuracy.",
            markdown_table(
                ["test accuracy after fine-tuning epochs", "0", "1", "5", "distance to the nearest training network"],
                rows,
                numbers=True,
            ),
            markdown_table(["property, R2 on test networks", *COLUMNS.values()], probes, numbers=True),
        ]
    )
