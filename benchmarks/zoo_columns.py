"""Compare read rates of token columns; they are the reason why a zoo stores one flat list of float32 per network.

    python benchmarks/zoo_columns.py --output runs/benchmarks/zoo_columns.json

The same random networks in four layouts, written to parquet and read with `datasets`: single rows, slices of 32 rows,
streamed rows, and 50-token windows read in place from the memory-mapped Arrow column (flat list only; the others read
the whole row for a window). Medians over rounds. About a minute on 2 cores.
"""

import statistics
import tempfile
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, Dataset, Features, List, Value, disable_progress_bars, load_dataset
from running import finish, new_parser, start

from hf_sane.records._failures import run_script

TOKENS, TOKEN_DIM, WINDOW = 50, 289, 50


def columns() -> dict[str, tuple[Features, Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]]:
    """For each layout, its features, and functions that store a network and read it as `[tokens, token_dim]`."""
    shape = (-1, TOKEN_DIM)
    return {
        "flat_list": (List(Value("float32")), lambda t: t.reshape(-1), lambda v: np.asarray(v).reshape(shape)),
        "array_2d": (Array2D((None, TOKEN_DIM), "float32"), lambda t: t, np.asarray),
        "nested_list": (List(List(Value("float32"))), lambda t: t.tolist(), np.asarray),
        "binary": (Value("binary"), lambda t: t.tobytes(), lambda v: np.frombuffer(v, np.float32).reshape(shape)),
    }


def seconds_of(work: Callable[[], Any], items: int) -> float:
    """Seconds per item."""
    return timeit.timeit(work, number=1) / items


def measure_column(name: str, networks: np.ndarray, folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds per row for each way to read."""
    feature, store, read = columns()[name]
    rows = {"tokens": [store(network) for network in networks]}
    path = folder / f"{name}.parquet"
    Dataset.from_dict(rows, features=Features({"tokens": feature})).to_parquet(path)
    dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    dataset = dataset.with_format("numpy") if name != "binary" else dataset
    stream = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    stream = stream.with_format("numpy") if name != "binary" else stream
    assert np.allclose(read(dataset[3]["tokens"]), networks[3])
    count = len(networks)

    def windows_in_place() -> None:
        chunk = dataset.data.column("tokens").chunks[0]
        values = chunk.values.to_numpy(zero_copy_only=True).reshape(count, TOKENS, TOKEN_DIM)
        for index in range(count):
            values[index, :WINDOW].copy()

    ways: dict[str, Callable[[], Any]] = {
        "row": lambda: [read(dataset[index]["tokens"]) for index in range(count)],
        "slice_of_32": lambda: [
            [read(row) for row in dataset[start : start + 32]["tokens"]] for start in range(0, count, 32)
        ],
        "streamed_row": lambda: [read(row["tokens"]) for row in stream],
    }
    if name == "flat_list":
        ways["window_in_place"] = windows_in_place
    return {
        way: statistics.median([seconds_of(work, count) for _ in range(rounds + 1)][1:]) for way, work in ways.items()
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--num-models", dest="networks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments, record = start(parser, argv)
    disable_progress_bars()
    networks = np.random.default_rng(0).normal(size=(arguments.networks, TOKENS, TOKEN_DIM)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        seconds = {name: measure_column(name, networks, Path(folder), arguments.rounds) for name in columns()}
    for name, row in seconds.items():
        print(f"{name:12}" + "".join(f"  {way} {1e6 * value:.0f} us" for way, value in row.items()))
    flat = seconds["flat_list"]
    slowest = seconds["nested_list"]
    results = {
        "seconds_per_row": seconds,
        "ratios": {f"nested_over_flat_{way}": slowest[way] / flat[way] for way in slowest}
        | {"row_over_window_in_place": flat["row"] / flat["window_in_place"]},
        "work": {"networks": arguments.networks, "tokens": TOKENS, "token_dim": TOKEN_DIM, "window": WINDOW},
    }
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="zoo_columns.py")
