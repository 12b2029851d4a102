"""docs/results/large_collections.md: measured costs, and the simulated plan for 100,000 networks."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/large_collections.md"
COSTS, PLAN = "collection_costs.json", "collection_plan.json"
MEGABYTE, GIGABYTE, TERABYTE = 1e6, 1e9, 1e12


def _record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _bytes(count: float) -> str:
    for unit, name in ((TERABYTE, "TB"), (GIGABYTE, "GB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count / MEGABYTE:.0f} MB"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def plan_block(folder: Path) -> str:
    """Assumptions, the plan, the costs, and how well they predict."""
    costs, plan = _record(folder, COSTS), _record(folder, PLAN)
    measured, results, hardware = costs["results"], plan["results"], costs["hardware"]
    machine, sizes = results["machine"], results["sizes"]
    rows = []
    for step, found in results["steps"].items():
        best = found["parts"][str(found["best"])]
        rows.append([step, f"{found['best']:,}", *_outcome(best)])
    rows.append(["pretrain, one epoch", "all", *_outcome(results["epoch"])])
    header = ["step", "networks per command", "time", "lost, all workers", "read", "written", "memory", "kills"]
    return (
        f"Assumptions ([record](../../runs/benchmarks/{PLAN})): sizes are log-normal with a mean of "
        f"{_bytes(sizes['mean'])}, a median of {_bytes(sizes['median'])} and a largest network of "
        f"{_bytes(sizes['largest'])}; {machine['workers']} workers with one thread each share "
        f"{_bytes(machine['bandwidth'])} per second and are killed {machine['failures_per_day']:g} times a day each. "
        "For each step, the number of networks per command with the shortest time:\n\n"
        f"{markdown_table(header, rows, numbers=True)}\n\n"
        f"{_costs_text(measured, hardware)}\n\n{_restart_text(measured)}"
    )


def _outcome(found: dict[str, Any]) -> list[str]:
    return [
        _hours(found["hours"]),
        f"{_hours(found['hours_lost'])}",
        _bytes(found["read"]),
        _bytes(found["written"]),
        "by buffer" if found["memory"] is None else _bytes(found["memory"]),
        f"{found['failures']:,}",
    ]


def _costs_text(measured: dict[str, Any], hardware: dict[str, Any]) -> str:
    rows = []
    for step, cost in measured["costs"].items():
        seconds, used = cost["seconds"], measured["collections"]["mixture"]["steps"][step]
        predicted = measured["predicted"][step]
        ratios = [
            f"{predicted[kind] / used[kind]:.2f}" if used[kind] else "-" for kind in ("seconds", "read", "memory")
        ]
        rows.append(
            [
                step,
                f"{seconds['fixed']:.1f} s",
                f"{1000 * seconds['per_network']:.1f} ms",
                f"{seconds['per_byte'] * GIGABYTE:.1f} s",
                f"{cost['read']['per_byte']:.2f}",
                *ratios,
            ]
        )
    mixture = measured["collections"]["mixture"]
    header = ["step", "start", "per network", "per GB", "bytes read per byte", "seconds", "bytes read", "memory"]
    return (
        f"Costs of one process with one thread on {hardware['cpu']} ([record](../../runs/benchmarks/{COSTS})), in "
        "seconds of the processor. The last three columns are predictions divided by measurements for a mixture of "
        f"{mixture['networks']} other networks ({_bytes(mixture['bytes'])}), to which the costs were not fitted:\n\n"
        f"{markdown_table(header, rows, numbers=True)}"
    )


def _restart_text(measured: dict[str, Any]) -> str:
    imported, mixture = measured["restarts"]["import"], measured["collections"]["mixture"]
    again, whole = _bytes(imported["again"]["read"]), _bytes(mixture["bytes"])
    return (
        f"Restarts: an import of the mixture that was killed after half of its networks read {again} when it was "
        f"repeated, of {whole} in all. Pre-training that is resumed reads its sample and the rows of its buffer "
        "again, and no others. Its memory is that of the rows in both, several times over."
    )


def blocks(root: Path) -> dict[str, str]:
    """The page's block by marker."""
    return {"collection_plan": plan_block(root / "runs" / "benchmarks")}
