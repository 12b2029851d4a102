"""docs/results/alignment.md: loss barriers before and after matching."""

import json
from pathlib import Path

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/alignment.md"


def barrier_block(folder: Path) -> str:
    """One row per dataset, kind of network and width."""
    rows = []
    for path in sorted(folder.glob("barrier*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for data, kinds in record["results"].items():
            for kind, widths in kinds.items():
                for width, found in widths.items():
                    barrier, accuracy = found["mean"]["test_barrier"], found["mean"]["test_middle_accuracy"]
                    left = found["remaining_share"]["test"]
                    shown = (
                        "no barrier" if left is None else f"{left:.0%}" + (" **(not reached)**" if left > 0.5 else "")
                    )
                    numbers = [f"{barrier[when]:.3f}" for when in ("before", "after")]
                    middle = [f"{accuracy[when]:.1%}" for when in ("before", "after")]
                    rows.append(
                        [
                            data,
                            kind,
                            width,
                            *numbers,
                            shown,
                            *middle,
                            f"[{path.name}](../../runs/benchmarks/{path.name})",
                        ]
                    )
    header = ["data", "network", "width", "barrier", "aligned", "remaining", "midpoint accuracy", "aligned", "record"]
    return markdown_table(header, rows)


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    return {"barriers": barrier_block(root / "runs" / "benchmarks")}
