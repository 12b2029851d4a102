"""docs/results/large_models.md: round trips of checkpoints, and embeddings of networks larger than memory."""

import json
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import markdown_table

PAGE = "docs/results/large_models.md"
MEMORY_GOAL = 1.5e9  # bytes of anonymous memory
THROUGHPUT_GOAL = 0.85  # speed of the encoder alone
DIFFERENCE_GOAL = 1e-5


def _record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _link(name: str) -> str:
    return f"[{name}](../../runs/benchmarks/{name})"


def _reached(value: str, *, reached: bool) -> str:
    return value if reached else f"{value} **(not reached)**"


def round_trip_block(folder: Path) -> str:
    """Round trips of checkpoints."""
    results = _record(folder, "round_trip.json")["results"]
    groups = {**results["groups"], "all": {**results["total"], "failures": [None] * results["total"]["failures"]}}
    rows = [
        [name, *(f"{group[count]:,}" for count in ("files", "tensors", "bytes")), str(len(group["failures"]))]
        for name, group in groups.items()
    ]
    table = markdown_table(["checkpoints", "files", "tensors", "bytes", "files with a difference"], rows, numbers=True)
    return (
        "Every file was encoded and decoded in both token layouts and compared bit by bit. Its tokens read as a "
        f"stream, and the layout read from its header, must agree, too ({_link('round_trip.json')}).\n"
        "\n"
        f"{table}"
    )


def _sane(facts: dict[str, int]) -> str:
    return (
        f"width {facts['hidden_size']}, {facts['num_hidden_layers']} + {facts['num_hidden_layers']} layers, "
        f"windows of {facts['window_size']} tokens of {facts['token_dim']}"
    )


def large_block(folder: Path) -> str:
    """The goals, and a row per network."""
    large, found = _record(folder, "lazy_large.json"), _record(folder, "lazy_throughput.json")
    networks, halo = _record(folder, "lazy_networks.json"), _record(folder, "lazy_halo.json")["results"]["halo"]
    big = large["results"]["networks"]["large"]
    peak = big["peak_anonymous_bytes"]
    difference = halo["largest_difference"]
    goals = [
        [
            f"peak anonymous memory, {big['weight_bytes'] / 1e9:.1f} GB in {big['shards']} shards",
            "below 1.5 GB",
            _reached(f"{peak / 1e9:.2f} GB", reached=peak < MEMORY_GOAL),
            _link("lazy_large.json"),
        ]
    ]
    for part in found["results"]["throughput"].values():
        ratio = part["stream_over_encoder"]
        goals.append(
            [
                "tokens per second, relative to the encoder alone on tokens in memory (SANE of "
                f"{_sane(part['sane'])})",
                "at least 85%",
                _reached(f"{ratio:.0%}", reached=ratio >= THROUGHPUT_GOAL),
                _link("lazy_throughput.json"),
            ]
        )
    goals.append(
        [
            f"encode and decode {halo['tokens']:,} tokens with halo {halo['halo_size']}, batches of "
            f"{', '.join(map(str, halo['batch_sizes']))}: largest difference",
            "at most 1e-5",
            _reached(f"{difference:.1e}", reached=difference <= DIFFERENCE_GOAL),
            _link("lazy_halo.json"),
        ]
    )
    rows = []
    for name, network in {**networks["results"]["networks"], "Llama-like, sharded": big}.items():
        rows.append(
            [
                name,
                f"{network['weights'] / 1e6:,.1f} M",
                f"{network['tokens']:,}",
                f"{network['seconds']:.1f} s",
                f"{network['peak_anonymous_bytes'] / 1e9:.2f} GB",
            ]
        )
    count = large["hardware"]["torch_threads"]
    threads = f"{count} thread{'' if count == 1 else 's'}"
    header = ["network", "weights", "tokens", "time", "peak anonymous memory"]
    note = (
        f"Embeddings of whole networks (random weights) by a SANE of {_sane(large['results']['sane'])}, on "
        f"{large['hardware']['cpu']} with {threads} ({_link('lazy_networks.json')}, "
        f"{_link('lazy_large.json')}). Memory is that of the whole process including PyTorch "
        f"({big['anonymous_bytes_before'] / 1e9:.2f} GB before the largest network was opened)."
    )
    targets = markdown_table(["benchmark", "target", "result", "record"], goals)
    return "\n\n".join([targets, note, markdown_table(header, rows, numbers=True)])


def blocks(root: Path) -> dict[str, str]:
    """The page's blocks by marker."""
    folder = root / "runs" / "benchmarks"
    return {"round_trips": round_trip_block(folder), "large_models": large_block(folder)}
