"""docs/results/probing.md: accuracy predicted from weights, across datasets."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/probing.md"
REGRESSORS = {"ridge": "ridge", "logit_linear": "logit-linear", "gradient_boosting": "boosted trees"}
KINDS = {"layer_statistics": "s(W)", "weights": "W"}


def _rows(results: dict[str, Any], metric: str) -> list[list[str]]:
    """One row per source zoo, features and regressor; a column per target zoo."""
    zoos = list(results["mean_of_source"])
    rows = []
    for source in zoos:
        for kind, title in KINDS.items():
            for regressor, name in REGRESSORS.items():
                row = results[regressor][kind][source]
                cells = [f"{row[target][metric]:.2f}" for target in zoos]
                marked = [f"*{cell}*" if target == source else cell for target, cell in zip(zoos, cells, strict=True)]
                rows.append([f"{source}: {title}, {name}", *marked])
        if metric != "kendall_tau":
            guess = results["mean_of_source"][source]
            rows.append([f"{source}: mean", *(f"{guess[target][metric]:.2f}" for target in zoos)])
    return rows


def transfer_block(folder: Path) -> str:
    """R2 and Kendall's tau: fitted on the zoo of a row, tested on that of a column."""
    record = json.loads((folder / "transfer.json").read_text(encoding="utf-8"))
    results, counts = record["results"], record["data"]["networks"]
    zoos = list(counts)
    tables = [
        markdown_table([f"{title}: fitted on", *zoos], _rows(results, metric), numbers=True)
        for metric, title in (("kendall_tau", "Kendall's tau"), ("r2", "R2"))
    ]
    first = counts[zoos[0]]
    networks = (
        f"{first['train']} training, {first['validation']} validation and {first['test']} test networks per dataset"
    )
    note = (
        "Prediction of test accuracy: fitted on the zoo of the row, tested on the zoo of the column (in italics: "
        f"the same zoo). {networks}, split by training run, all aligned to one network. *mean*: predicting the mean "
        "accuracy of the row's zoo. Record: [transfer.json](../../runs/probing/transfer.json)."
    )
    return "\n\n".join([*tables, note])


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"transfer": transfer_block(root / "runs" / "probing")}
