"""README.md: what the demo measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table
from hf_sane.workflows.demo.report import METHOD_TITLES, PROPERTY_TITLES, shown

PAGE = "README.md"


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"demo": readme_block(json.loads((root / "runs/demo/report.json").read_text(encoding="utf-8")))}


def readme_block(record: Mapping[str, Any]) -> str:
    """The README's table of results, from the demo's run record."""
    sampling, probe = record["sampling"], record["probe"]
    start, first, last = (sampling[f"epoch_{epoch}"] for epoch in (0, 1, 5))
    rows = [
        [METHOD_TITLES[name], *(shown(part[name]) for part in (start, first, last))]
        for name in ("sane_subsampled", "sane_bootstrapped", "anchor_noise", "anchor_average", "scratch", "anchors")
    ]
    columns = ("weights", "layer_statistics", "sane_mean", "sane_best")
    titles = ["property, R2 on test networks", "W", "s(W)", "SANE, mean (paper)", "SANE, best pooling"]
    probes = [[title, *(shown(probe[name][c]) for c in columns)] for name, title in PROPERTY_TITLES.items()]
    kept = min(part["accuracy_kept"] for part in record["reconstruction"].values())
    cores = record["hardware"]["usable_cores"]
    return "\n\n".join(
        [
            f"What `make demo` measured (seed {record['seed']}, {record['seconds']:.0f} s on {cores} CPU cores, "
            "scikit-learn's digits; record: [runs/demo/report.json](runs/demo/report.json)). Reconstruction of "
            f"test networks: R2 {record['reconstruction_r2']:.3f}, {kept:.1%} of their accuracy.",
            markdown_table(["test accuracy after fine-tuning epochs", "0", "1", "5"], rows, numbers=True),
            markdown_table(titles, probes, numbers=True),
        ]
    )
