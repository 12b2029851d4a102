"""docs/results/rates.md: rate against function of the linear code, SANE and rounding of weights."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rates import accuracy_kept, area_under

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/rates.md"
CODES = {"sane": "SANE", "linear": "linear code", "rounded": "rounded weights"}
SUBJECTS = {"sane": "SANE", "linear": "the linear code", "rounded": "rounding of weights"}
MEASURED = {"accuracy": "accuracy kept", "agreement": "agreement of predictions"}
DATA = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "usps": "USPS"}
BEHAVIOR = "_behavior"  # ending of the names of records whose SANEs were also trained to keep predictions
RESAMPLES = 200


def title(name: str) -> str:
    """Title of a zoo, and of the loss of its SANEs if it has more than reconstruction."""
    loss = "; SANE trained to keep predictions" if name.endswith(BEHAVIOR) else ""
    return f"{DATA[name.partition('_')[0]]}, CNN-s, seeds{loss}"


def load_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by zoo, in the order of `DATA`."""
    found = {data: sorted(folder.glob(f"{data}_*.json")) for data in DATA}
    return {
        path.stem.rpartition("_")[0]: json.loads(path.read_text(encoding="utf-8"))
        for paths in found.values()
        for path in paths
    }


def value(point: Mapping[str, Any], results: Mapping[str, Any], measured: str, rows: Sequence[int]) -> float:
    """Accuracy kept or agreement of one point, over some of the test networks."""
    if measured == "agreement":
        return sum(point["agreement"][row] for row in rows) / len(rows)
    chosen = {"accuracy": [point["accuracy"][row] for row in rows]}
    return accuracy_kept(chosen, [results["original_accuracy"][row] for row in rows])


def curve(
    results: Mapping[str, Any], code: str, measured: str, rows: Sequence[int] | None = None
) -> list[tuple[float, float]]:
    """Bits per weight and value of all points of a code."""
    rows = range(len(results["original_accuracy"])) if rows is None else rows
    return [(point["bits_per_weight"], value(point, results, measured, rows)) for point in results["codes"][code]]


def best_so_far(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Best value up to each number of bits, as a step function."""
    steps: list[tuple[float, float]] = []
    for bits, found in sorted(points):
        steps.append((bits, max(found, steps[-1][1]) if steps else found))
    return steps


def areas(results: Mapping[str, Any], code: str, measured: str) -> tuple[float, float, float]:
    """Area under the step function, and its 95% bootstrap interval over test networks."""
    count = len(results["original_accuracy"])
    chance = results["chance"]
    floor = chance if measured == "agreement" else chance * count / sum(results["original_accuracy"])
    found = area_under(curve(results, code, measured), floor=floor)
    draws = random.Random(0)
    resampled = sorted(
        area_under(curve(results, code, measured, draws.choices(range(count), k=count)), floor=floor)
        for _ in range(RESAMPLES)
    )
    return found, resampled[int(0.025 * RESAMPLES)], resampled[int(0.975 * RESAMPLES)]


def area_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Areas of every zoo and code."""
    rows = []
    for name, record in records.items():
        for code, shown in CODES.items():
            cells = []
            for measured in MEASURED:
                found, low, high = areas(record["results"], code, measured)
                cells.append(f"{found:.3f} ({low:.3f} to {high:.3f})")
            rows.append([title(name), shown, *cells])
    header = ["zoo", "code", *(f"{shown}: area" for shown in MEASURED.values())]
    return markdown_table(header, rows, numbers=True)


def table_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Every rate of every zoo, with latents of 8 and of 4 bits; then rounded weights."""
    parts = []
    for name, record in records.items():
        results, settings = record["results"], record["arguments"]
        rows = []
        for index, (rate, chosen) in enumerate(results["rates"].items()):
            for offset in (0, 1):
                points = [results["codes"][code][2 * index + offset] for code in ("sane", "linear")]
                cells = [cell for point in points for cell in _cells(point, results)]
                bits = points[0]["bits_per_latent"]
                rows.append([rate, str(chosen["latent_dim"]), str(bits), *cells, f"per {chosen['grouping']}"])
        header = ["latents per weight", "per token", "bits per latent"]
        for code in ("SANE", "linear code"):
            header += [f"{code}: accuracy kept", f"{code}: agreement"]
        rounded = [[str(point["bits_per_latent"]), *_cells(point, results)] for point in results["codes"]["rounded"]]
        networks = record["data"]["networks"]
        original = sum(results["original_accuracy"]) / len(results["original_accuracy"])
        parts += [
            f"### {title(name)}",
            f"{networks['train']:,} training networks, {networks['test']} test networks (last epochs) of accuracy "
            f"{original:.3f}; SANE of width {settings['hidden_size']}, {settings['epochs']} epochs.",
            markdown_table([*header, "components"], rows, numbers=True),
            markdown_table(["rounded weights: bits", *MEASURED.values()], rounded, numbers=True),
        ]
        if (one := results.get("one_network")) is not None:
            kept, agreement = _cells(one, results)
            parts.append(
                f"One training network in place of every test network, without any bits: accuracy kept {kept}, "
                f"agreement {agreement}."
            )
    return "\n\n".join(parts)


def _cells(point: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    rows = range(len(results["original_accuracy"]))
    return [f"{value(point, results, measured, rows):.3f}" for measured in MEASURED]


def verdict_block(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Who has the largest area where."""
    lines = []
    for name, record in records.items():
        found = {code: areas(record["results"], code, "accuracy") for code in CODES}
        order = sorted(found, key=lambda code: -found[code][0])
        sane, linear = found["sane"], found["linear"]
        apart = sane[1] > linear[2] or linear[1] > sane[2]
        lines.append(
            f"- {title(name)}: {SUBJECTS[order[0]]} has the largest area under accuracy kept "
            f"({found[order[0]][0]:.3f}), then {SUBJECTS[order[1]]} ({found[order[1]][0]:.3f}) and "
            f"{SUBJECTS[order[2]]} ({found[order[2]][0]:.3f}); the "
            f"intervals of SANE and the linear code {'do not overlap' if apart else 'overlap'}.{_beside_one(record)}"
        )
    return "\n".join(lines)


def _beside_one(record: Mapping[str, Any]) -> str:
    """Whether any code of SANE says more about a network than one network for all does."""
    results = record["results"]
    if (one := results.get("one_network")) is None:
        return ""
    rows = range(len(results["original_accuracy"]))
    agreement = max(value(point, results, "agreement", rows) for point in results["codes"]["sane"])
    alone = value(one, results, "agreement", rows)
    than = "more than" if agreement > alone else "no more than"
    return (
        f" The predictions of networks from SANE agree with those of the originals on at most {agreement:.3f} of the "
        f"images, {than} those of one training network in place of all ({alone:.3f})."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    records = load_records(root / "runs" / "paper" / "rates")
    if not records:
        return {"verdict": "", "areas": "", "rates": ""}
    return {"verdict": verdict_block(records), "areas": area_block(records), "rates": table_block(records)}
