"""Simulate scanning, importing, embedding and pre-training on 100,000 networks with 1 TB of tokens.

    python benchmarks/collection_plan.py --output runs/benchmarks/collection_plan.json \
        --plot docs/results/collection_plan.png

Costs per network and per byte are those that `collection_costs.py` measured; sizes of networks are log-normal. The
collection is divided into parts, one command each. A worker takes the next part when it has finished one, and is
killed at random moments, after which it starts the part again. The simulation says how many networks a part should
have, how long everything takes, and how much of it is done twice. Less than a minute.
"""

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from running import finish, new_parser, start

from hf_sane.analysis._pictures import PALETTE, label_ends, make_figure, save_picture
from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import check_may_replace

COSTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "collection_costs.json"
KEEPS = {"scan": False, "import": True, "embed": False}  # whether a killed command keeps its finished networks
HOUR, DAY = 3600.0, 86400.0
PARTS = (100, 300, 1_000, 3_000, 10_000)  # networks
Cost = Mapping[str, Mapping[str, float]]  # seconds, read, written, memory: each fixed, per_network and per_byte


@dataclass(frozen=True)
class Machine:
    """Workers, their disk, and how often they fail.

    Attributes:
        workers: Processes with one thread each.
        bandwidth: Bytes per second that all of them can read and write together.
        failures_per_day: Expected number of times that a worker is killed in a day of work.
    """

    workers: int
    bandwidth: float
    failures_per_day: float


@dataclass(frozen=True)
class Outcome:
    """Resources that a step needs.

    Attributes:
        hours: From the start to the end of the last part.
        hours_lost: Hours of all workers on work that was thrown away.
        read: Bytes that are read.
        written: Bytes that are written.
        memory: Largest memory of a worker, in bytes; `None` if it depends on settings.
        failures: How often a worker is killed.
    """

    hours: float
    hours_lost: float
    read: float
    written: float
    memory: float | None
    failures: int


def draw_sizes(networks: int, total: float, sigma: float, seed: int, largest: float = math.inf) -> np.ndarray:
    """Bytes of each network, log-normal up to `largest`, with about the given sum."""
    drawn = np.random.default_rng(seed).lognormal(0.0, sigma, networks)
    return np.minimum(drawn * (total / drawn.sum()), largest)


def simulate(
    sizes: np.ndarray, cost: Cost, machine: Machine, *, networks_per_part: int, keeps: bool, seed: int = 0
) -> Outcome:
    """Simulate one step, part by part.

    Args:
        sizes: `[M]` bytes of each network.
        cost: Costs of the step.
        machine: The machine.
        networks_per_part: Networks of one command.
        keeps: Whether a command that was killed continues after the last finished network, or starts anew.
        seed: Seed of the moments at which workers are killed.
    """
    generator = np.random.default_rng(seed)
    each = {
        kind: cost[kind]["per_network"] + cost[kind]["per_byte"] * sizes for kind in ("seconds", "read", "written")
    }
    traffic = (each["read"] + each["written"]) * machine.workers / machine.bandwidth
    seconds = np.maximum(each["seconds"], traffic)
    startup = cost["seconds"]["fixed"]
    free = [0.0] * machine.workers  # times at which workers are free
    lost = read = written = 0.0
    failures = 0
    for first in range(0, len(sizes), networks_per_part):
        part = slice(first, first + networks_per_part)
        ends = np.cumsum(seconds[part])  # of the networks, from the beginning of the part
        now, done = heapq.heappop(free), 0
        while done < len(ends):
            begun = ends[done - 1] if done else 0.0
            lives = generator.exponential(DAY / machine.failures_per_day) if machine.failures_per_day else math.inf
            reached = int(np.searchsorted(ends, begun + lives - startup, side="right"))
            is_whole = reached >= len(ends)
            reached = max(min(reached, len(ends)), done)
            took = startup + ends[-1] - begun if is_whole else lives
            for kind in ("read", "written"):
                moved = cost[kind]["fixed"] + each[kind][part][done:reached].sum()
                read, written = (read + moved, written) if kind == "read" else (read, written + moved)
            if not is_whole:
                failures += 1
                useful = float(ends[reached - 1] - begun) if keeps and reached > done else 0.0
                lost += took - useful
            now += took
            done = reached if is_whole or keeps else 0
        heapq.heappush(free, now)
    memory = cost["memory"]
    return Outcome(
        hours=max(free) / HOUR,
        hours_lost=lost / HOUR,
        read=read,
        written=written,
        memory=memory["fixed"] + memory["per_network"] * networks_per_part + memory["per_byte"] * float(sizes.max()),
        failures=failures,
    )


def simulate_epoch(sizes: np.ndarray, cost: Cost, machine: Machine, restart: Mapping[str, float]) -> Outcome:
    """One epoch of pre-training on a stream: processes share the steps, and each reads the whole stream.

    Args:
        sizes: `[M]` bytes of each network.
        cost: Costs of pre-training, with one process.
        machine: The machine; all processes stop if one is killed.
        restart: `seconds` of work between two checkpoints, and `read` bytes of a restart.
    """
    each = {kind: cost[kind]["per_network"] * len(sizes) + cost[kind]["per_byte"] * sizes.sum() for kind in cost}
    read = each["read"] * machine.workers
    work = max(each["seconds"] / machine.workers, read / machine.bandwidth)
    failures = work / DAY * machine.failures_per_day * machine.workers
    lost = failures * (cost["seconds"]["fixed"] + restart["seconds"] / 2)
    return Outcome(
        hours=(cost["seconds"]["fixed"] + work + lost) / HOUR,
        hours_lost=lost * machine.workers / HOUR,
        read=read + failures * restart["read"] * machine.workers,
        written=each["written"],
        memory=None,  # of the shuffle buffer
        failures=round(failures),
    )


def plan(sizes: np.ndarray, measured: Mapping[str, Any], machine: Machine, seed: int) -> dict[str, Any]:
    """Every step with every size of parts, and the size that takes the fewest hours."""
    found: dict[str, Any] = {}
    for step, keeps in KEEPS.items():
        cost = measured["costs"][step]
        outcomes = {
            size: asdict(simulate(sizes, cost, machine, networks_per_part=size, keeps=keeps, seed=seed))
            for size in PARTS
            if size <= len(sizes)
        }
        best = min(outcomes, key=lambda size: outcomes[size]["hours"])
        found[step] = {"parts": {str(size): outcome for size, outcome in outcomes.items()}, "best": best}
    return found


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Hours against the size of parts, one curve per step."""
    figure, (axes,) = make_figure(7, 4)
    ends = []
    for (step, found), colour in zip(results["steps"].items(), PALETTE, strict=False):
        sizes = [int(size) for size in found["parts"]]
        hours = [outcome["hours"] for outcome in found["parts"].values()]
        axes.plot(sizes, hours, marker="o", markersize=3, color=colour)
        ends.append((step, sizes[-1], hours[-1], colour))
    axes.set(xscale="log", yscale="log", xlabel="networks per command", ylabel="hours")
    label_ends(axes, ends)
    save_picture(figure, path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Simulate all steps."""
    parser = new_parser(__doc__, former={"--checkpoint-minutes": "--checkpoint-every-minutes"})
    parser.add_argument("--costs", type=Path, default=COSTS, help="record of collection_costs.py")
    parser.add_argument("--num-models", dest="networks", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=1000.0, help="tokens of all networks")
    parser.add_argument("--largest", type=float, default=500.0, help="megabytes of the largest network")
    parser.add_argument("--buffer", type=int, default=100, help="rows of the shuffle buffer, and of the sample")
    parser.add_argument("--sigma", type=float, default=1.5, help="standard deviation of the logarithms of sizes")
    parser.add_argument("--workers", type=int, default=16, help="processes with one thread each")
    parser.add_argument("--bandwidth", type=float, default=500.0, help="megabytes per second of all workers together")
    parser.add_argument("--failures", type=float, default=2.0, help="how often a worker is killed in a day")
    parser.add_argument(
        "--checkpoint-every-minutes",
        dest="checkpoint_minutes",
        type=float,
        default=10.0,
        help="between checkpoints of pre-training",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="PNG file")
    options, record = start(parser, argv, hidden=("plot",))
    if options.plot is not None:
        check_may_replace(options.plot, PICTURE)
    measured = json.loads(options.costs.read_text(encoding="utf-8"))["results"]
    sizes = draw_sizes(options.networks, options.gigabytes * 1e9, options.sigma, options.seed, options.largest * 1e6)
    machine = Machine(options.workers, options.bandwidth * 1e6, options.failures)
    restart = {"seconds": 60 * options.checkpoint_minutes, "read": 2 * options.buffer * float(sizes.mean())}
    results = {
        "sizes": {"mean": float(sizes.mean()), "median": float(np.median(sizes)), "largest": float(sizes.max())},
        "machine": asdict(machine),
        "steps": plan(sizes, measured, machine, options.seed),
        "epoch": asdict(simulate_epoch(sizes, measured["costs"]["pretrain"], machine, restart)),
    }
    if options.plot is not None:
        draw(results, options.plot)
    return finish(record, results, options.output, shows=options.output is None)


if __name__ == "__main__":
    run_script(main, name="collection_plan.py")
