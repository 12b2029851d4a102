"""docs/results/few_images.md: what `hf-sane start` gains on a few images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/few_images.md"
RECORD = Path("runs/start/fashion_140.json")
# Titles by the names before and after fine-tuning; not every kind is fine-tuned.
KINDS = {
    "sampled in rounds": ("sane_bootstrap", "sampled"),
    "averages of anchors": ("anchor_average", None),
    "anchors": ("anchors", "anchors"),
    "anchors with noise at the distance of sampled networks": ("anchor_noise", None),
    "random weights": ("scratch", "scratch"),
}


def start_block(record: Mapping[str, Any]) -> str:
    """Test accuracy of every kind of network before and after fine-tuning."""
    images, results = record["data"]["images"], record["results"]
    rows = []
    for title, (before, after) in KINDS.items():
        tuned = f"{results['compared'][after]['test_accuracy']:.3f}" if after else ""
        rows.append([title, f"{results['before_fine_tuning'][before]['test_accuracy']:.3f}", tuned])
    header = [
        "test accuracy",
        "only the last layer fitted, mean of the networks",
        "fine-tuned, best on validation images",
    ]
    return (
        f"{images['train']} training, {images['validation']} validation and {images['test']:,} test images of "
        f"Fashion-MNIST at {images['image_size']} pixels, one seed, all other settings the defaults "
        f"([{RECORD.name}](../../{RECORD.as_posix()})).\n"
        "\n"
        f"{markdown_table(header, rows, numbers=True)}"
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"start": start_block(json.loads((root / RECORD).read_text(encoding="utf-8")))}
