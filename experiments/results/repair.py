"""docs/results/repair.md: sabotaged networks, detected, localised and repaired without data."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_sane.cards._tables import markdown_table
from results.rates import DATA
from results.sources import source_line

PAGE = "docs/results/repair.md"
DETECTORS = {
    "sane8": "SANE, 8 latents per token",
    "sane1": "SANE, 1 latent per token",
    "linear8": "linear code, 8 latents per token",
    "linear1": "linear code, 1 latent per token",
    "whole64": "linear code of whole networks, 64 numbers",
    "ancestor": "distance to the ancestor",
    "average": "distance to the average sibling",
    "norms": "norms of layers",
    "spectra": "singular values of layers",
}
REPAIRS = {
    "ancestor": "the ancestor's layer",
    "average": "the average sibling's layer",
    "nearest": "the layer of the nearest sibling",
    "linear_conditional": "the expected layer given the others (linear code of whole networks)",
    **{
        f"{code}_{kind}": f"{title}, {shown}"
        for code, title in DETECTORS.items()
        if code[-1].isdigit()
        for kind, shown in (("projection", "projection"), ("filled", "projection from the average sibling's layer"))
    },
}
FAULTS = {"zeroed": "zeroed", "flipped": "sign-flipped", "scaled": "scaled", "rank_1": "rank 1"}
AUC_GOAL, REGAINED_GOAL, HARM_GOAL = 0.95, 0.8, 0.01


def load_records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of each data set, by seed."""
    found = {
        name: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}_[0-9]*.json"))]
        for name in DATA
    }
    return {name: records for name, records in found.items() if records}


def _each(records: list[dict[str, Any]], *keys: str) -> list[float]:
    values = []
    for record in records:
        value: Any = record["results"]
        for key in keys:
            value = value[key]
        values.append(float(value))
    return values


def _shown(values: list[float]) -> str:
    """Mean, and the range over seeds."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def verdict_block(records: Mapping[str, list[dict[str, Any]]]) -> str:
    """Goals, and whether SANE is needed."""
    lines = []
    for name, own in records.items():
        results = own[0]["results"]
        sane, best, reference = results["chosen"]["sane"], results["best_sane"], results["reference"]
        gap, low, high = results["repair"][best]["gap"]
        auc = {key: found["auc"] for key, found in results["detection"].items()}
        others = [key for key in auc if not key.startswith("sane")]
        equal = sum(auc[key] >= auc[sane] for key in others)
        regained = {key: results["repair"][key]["true_layer"] for key in (best, reference)}
        harm = results["repair"][best]["healthy_loss"]
        found, others_best = f"{regained[best]:.3f}", f"{regained[reference]:.3f}"
        lines.append(
            f"- **{DATA[name]}.** Detection: AUC {auc[sane]:.3f} with {DETECTORS[sane]} "
            f"({_goal(auc[sane] >= AUC_GOAL)}); {equal} of {len(others)} detectors without SANE have at least as "
            f"much, the distance to the ancestor {auc['ancestor']:.3f}. Repair of the broken layer: "
            f"{found} of the lost accuracy with {REPAIRS[best]} ({_goal(regained[best] >= REGAINED_GOAL)}), "
            f"{others_best} with {REPAIRS[reference]}, the best without SANE on validation networks; "
            f"difference of SANE: {gap:+.3f} ({low:+.3f} to {high:+.3f}). Healthy networks lose {harm:.4f} by false "
            f"alarms ({_goal(harm <= HARM_GOAL)})."
        )
    behind = sum(own[0]["results"]["repair"][own[0]["results"]["best_sane"]]["gap"][2] < 0 for own in records.values())
    lines.append("")
    lines.append(
        f"On {behind} of {len(records)} data sets, the best repair without SANE is ahead of the best with SANE by a "
        "paired interval."
    )
    return "\n".join(lines)


def _goal(reached: bool) -> str:
    return "goal reached" if reached else "goal not reached"


def detection_block(records: Mapping[str, list[dict[str, Any]]]) -> str:
    """AUC and localisation of each detector."""
    rows = []
    for key, title in DETECTORS.items():
        cells = []
        for own in records.values():
            cells += [_shown(_each(own, "detection", key, "auc")), _shown(_each(own, "detection", key, "localized"))]
        rows.append([title, *cells])
    header = [part for name in records for part in (f"{DATA[name]}: AUC", "layer found")]
    return markdown_table(["detector", *header], rows, numbers=True)


def repair_block(records: Mapping[str, list[dict[str, Any]]]) -> str:
    """Share of the lost accuracy regained by each repair."""
    parts = []
    for name, own in records.items():
        results = own[0]["results"]
        rows = []
        for key, title in REPAIRS.items():
            if key not in results["repair"]:
                continue
            gap, low, high = results["repair"][key]["gap"]
            against = "" if key == results["reference"] else f"{gap:+.3f} ({low:+.3f} to {high:+.3f})"
            values = (_shown(_each(own, "repair", key, part)) for part in ("true_layer", "suspected_layer"))
            rows.append([title, *values, against, f"{fmean(_each(own, 'repair', key, 'healthy_loss')):.4f}"])
        accuracy = results["accuracy"]
        parts += [
            f"### {DATA[name]}",
            f"Accuracy {accuracy['healthy']:.3f} before and {accuracy['broken']:.3f} after sabotage; alarm for "
            f"{results['alarms']:.3f} of the broken and {results['false_alarms']:.3f} of the healthy networks "
            f"({DETECTORS[results['chosen']['all']]}).",
            markdown_table(
                [
                    "replacement",
                    "broken layer known",
                    "layer suspected",
                    f"difference to {REPAIRS[results['reference']]}",
                    "lost by healthy networks",
                ],
                rows,
                numbers=True,
            ),
        ]
    return "\n\n".join(parts)


def fault_block(records: Mapping[str, list[dict[str, Any]]]) -> str:
    """Each kind of fault."""
    rows = []
    for name, own in records.items():
        for fault, title in FAULTS.items():
            values = (_shown(_each(own, "by_fault", fault, key)) for key in ("lost", "detected", "sane", "reference"))
            rows.append([DATA[name], title, *values])
    header = ["data", "fault", "accuracy lost", "alarms", "regained with SANE", "regained without"]
    return markdown_table(header, rows, numbers=True)


def source_block(records: Mapping[str, list[dict[str, Any]]]) -> str:
    """Where the numbers come from."""
    return "\n".join(f"- {DATA[name]}: {source_line(record)}" for name, own in records.items() for record in own)


BLOCKS = {
    "verdict": verdict_block,
    "detection": detection_block,
    "repair": repair_block,
    "faults": fault_block,
    "source": source_block,
}


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = load_records(root / "runs" / "paper" / "repair")
    return {name: block(records) if records else "" for name, block in BLOCKS.items()}
