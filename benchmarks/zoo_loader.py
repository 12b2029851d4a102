"""Compare the window loader with the training step that it feeds: how many batches it loads during one step.

    python benchmarks/zoo_loader.py --output runs/benchmarks/zoo_loader.json

Both as in the demo: whole networks of 52 tokens of 73, batches of 64, an aligned and a permuted view, noise; SANE of
width 128 with 3+3 layers, forward, backward and AdamW. In turn, in one process; medians over rounds. About a minute on
2 cores.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from running import finish, new_parser, start

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._failures import run_script
from hf_sane.training._preparation import fit_extractor
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import RECIPES, ZooSettings
from hf_sane.zoo.windows._sampler import WindowSampler
from hf_sane.zoo.windows._windows import WindowSettings


def seconds_of(work: Callable[[int], Any], repeats: int) -> float:
    """Mean seconds per call."""
    started = time.perf_counter()
    for index in range(repeats):
        work(index)
    return (time.perf_counter() - started) / repeats


def measure(num_models: int, rounds: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """Build a small zoo, then time batches and steps in turn."""
    sizes: dict[str, Any] = {"num_models": num_models, "epochs": 2, "keep_epochs": [0, 1, 2]}
    arguments = ZooSettings(**RECIPES["seed"], **sizes, progress_bar=False)
    split = build_zoo(arguments, None, folder).splits["train"]
    layout = split.layout(0)
    config = SANEConfig(
        token_dim=layout.token_dim,
        hidden_size=128,
        num_hidden_layers=3,
        latent_dim=64,
        window_size=layout.num_tokens,
        max_positions=layout.max_positions,
    )
    sampler = WindowSampler(
        [split],
        fit_extractor([split], "standardize"),
        layout.num_tokens,
        WindowSettings(batch_size=batch_size),
    )
    model = SANEModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [sampler.batch(index) for index in range(4)]

    def step(index: int) -> None:
        optimizer.zero_grad()
        model(**batches[index % len(batches)]).loss.backward()
        optimizer.step()

    seconds: dict[str, list[float]] = {"batch": [], "step": []}
    for _ in range(rounds + 1):  # the first round allocates memory
        seconds["batch"].append(seconds_of(sampler.batch, 20))
        seconds["step"].append(seconds_of(step, 4))
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    return {
        "ratios": {"step_over_batch": medians["step"] / medians["batch"]},
        "windows_per_second": batch_size / medians["batch"],
        "median_seconds": medians,
        "all_seconds": seconds,
        "work": {"networks": len(split), "tokens": layout.num_tokens, "token_dim": layout.token_dim},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--models": "--num-models"})
    parser.add_argument("--num-models", dest="models", type=int, default=64, help="networks of the zoo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments, record = start(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.models, arguments.rounds, arguments.batch_size, Path(folder) / "zoo")
    print(f"training step over batch: {results['ratios']['step_over_batch']:.1f} x")
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="zoo_loader.py")
