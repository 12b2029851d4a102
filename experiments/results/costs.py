"""docs/results/performance.md: time against the number of weights."""

import json
from pathlib import Path

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/performance.md"
RECORD = "cost_curves.json"


def costs_block(folder: Path) -> str:
    """Seconds and slope of every verb."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    results, hardware = record["results"], record["hardware"]
    rows = [
        [verb, *(f"{found:.2g} s" for found in times), f"{results['slopes'][verb]:.2f}"]
        for verb, times in results["seconds"].items()
    ]
    header = ["verb", *(f"{weights:,} weights" for weights in results["weights"]), "slope"]
    sane, count = results["sane"], hardware["torch_threads"]
    threads = f"{count} thread{'' if count == 1 else 's'}"
    return (
        f"{markdown_table(header, rows, numbers=True)}\n\n"
        f"[Record](../../runs/benchmarks/{RECORD}): {hardware['cpu']}, {threads}. The "
        f"SANE has width {sane['hidden_size']}, windows of {sane['window_size']} tokens of "
        f"{sane['token_dim']}."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's block by marker."""
    return {"costs": costs_block(root / "runs" / "benchmarks")}
