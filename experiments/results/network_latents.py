"""docs/results/network_latents.md: a few numbers per network, linear and learned."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_sane.cards._tables import markdown_table
from results.children import difference, signed
from results.rates import DATA
from results.sources import source_line

PAGE = "docs/results/network_latents.md"
RECORDS = "runs/paper/network_latents"
CODES = {
    "sane": "SANE, latents of whole networks",
    "sane_behavior": "SANE, trained to keep predictions",
    "sane_attention": "SANE, with cross-attention",
    "linear": "linear code of whole networks",
    "linear_ancestor": "linear code for each ancestor, which is known",
}
REFERENCES = {
    "original": "the networks themselves",
    "nearest": "the nearest training network",
    "ancestor": "the ancestor",
}
MEASURED = ("accuracy", "agreement")
MISSING = "**There are no results yet.** `experiments/paper_network_latents.py` makes the run records of this page."


def blocks(root: Path) -> dict[str, str]:
    """Tables and sentences, by marker."""
    records = load_records(root / RECORDS)
    if not records:
        return dict.fromkeys(("verdict", "codes", "paired", "source"), MISSING)
    return {
        "verdict": verdict(records),
        "codes": code_tables(records),
        "paired": paired_table(records),
        "source": sources(records),
    }


def load_records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of each data set, by seed."""
    found = {
        name: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}_[0-9]*.json"))]
        for name in DATA
    }
    return {name: records for name, records in found.items() if records}


def codes_of(records: Sequence[Mapping[str, Any]], size: str, code: str) -> list[Mapping[str, Any]]:
    """Results of one code for all seeds that have it."""
    every = [record["results"]["codes"].get(size, {}) for record in records]
    return [found[code] for found in every if code in found]


def by_network(found: Sequence[Mapping[str, Any]], measured: str) -> list[float]:
    """Values of each test network, averaged over seeds."""
    return [fmean(values) for values in zip(*(each[measured] for each in found), strict=True)]


def gap(records: Sequence[Mapping[str, Any]], size: str, rival: str, measured: str) -> tuple[float, float, float]:
    """Mean difference of SANE from a rival, paired over test networks, with a 95% interval."""
    ours, theirs = (by_network(codes_of(records, size, code), measured) for code in ("sane", rival))
    return difference(ours, theirs)


def sizes_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numbers per network."""
    return list(records[0]["results"]["codes"])


def verdict(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Where SANE is above the linear code, and where below."""
    lines = []
    for name, own in records.items():
        pairs, above, below = [], [], []
        for size in sizes_of(own):
            ours, theirs = (fmean(each["r2"] for each in codes_of(own, size, code)) for code in ("sane", "linear"))
            pairs.append(f"{ours:.3f} and {theirs:.3f} with {size} numbers")
            _, low, high = gap(own, size, "linear", "agreement")
            above += [size] * (low > 0)
            below += [size] * (high < 0)
        told = [
            f"{place} with {' and '.join(sizes)} numbers"
            for place, sizes in (("above the linear code", above), ("below it", below))
            if sizes
        ]
        rest = "otherwise, intervals include zero" if told else "all intervals include zero"
        lines.append(
            f"- **{DATA[name]}.** R2 of SANE and of the linear code: {', '.join(pairs)}. Agreement of SANE: "
            f"{', '.join([*told, rest])}."
        )
    return "\n".join(lines)


def code_tables(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """R2, accuracy and agreement of every code."""
    parts = []
    for name, own in records.items():
        rows = []
        for size in sizes_of(own):
            for code, title in CODES.items():
                if found := codes_of(own, size, code):
                    rows.append([size, title, *_cells(found)])
        for reference, title in REFERENCES.items():
            rows.append(["", title, *_cells([record["results"]["references"][reference] for record in own[:1]])])
        header = ["numbers", "code", "R2", "accuracy", "agreement"]
        parts += [f"### {DATA[name]}", markdown_table(header, rows, numbers=True)]
    return "\n\n".join(parts)


def _cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means, and the ranges over seeds."""
    columns = [[each["r2"] for each in found], *([fmean(each[key]) for each in found] for key in MEASURED)]
    cells = []
    for values in columns:
        differ = max(values) - min(values) > 1e-6  # codes without a seed are equal up to rounding
        spread = f" ({min(values):.3f} to {max(values):.3f})" if differ else ""
        cells.append(f"{fmean(values):.3f}{spread}")
    return cells


def paired_table(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Paired differences of SANE from both linear codes."""
    rivals = ("linear", "linear_ancestor")
    rows = [
        [DATA[name], size, *(signed(gap(own, size, rival, key)) for rival in rivals for key in MEASURED)]
        for name, own in records.items()
        for size in sizes_of(own)
    ]
    header = ["data", "numbers", *(f"less {CODES[rival]}: {key}" for rival in rivals for key in MEASURED)]
    return markdown_table(header, rows, numbers=True)


def sources(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How the numbers were made."""
    return "\n".join(
        f"- {DATA[name]}: {source_line(record, minutes=False)}" for name, own in records.items() for record in own
    )
