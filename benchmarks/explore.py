"""Measure how long the explorer takes to show many networks, in headless Chromium.

    python benchmarks/explore.py --output runs/benchmarks/explore.json

The networks are those of a tiny zoo, repeated, with random embeddings. Seconds are from the request for the page to
the drawn map, and for drawing it alone. About a minute.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from running import finish, new_parser, start

from hf_sane.explorer._atlas import Atlas
from hf_sane.explorer._page import build_page, serve
from hf_sane.records._failures import run_script
from hf_sane.workflows.doctor import make_tiny_zoo

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the browser is driven
from browser import open_browser

WIDTH = 64  # of the embeddings
CANVAS = "document.querySelector('#map canvas')"


def many_networks(folder: Path, count: int) -> Atlas:
    """An atlas of so many networks."""
    _, zoo, _ = make_tiny_zoo(folder)
    train = zoo.splits["train"]
    repeated = replace(zoo, splits={"train": train.select(np.arange(count) % len(train))})
    generator = torch.Generator().manual_seed(0)
    return Atlas.of(repeated, lambda networks: torch.randn(len(networks), WIDTH, generator=generator))


def measure(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Seconds to make the map, to load the page, and to draw."""
    began = time.perf_counter()
    atlas = many_networks(folder, count)
    made = time.perf_counter()
    page = build_page(atlas, "benchmark")
    address = serve(page)
    found: dict[str, list[float]] = {"load_page": [], "draw": []}
    try:
        with open_browser(folder / "profile") as browser:
            for _ in range(rounds):
                start_of_round = time.perf_counter()
                browser.open("about:blank")
                browser.open(address)
                browser.wait(f"{CANVAS}?.dataset.drawn === '{count}'")
                found["load_page"].append(time.perf_counter() - start_of_round)
                found["draw"].append(float(browser.run(f"{CANVAS}.dataset.milliseconds")) / 1000)
    finally:
        page.close(verbose=False)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in found.items()}
    return {"networks": count, "make_zoo_and_map_seconds": made - began, **medians}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run, print, and on request save."""
    parser = new_parser(__doc__)
    parser.add_argument("--num-models", dest="networks", type=int, default=10_000, help="Networks on the map.")
    parser.add_argument("--rounds", type=int, default=5, help="Times that the page is loaded.")
    arguments, record = start(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.networks, arguments.rounds)
    for name, value in results.items():
        print(f"{name.replace('_', ' ')}: {value:.3g}")
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="explore.py")
