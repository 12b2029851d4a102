"""Loss barrier on the straight line between networks from different seeds, before and after weight matching.

    python benchmarks/barrier.py --images digits ../shared/data/images/mnist.npz --output runs/benchmarks/barrier.json

For each width, pairs of ReLU networks are trained from different initialisations on different orders of the images.
The symmetries are traced (`trace_permutations`), one network of each pair is matched to the other, and both are
interpolated: `loss((1 - a) A + a P(B))` against the mixture of the two losses. The largest excess over that mixture is
the barrier (Ainsworth et al. 2022, arXiv:2209.04836, section 2). Several minutes on 2 cores.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import cnn_digits, mlp
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData, load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._failures import run_script
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry.tracing._trace import trace_permutations

STEPS = 21  # points on the line, both ends included


def architecture(kind: str, width: int, data: ImageData) -> ZooConfig:
    """An MLP with two hidden layers of `width` units, or a CNN with three convolutions of `width` channels."""
    shape = {"num_channels": data.num_channels, "image_size": data.image_size, "num_labels": data.num_classes}
    if kind == "mlp":
        return mlp(**shape, hidden_sizes=(width, width), activation="relu", initialization="kaiming_uniform")
    kernels = (3, 3, 2) if data.image_size < 16 else (5, 3, 3)
    pools = (1, 2, 1) if data.image_size < 16 else (2, 2, 1)
    return cnn_digits(
        **shape,
        conv_channels=(width, width, width),
        kernel_sizes=kernels,
        pool_sizes=pools,
        hidden_sizes=(2 * width,),
        activation="relu",
    )


def trained(config: ZooConfig, data: ImageData, count: int, epochs: int, learning_rate: float) -> StackedNetworks:
    """Networks with different initialisations and orders of images."""
    start = StackedNetworks.initialize(config, list(range(count)))
    settings = HyperParameters.repeat(range(count), learning_rate=learning_rate)
    (last,) = train_stacked(config, start.tensors, data, settings, epochs=epochs, train_evaluation_limit=1)
    return StackedNetworks(config, last.tensors)


def line(first: dict[str, Tensor], second: dict[str, Tensor], config: ZooConfig) -> StackedNetworks:
    """Networks on the straight line between two."""
    return StackedNetworks(
        config,
        {
            name: torch.stack(
                [torch.lerp(tensor, second[name], share) for share in torch.linspace(0, 1, STEPS).tolist()]
            )
            for name, tensor in first.items()
        },
    )


def barrier(networks: StackedNetworks, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Largest excess of the loss over the mixture of the ends; accuracy in the middle."""
    loss, accuracy = networks.evaluate(images, labels)
    mixture = torch.lerp(loss[0], loss[-1], torch.linspace(0, 1, STEPS))
    return {"barrier": (loss - mixture).max().item(), "middle_accuracy": accuracy[STEPS // 2].item()}


def share(before: float, after: float) -> float:
    """Share of a barrier that remains after matching; NaN if there was none."""
    return after / before if before > 0 else math.nan


def compare(networks: StackedNetworks, spec: PermutationSpec, data: ImageData, limit: int) -> dict[str, Any]:
    """Barriers of all pairs, before and after matching, on the first `limit` training and test images."""
    config = networks.config
    assert isinstance(config, ZooConfig)
    found: dict[str, dict[str, list[float]]] = {}
    for pair in range(networks.num_models // 2):
        first, second = networks.state_dict(2 * pair), networks.state_dict(2 * pair + 1)
        aligned = spec.apply(second, match_weights(spec, first, second))
        for when, other in (("before", second), ("after", aligned)):
            mixed = line(first, other, config)
            for split in ("train", "test"):
                for name, value in barrier(mixed, *(part[:limit] for part in data.split(split))).items():
                    found.setdefault(f"{split}_{name}", {}).setdefault(when, []).append(value)
    means = {name: {when: sum(v) / len(v) for when, v in values.items()} for name, values in found.items()}
    _, accuracy = networks.evaluate(*data.split("test"))
    return {
        "free_permutations": len(spec.generators),
        "test_accuracy_of_the_ends": accuracy.mean().item(),
        "mean": means,
        "pairs": found,
        "remaining_share": {split: share(**means[f"{split}_barrier"]) for split in ("train", "test")},
    }


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results for all data, kinds of networks and widths, and descriptions of the data."""
    results: dict[str, Any] = {}
    used: dict[str, Any] = {}
    for source in arguments.images:
        data = load_images(source, train_limit=arguments.train_limit, test_limit=arguments.test_limit)
        used[data.name] = {split: len(data.split(split)[0]) for split in ("train", "validation", "test")}
        epochs = arguments.epochs or max(5, 50_000 // len(data.train_images))
        for kind in arguments.kinds:
            for width in arguments.widths:
                config = architecture(kind, width, data)
                networks = trained(config, data, 2 * arguments.pairs, epochs, arguments.learning_rate)
                spec = trace_permutations(networks.model(0), data.train_images[:4])
                row = compare(networks, spec, data, arguments.barrier_images) | {"epochs": epochs}
                results.setdefault(data.name, {}).setdefault(kind, {})[str(width)] = row
                print(f"{data.name} {kind} {width}: {json.dumps(row['mean'])}", flush=True)
    return results, used


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, match, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", nargs="+", default=["digits"], help="digits, or .npz files")
    parser.add_argument("--kinds", nargs="+", choices=["mlp", "cnn"], default=["mlp"])
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="by default at least 5, and about 50,000 images")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--train-limit", type=int, default=10_000)
    parser.add_argument("--test-limit", type=int, default=2_000)
    parser.add_argument("--barrier-images", type=int, default=2_000, help="images per split for points on the line")
    arguments, record = start(parser, argv)
    results, used = measure(arguments)
    return finish(record, results, arguments.output, data=used)


if __name__ == "__main__":
    run_script(main, name="barrier.py")
