"""Measure the gain of stochastic weight averaging on architectures of zoos, at equal numbers of epochs.

Every network is trained for `--epochs` at a constant learning rate, and then for `--cycles` times `--cycle-epochs`, at
a constant rate or in cycles. The average over the second phase is compared with the last weights of the same runs, and
with training of the same total length under a one-cycle schedule from the same initialisation. The learning rate of
each method is chosen on validation images; results are reported on test images.

    python benchmarks/swa_gain.py --output runs/benchmarks/swa_gain.json
"""

import argparse
from collections.abc import Sequence
from typing import Any

from running import finish, new_parser, start
from torch import Tensor

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import cifar_resnet, cnn_digits
from hf_sane.merging._swa import train_stacked_swa
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._failures import run_script

# Optimizer and candidates for the learning rate.
ARCHITECTURES: dict[str, tuple[ZooConfig, str, tuple[float, ...]]] = {
    "cnn_digits": (cnn_digits(), "adam", (3e-3, 1e-2)),
    "resnet20_narrow": (cifar_resnet(20, width=4, num_channels=1), "sgd", (3e-2, 1e-1)),
}
WAYS = {
    "swa_constant": "swa_constant_last",  # the average, and the last weights of the same runs
    "swa_cyclical": "swa_cyclical_last",
}


def run_ways(
    config: ZooConfig, optimizer: str, learning_rate: float, data: ImageData, arguments: argparse.Namespace
) -> dict[str, StackedNetworks]:
    """Train with one learning rate and every method."""
    start = StackedNetworks.initialize(config, range(arguments.seeds))
    settings = HyperParameters.repeat(range(arguments.seeds), learning_rate=learning_rate, optimizer=optimizer)
    total = arguments.epochs + arguments.cycles * arguments.cycle_epochs

    def trained(networks: StackedNetworks, epochs: int, schedule: str) -> StackedNetworks:
        (snapshot,) = train_stacked(
            config, networks.tensors, data, settings, epochs=epochs, schedule=schedule, train_evaluation_limit=32
        )
        return StackedNetworks(config, snapshot.tensors)

    first = trained(start, arguments.epochs, "constant")
    found = {"one_cycle": trained(start, total, "one_cycle")}
    # Another order of images than in the first phase.
    later = HyperParameters.repeat(
        range(10_000, 10_000 + arguments.seeds), learning_rate=learning_rate, optimizer=optimizer
    )
    for kind in ("constant", "cyclical"):
        result = train_stacked_swa(
            first, data, later, cycles=arguments.cycles, cycle_epochs=arguments.cycle_epochs, kind=kind
        )
        found |= {f"swa_{kind}": result.averaged, f"swa_{kind}_last": result.last}
    return found


def describe(values: Tensor) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the values."""
    deviation = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": deviation, "per_seed": values.tolist()}


def measure(name: str, data: ImageData, arguments: argparse.Namespace) -> dict[str, Any]:
    """All methods for one architecture, each with the best learning rate on validation images."""
    config, optimizer, rates = ARCHITECTURES[name]
    by_rate = {rate: run_ways(config, optimizer, rate, data, arguments) for rate in rates}
    report: dict[str, Any] = {}
    scores: dict[str, tuple[Tensor, Tensor]] = {}
    for way in ("one_cycle", *WAYS):
        rate = max(rates, key=lambda rate, way=way: by_rate[rate][way].evaluate(*data.split("validation"))[1].mean())
        for shown in (way, *([WAYS[way]] if way in WAYS else [])):
            scores[shown] = by_rate[rate][shown].evaluate(*data.split("test"))
            loss, accuracy = scores[shown]
            report[shown] = {"learning_rate": rate, "test_accuracy": describe(accuracy), "test_loss": describe(loss)}
    gains = {}
    for way, last in WAYS.items():
        for label, other in (("last_weights", last), ("one_cycle", "one_cycle")):
            gains[f"{way}_over_{label}"] = describe(scores[way][1] - scores[other][1])
    return {"ways": report, "accuracy_gain": gains}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--seeds": "--num-seeds"})
    parser.add_argument("--num-seeds", dest="seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20, help="before averaging starts")
    parser.add_argument("--cycles", type=int, default=10, help="networks per average")
    parser.add_argument("--cycle-epochs", type=int, default=2, help="epochs between them")
    parser.add_argument("--train-limit", type=int, help="training images; by default all 1,000")
    parser.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    arguments, record = start(parser, argv)
    data = load_images("digits", train_limit=arguments.train_limit)
    counts = {split: len(data.split(split)[1]) for split in ("train", "validation", "test")}
    report = {name: measure(name, data, arguments) for name in arguments.architectures}
    return finish(record, report, arguments.output, data={"images": data.name, **counts}, shows=True)


if __name__ == "__main__":
    run_script(main, name="swa_gain.py")
