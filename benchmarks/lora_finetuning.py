"""Compare LoRA on sampled networks, full fine-tuning and training from scratch after the same number of steps.

    hf-sane sample --sane demo_output/sane --zoo demo_output/zoos --zoo-config seed --num-samples 5 --images digits \
        --output runs/tmp/sampled
    python benchmarks/lora_finetuning.py --networks runs/tmp/sampled --output runs/lora/finetuning_digits.json

Every method sees the same images in the same order. Its learning rate, and the rank of the adapter, are chosen by the
mean validation accuracy after the last step with the first seed; then all seeds are evaluated on test images. A seed
determines the order of the images, and for networks from scratch also the initialisation. With the defaults, this
takes about 5 minutes and 0.6 GB on 2 CPU cores.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from running import finish, new_parser, start
from torch import nn
from transformers import AutoModelForImageClassification

from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.architectures.presets import build_model
from hf_sane.core._adapters import adapter_size
from hf_sane.networks._images import ImageData, load_images
from hf_sane.records._failures import run_script
from hf_sane.sampling._baselines import SCRATCH_SEED
from hf_sane.sampling._finetuning import StepSettings, add_network_lora, finetune_network
from hf_sane.tokenization._loading import load_model

Prepare = Callable[[ZooPreTrainedModel, int], nn.Module]  # creates the trained model from network and seed
Curve = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Method:
    """A method of training; `choices` are `(name, initial network, learning rate)`."""

    choices: list[tuple[str, Prepare, float]]


def whole(network: ZooPreTrainedModel, seed: int) -> nn.Module:
    """The sampled network with all weights trainable."""
    return deepcopy(network)


def scratch(network: ZooPreTrainedModel, seed: int) -> nn.Module:
    """A fresh network of the same architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SCRATCH_SEED + seed)
        return build_model(network.config)


def with_lora(rank: int) -> Prepare:
    """The sampled network with an adapter of a rank."""
    return lambda network, seed: add_network_lora(deepcopy(network), rank=rank, alpha=2.0 * rank)


def train_all(
    networks: Sequence[ZooPreTrainedModel],
    choice: tuple[str, Prepare, float],
    data: ImageData,
    options: argparse.Namespace,
    seed: int,
) -> list[Curve]:
    """Train every network once; returns accuracies by step."""
    _, prepare, rate = choice
    curves = []
    for index, network in enumerate(networks):
        own_seed = seed * len(networks) + index
        settings = StepSettings(steps=options.steps, batch_size=options.batch_size, learning_rate=rate, seed=own_seed)
        torch.manual_seed(own_seed)  # seed of the random factor of each adapter
        curves.append(finetune_network(prepare(network, own_seed), data, settings, report_at=options.report_at))
    return curves


def measure(networks: Sequence[ZooPreTrainedModel], data: ImageData, options: argparse.Namespace) -> dict[str, Any]:
    """Select settings on validation images with the first seed, then evaluate all seeds on test images."""
    methods = {
        "sampled + LoRA": Method(
            [(f"rank {rank}", with_lora(rank), rate) for rank in options.ranks for rate in options.rates]
        ),
        "sampled + full fine-tuning": Method([("", whole, rate) for rate in options.rates]),
        "scratch": Method([("", scratch, rate) for rate in options.rates]),
    }
    results: dict[str, Any] = {"test_accuracy": {}, "standard_deviation": {}, "search": {}, "chosen": {}}
    steps = sorted({*options.report_at, options.steps})
    for name, method in methods.items():
        tried = [train_all(networks, choice, data, options, options.seeds[0]) for choice in method.choices]
        scores = [mean(curves, options.steps, "validation_accuracy") for curves in tried]
        best = max(range(len(scores)), key=lambda i: scores[i])
        label, _, rate = method.choices[best]
        curves = list(tried[best])
        for seed in options.seeds[1:]:
            curves += train_all(networks, method.choices[best], data, options, seed)
        results["test_accuracy"][name] = {f"{step} steps": mean(curves, step, "test_accuracy") for step in steps}
        results["standard_deviation"][name] = {
            f"{step} steps": statistics.pstdev([curve[step]["test_accuracy"] for curve in curves]) for step in steps
        }
        names = [f"{what} {rate:g}".strip() for what, _, rate in method.choices]
        results["search"][name] = dict(zip(names, scores, strict=True))
        results["chosen"][name] = f"{label}, learning rate {rate:g}".removeprefix(", ")
        print(f"{name}: {results['chosen'][name]}, {results['test_accuracy'][name]}", flush=True)
        if name == "sampled + LoRA":
            results["adapter"] = adapter_size(method.choices[best][1](networks[0], 0))  # type: ignore[arg-type]
    return results | {"networks": len(networks), "runs_of_each_method": len(networks) * len(options.seeds)}


def mean(curves: Sequence[Curve], step: int, measure_name: str) -> float:
    """Over networks and seeds."""
    return statistics.fmean(curve[step][measure_name] for curve in curves)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and write the record."""
    parser = new_parser(__doc__, needs_output=True)
    parser.add_argument("--networks", type=Path, required=True, help="folder of `hf-sane sample`, or of the demo")
    parser.add_argument("--images", default="digits", help="'digits' or the path of an .npz of images")
    parser.add_argument("--image-size", type=int, help="resize the images to this many pixels")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--validation-limit", type=int)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--steps", type=int, default=155)
    parser.add_argument("--report-at", type=int, nargs="+", default=[0, 31])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, record = start(parser, argv, hidden=("networks",))
    limits = {name: getattr(options, name) for name in ("train_limit", "validation_limit", "test_limit", "image_size")}
    data = load_images(options.images, **limits)
    folders = sorted(path.parent for path in options.networks.glob("*/config.json"))
    networks = [load_model(AutoModelForImageClassification, folder) for folder in folders]
    if not networks:
        raise FileNotFoundError(f"no networks in {options.networks}; expected folders that hold a config.json")
    counts = {split: len(data.split(split)[1]) for split in ("train", "validation", "test")}
    results = measure(networks, data, options)
    facts = {"images": data.name, "image_size": data.image_size, "split": counts}
    return finish(record, results, options.output, data=facts)


if __name__ == "__main__":
    run_script(main, name="lora_finetuning.py")
