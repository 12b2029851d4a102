"""docs/results/lineage.md: trees of fine-tuned networks that were found again, and fingerprints."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/lineage.md"
RECORDS = "../../runs/benchmarks"
METHODS = {"ours": "hf-sane", "L2": "L2", "cosine": "cosine"}


def _record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "benchmarks" / name).read_text(encoding="utf-8"))


def _link(name: str) -> str:
    return f"[{name}](../../runs/benchmarks/{name})"


def trees_block(folder: Path) -> str:
    """Precision and recall of edges."""
    results = _record(folder, "lineage_trees.json")["results"]
    rows = []
    for name, found in results["held_out"].items():
        for method, title in METHODS.items():
            one = found[method]
            scores = [f"{one[key]:.2f}" for key in ("precision", "recall", "f1", "recall_of_pairs")]
            networks = [name, f"{found['networks']}"] if method == "ours" else ["", ""]
            rows.append([*networks, title, *scores])
    header = ["forests", "networks", "method", "precision", "recall", "F1", "pairs found"]
    return (
        f"Edges from a parent to a child in held-out forests ({_link('lineage_trees.json')}). "
        '"Pairs found" counts an edge in the wrong direction as found, too. L2 and cosine are distances of the '
        "weights as they are stored, with the least arborescence, the direction of growing kurtosis, and the "
        f"threshold that is best on the {results['fitted']['networks']} networks that the model was fitted to.\n\n"
        f"{markdown_table(header, rows, numbers=True)}"
    )


def calibration_block(folder: Path) -> str:
    """How often edges of each confidence are right."""
    results = _record(folder, "lineage_trees.json")["results"]
    whole = results["calibration"]
    rows = [[f"{x['confidence']:.2f}", f"{x['right']:.2f}", f"{x['edges']}"] for x in whole["bins"]]
    forests = []
    for name, found in results["held_out"].items():
        one = found["calibration"]
        said, right = (sum(x["edges"] * x[key] for x in one["bins"]) / one["edges"] for key in ("confidence", "right"))
        forests.append([name, f"{one['edges']}", f"{said:.2f}", f"{right:.2f}", f"{one['ece']:.3f}"])
    header = ["forests", "edges", "mean confidence", "share that is right", "calibration error"]
    return (
        f"{whole['edges']} edges of the same forests, without those between copies. The expected calibration error is "
        f"{whole['ece']:.3f}, the Brier score {whole['brier']:.3f} ({whole['brier_of_the_mean']:.3f} if every edge "
        f"had the mean confidence).\n\n"
        f"{markdown_table(['mean confidence', 'share that is right', 'edges'], rows, numbers=True)}\n\n"
        f"{markdown_table(header, forests, numbers=True)}"
    )


def direction_block(folder: Path) -> str:
    """Measures of direction, on the forests that the model was fitted to."""
    fitted = _record(folder, "lineage_trees.json")["results"]["fitted"]
    rows = [[name, f"{value:.3f}"] for name, value in fitted["surprise"].items()]
    weights = ", ".join(f"{name} {value:.2f}" for name, value in fitted["weights"].items())
    return (
        "Mean surprise (negative log-likelihood of the true forest, per network) on the fitting forests, "
        "cross-validated over them; less is better.\n\n"
        f"{markdown_table(['direction from', 'surprise'], rows, numbers=True)}\n\n"
        f"The weights of the fitted model: {weights}."
    )


def fingerprints_block(folder: Path) -> str:
    """Collisions, and copies among many networks."""
    results = _record(folder, "fingerprints.json")["results"]
    found, search = results["collisions"], results["search"]
    zoos = ", ".join(f"{count:,} of {name}" for name, count in found["zoos"].items())
    recall = ", ".join(f"{value:.0%} ({kind})" for kind, value in search["recall"].items())
    return (
        f"{found['states']:,} states: {zoos}, and {found['checkpoints']} checkpoints of others "
        f"({_link('fingerprints.json')}). Of {found['pairs']:,} pairs, {found['pairs_with_equal_digests']:,} have "
        f"equal digests, and **{found['collisions']} of these have different weights**. Of "
        f"{found['pairs_of_different_runs']:,} pairs from different runs, {found['told_to_be_the_same']:,} are "
        f"classified as the same, and {found['told_to_be_related']:,} as related; the nearest two are "
        f"{found['nearest_of_different_runs']:.2f} apart.\n\n"
        f"Among {search['networks']:,} networks, `hf-sane search` ranks the right one first for {recall} of "
        f"{search['queries']} copies. The index took {search['seconds_to_index']:.0f} s to build and a query takes "
        f"{1000 * search['seconds_per_query']:.0f} ms, on a busy machine."
    )


def distances_block(folder: Path) -> str:
    """Distances of fingerprints of copies, relatives and strangers."""
    rows = []
    for zoo, kinds in _record(folder, "fingerprint_distances.json")["results"]["distances"].items():
        for number, (kind, found) in enumerate(kinds.items()):
            quantiles = [f"{found[f'quantile_{level}']:.2g}" for level in ("0", "0.01", "0.5", "0.99", "1")]
            shares = [f"{found[name]:.1%}" for name in ("same", "related")]
            rows.append([zoo if number == 0 else "", kind, f"{found['pairs']:,}", *quantiles, *shares])
    header = ["zoo", "compared with", "pairs", "least", "1%", "median", "99%", "largest", "below 0.02", "below 0.6"]
    return (
        f"Distances of fingerprints ([record]({RECORDS}/fingerprint_distances.json)), from networks of two small zoos "
        f"to reordered copies of them, to other epochs of their runs, and to other runs.\n\n"
        f"{markdown_table(header, rows)}"
    )


def blocks(root: Path) -> dict[str, str]:
    """All blocks of the page."""
    return {
        "trees": trees_block(root),
        "calibration": calibration_block(root),
        "direction": direction_block(root),
        "fingerprints": fingerprints_block(root),
        "distances": distances_block(root),
    }
