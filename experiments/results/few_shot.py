"""docs/results/few_shot.md: a few labelled images of a new task, with search of latents and of weights."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from hf_sane.cards._tables import markdown_table
from results.sources import source_line

PAGE = "docs/results/few_shot.md"
RECORD = "runs/paper/few_shot/usps_0.json"
TASKS = {"other_data": "MNIST", "rotation": "USPS, rotated", "other_labels": "USPS, other labels"}
METHODS = {
    "weights": "fine-tuning of the weights",
    "sane": "latents of SANE",
    "sane_behavior": "latents of SANE trained to keep predictions",
    "linear": "latents of the linear code",
    "directions": "64 principal directions of whole networks",
    "scratch": "training from scratch",
}
SANE = ("sane", "sane_behavior")
RIVALS = ("weights", "linear")
FEW = 50  # images up to which the goal counts
MISSING = "**There are no results yet.** `experiments/paper_few_shot.py` makes the run record of this page."
MISSING_PART = "No record yet."


def blocks(root: Path) -> dict[str, str]:
    """Tables and sentences, by marker."""
    path = root / RECORD
    if not path.exists():
        return {"verdict": MISSING, "accuracy": MISSING_PART, "paired": MISSING_PART, "source": MISSING_PART}
    record = json.loads(path.read_text(encoding="utf-8"))
    results = record["results"]
    return {
        "verdict": verdict(results),
        "accuracy": accuracy_tables(results),
        "paired": paired_table(results),
        "source": source(record),
    }


def draws(cell: Mapping[str, Any], method: str) -> list[float]:
    """Mean accuracy over the starting networks, for each draw of images."""
    return [statistics.fmean(draw["accuracy"]) for draw in cell[method]]


def pooled(results: Mapping[str, Any], task: str, method: str) -> list[float]:
    """Mean accuracy over all numbers of images up to `FEW`, for each draw."""
    cells = [cell for size, cell in results["accuracy"][task].items() if int(size) <= FEW]
    return [statistics.fmean(values) for values in zip(*(draws(cell, method) for cell in cells), strict=True)]


def difference(left: list[float], right: list[float]) -> tuple[float, float, float]:
    """Mean paired difference over draws, and its 95% t-interval."""
    gaps = [a - b for a, b in zip(left, right, strict=True)]
    middle = statistics.fmean(gaps)
    margin = float(stats.t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    return middle, middle - margin, middle + margin


def verdict(results: Mapping[str, Any]) -> str:
    """Whether the goal was reached, and for which variant."""
    lines = []
    for method in SANE:
        won = {
            rival: [task for task in TASKS if difference(*(pooled(results, task, m) for m in (method, rival)))[1] > 0]
            for rival in RIVALS
        }
        reached = "reached" if len(won["weights"]) >= 2 else "not reached"
        told = {rival: ", ".join(TASKS[task] for task in tasks) or "none" for rival, tasks in won.items()}
        lines.append(
            f"- {METHODS[method]}: above fine-tuning of the weights on {len(won['weights'])} of {len(TASKS)} tasks "
            f"({told['weights']}), and above the linear code on {len(won['linear'])} ({told['linear']}). Goal "
            f"{reached}."
        )
    first = (
        f"The goal was that the search of latents is above fine-tuning of the weights with at most {FEW} images on at "
        "least two of three tasks, by a paired 95% interval."
    )
    return "\n".join([first, "", *lines])


def accuracy_tables(results: Mapping[str, Any]) -> str:
    """Test accuracy by number of images, one table per task."""
    parts = []
    for task, title in TASKS.items():
        cells = results["accuracy"][task]
        means = {
            method: [statistics.fmean(draws(cell, method)) for cell in cells.values()]
            for method in METHODS
            if all(method in cell for cell in cells.values())
        }
        tops = [max(column) for column in zip(*means.values(), strict=True)]
        rows = [
            [
                METHODS[method],
                *(
                    f"**{value:.3f}**" if value == top else f"{value:.3f}"
                    for value, top in zip(values, tops, strict=True)
                ),
            ]
            for method, values in means.items()
        ]
        before = statistics.fmean(results["unchanged"][task])
        header = ["method", *(f"{size} images" for size in cells)]
        parts += [
            f"### {title}",
            f"Accuracy of the starting networks: {before:.3f}.",
            markdown_table(header, rows, numbers=True),
        ]
    return "\n\n".join(parts)


def paired_table(results: Mapping[str, Any]) -> str:
    """Paired differences of every SANE from its rivals."""
    rows = []
    for task, title in TASKS.items():
        for method in SANE:
            row = [title, METHODS[method]]
            for rival in RIVALS:
                mean, low, high = difference(pooled(results, task, method), pooled(results, task, rival))
                row.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
            rows.append(row)
    return markdown_table(["task", "method", *(f"less {METHODS[rival]}" for rival in RIVALS)], rows, numbers=True)


def source(record: Mapping[str, Any]) -> str:
    """How the numbers were made."""
    return f"{source_line(record)} ([record](../../{RECORD}))."
