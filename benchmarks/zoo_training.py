"""Compare training 128 CNN-s at once with a plain loop over networks, in (images x networks) per second.

Also for a user's own module with the same layers, which the library runs under `torch.vmap`.

    python benchmarks/zoo_training.py --output runs/benchmarks/zoo_training.json
    OMP_NUM_THREADS=1 python benchmarks/zoo_training.py --num-models 64 --plain-networks 16 --output modules.json

The plain loop has one module and one `torch.optim.Adam` per network: zero_grad, forward, backward, step. Both sides
train the same networks on the same batches, in turn, in one process and under one allocator; medians over rounds.
The images are random and of size 28x28, since their content does not affect the time. About three minutes on 2 cores.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from running import finish, new_parser, start
from torch import nn

from hf_sane.architectures.presets import cnn_s
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData
from hf_sane.networks._modules import ModuleArchitecture
from hf_sane.networks._stacked import StackedNetworks, logits_of
from hf_sane.networks._training import train_stacked
from hf_sane.records._failures import run_script

LEARNING_RATE = 1e-3


class OwnCNN(nn.Sequential):
    """A user's module with the layers of CNN-s."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh()),
            *(nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh()),
            *(nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10)),
        )


def random_images(count: int) -> ImageData:
    """A task with the shapes of MNIST."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    labels[:10] = torch.arange(10)
    few = (images[:10], labels[:10])
    return ImageData("random", images, labels, *few, *few, num_classes=10)


def stacked_seconds(networks: StackedNetworks, data: ImageData, batch_size: int) -> float:
    """One epoch of all networks at once."""
    settings = HyperParameters.repeat(range(networks.num_models), learning_rate=LEARNING_RATE)
    marks: list[float] = []
    list(
        train_stacked(
            networks.config,
            networks.tensors,
            data,
            settings,
            epochs=2,
            batch_size=batch_size,
            train_evaluation_limit=10,
            on_epoch=lambda _: marks.append(time.perf_counter()),
        )
    )
    return marks[1] - marks[0]


def plain_seconds(networks: StackedNetworks, data: ImageData, batch_size: int, count: int) -> float:
    """One epoch of the first `count` networks, one at a time."""
    models = [networks.model(index).train() for index in range(count)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=LEARNING_RATE) for model in models]
    started = time.perf_counter()
    for model, optimizer in zip(models, optimizers, strict=True):
        order = torch.randperm(len(data.train_images))
        for picked in order.split(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(logits_of(model(data.train_images[picked])), data.train_labels[picked])
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def measure(num_networks: int, num_plain: int, batch_size: int, batches: int, rounds: int) -> dict[str, Any]:
    """Medians of both methods, per network."""
    data = random_images(batch_size * batches)
    seeds = list(range(num_networks))
    kinds = {
        "": StackedNetworks.initialize(cnn_s(dropout=None), seeds),
        "own_": ModuleArchitecture("OwnCNN", OwnCNN, OwnCNN()).fresh(seeds),
    }
    assert len({sum(tensor[0].numel() for tensor in networks.tensors.values()) for networks in kinds.values()}) == 1
    seconds: dict[str, list[float]] = {f"{kind}{way}": [] for kind in kinds for way in ("stacked", "plain")}
    for _ in range(rounds + 1):  # the first round allocates
        for kind, networks in kinds.items():
            seconds[f"{kind}stacked"].append(stacked_seconds(networks, data, batch_size) / num_networks)
            seconds[f"{kind}plain"].append(plain_seconds(networks, data, batch_size, num_plain) / num_plain)
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    images = batch_size * batches
    return {
        "ratios": {
            "stacked_over_plain": medians["plain"] / medians["stacked"],
            "own_stacked_over_own_plain": medians["own_plain"] / medians["own_stacked"],
            "own_stacked_over_stacked": medians["stacked"] / medians["own_stacked"],
        },
        "images_times_networks_per_second": {name: images / value for name, value in medians.items()},
        "seconds_per_network": seconds,
        "work": {"networks": num_networks, "plain_networks": num_plain, "batch_size": batch_size, "batches": batches},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--num-models", dest="networks", type=int, default=128)
    parser.add_argument("--plain-networks", type=int, default=32, help="networks of the plain loop")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=10, help="updates per round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments, record = start(parser, argv)
    results = measure(
        arguments.networks, arguments.plain_networks, arguments.batch_size, arguments.batches, arguments.rounds
    )
    for name, ratio in results["ratios"].items():
        print(f"{name.replace('_', ' ')}: {ratio:.2f} x")
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="zoo_training.py")
