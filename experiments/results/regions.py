"""docs/results/regions.md: regions of four datasets, points inside them, and LoRA adapters."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/regions.md"
FILE = "regions.json"
LINK = f"[{FILE}](../../runs/analysis/{FILE})"
SPACES = {
    "independent": "independent, weights",
    "independent_aligned": "independent, weights, aligned",
    "independent_aligned_latents": "independent, SANE latents",
    "fine_tuned": "fine-tuned, weights",
    "fine_tuned_latents": "fine-tuned, SANE latents",
}
LEVELS = {"data_set": "dataset", "task": "task", "general": "true or shuffled labels"}


def spaces_block(results: dict[str, Any], settings: dict[str, Any]) -> str:
    """Distances and nearest regions in every space."""
    rows = []
    for space, title in SPACES.items():
        for level, found in results["spaces"].get(space, {}).items():
            distances, centroid = found["distances"], found["nearest_centroid"]
            rows.append([
                title, LEVELS[level], f"{distances['ratio']:.3f}", f"{distances['p_value']:.3f}",
                f"{centroid['accuracy']:.3f}",
                f"{found['nearest_neighbour']['accuracy']:.3f}", f"{centroid['chance']:.3f}",
            ])  # fmt: skip
    header = ["networks", "level", "within / between", "p", "nearest centroid", "nearest neighbour", "largest label"]
    counts = {
        space: sum(sum(row.values()) for row in found["data_set"]["nearest_centroid"]["confusion"].values())
        for space, found in results["spaces"].items()
    }
    note = (
        f"{counts['independent']} independent networks and {counts['fine_tuned']} fine-tuned ones "
        f"({settings['networks']} per dataset and {settings['shuffled_networks']} on its shuffled labels, "
        f"{settings['epochs']} epochs). *within / between*: ratio of mean distances; *p*: share of random "
        f"relabellings with a ratio as small; *largest label*: accuracy of always guessing it. Record: {LINK}."
    )
    return f"{markdown_table(header, rows, numbers=True)}\n\n{note}"


def interiors_block(results: dict[str, Any], settings: dict[str, Any]) -> str:
    """Points inside regions, at their corners and outside."""
    titles = {"independent": "independent", "independent_aligned": "independent, aligned", "fine_tuned": "fine-tuned"}
    rows = []
    for population, title in titles.items():
        for level, regions in results["interiors"][population].items():
            for name, found in regions.items():
                means = [
                    f"{found[p]['mean']:.3f}" if "mean" in found[p] else "-"
                    for p in ("corners", "line", "hull", "outside")
                ]
                chances = [found["better_than_outside"][place] for place in ("line", "hull")]
                shown = ["-" if chance is None else f"{chance:.2f}" for chance in chances]
                rows.append([title, f"{LEVELS[level]}: {name}", *means, *shown])
    header = [
        "networks",
        "region",
        "themselves",
        "on lines",
        "in the hull",
        "outside",
        "line beats outside",
        "hull beats outside",
    ]
    note = (
        f"Mean test accuracy; {settings['points']} points on lines and {settings['points']} in the hull. *beats "
        "outside*: probability that such a point is better than a network outside the region. Datasets are "
        "evaluated directly; for tasks and true labels, the last layer is refitted to each dataset (ridge "
        f"regression), and accuracies are averaged over datasets. Record: {LINK}."
    )
    return f"{markdown_table(header, rows, numbers=True)}\n\n{note}"


def adapters_block(results: dict[str, Any]) -> str:
    """Distances between adapters, and nearest layers."""
    found = results["adapters"]
    names = [
        name.rpartition("__")[2] if not name.endswith("weights") else name.partition("_")[0]
        for name in found["adapters"]
    ]
    distances = [
        [name, *(f"{value:.4f}" for value in row)] for name, row in zip(names, found["cosine_distances"], strict=True)
    ]
    rows = []
    for shape, group in found["by_shape"].items():
        nearest = group["nearest_neighbour"]
        cells = [
            f"{nearest[level]['accuracy']:.2f} ({nearest[level]['chance']:.2f})" if level in nearest else "-"
            for level in ("adapter", "layer", "kind")
        ]
        ratio = f"{group['distance_ratio_of_adapters']:.3f} (p {group['p_value']:.3f})"
        rows.append([shape, str(group["layers"]), ratio, *cells])
    header = [
        "shape of the layers",
        "per adapter",
        "within / between adapters",
        "same adapter",
        "same place",
        "same kind (q, k, v, out)",
    ]
    title = f"cosine distance over {found['shared_layers']} shared layers"
    note = (
        "Weight changes of single layers, scaled to unit length. The last three columns show how often the nearest "
        "change belongs to the same adapter, place or kind of layer; the share of the largest label is in "
        f"brackets. Record: {LINK}."
    )
    tables = [markdown_table([title, *names], distances, numbers=True), markdown_table(header, rows, numbers=True)]
    return "\n\n".join([*tables, note])


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    record = json.loads((root / "runs" / "analysis" / FILE).read_text(encoding="utf-8"))
    results, settings = record["results"], record["arguments"]
    return {
        "region_spaces": spaces_block(results, settings),
        "region_interiors": interiors_block(results, settings),
        "region_adapters": adapters_block(results),
    }
