"""Measure regions of weight space: independent networks of several datasets, networks fine-tuned from one, adapters.

*Independent* networks are the validation and test runs of zoos, one zoo per dataset. They are compared in weight
space, aligned or not, and in the latent space of a SANE that was not trained on them. *Fine-tuned* networks all
continue one ancestor that was trained on all datasets at once: several per dataset and, as a control, some on shuffled
labels. Points on lines and in hulls are evaluated on test images: directly for one dataset; for tasks and in general,
after refitting their last layer to every dataset (ridge regression on one-hot labels), as Gueta et al.
(arXiv:2302.04863) do.

    python benchmarks/regions.py --zoo zoos/digits zoos/mnist --tasks tasks.json --sane run/model \
        --adapters folder --output FILE
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.analysis._adapter_regions import adapter_points, points_from_gram, product_gram, shared_modules
from hf_sane.analysis._region_networks import align_networks, latent_points
from hf_sane.analysis._region_plots import plot_maps
from hf_sane.analysis._region_zoos import DATA_SET, LabelledNetworks, zoo_networks
from hf_sane.analysis._regions import RegionMap
from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.hub._publish import load_sane
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._image_sources import SPLITS
from hf_sane.networks._images import ImageData, load_zoo_images
from hf_sane.networks._stacked import StackedNetworks, with_settings
from hf_sane.networks._training import train_stacked
from hf_sane.records._failures import run_script
from hf_sane.tokenization._adapter_changes import open_factors
from hf_sane.zoo._dataset import Zoo

TASK, GENERAL, SHUFFLED = "task", "general", "shuffled labels"
RIDGE = 1e-2  # penalty as a share of the mean feature variance
# Attention layers of Stable Diffusion's U-Net in the order in which cloneofsimo's files number them; None:
# feed-forward.
BLOCKS = [
    *(f"down_blocks.{i}.attentions.{j}" for i, j in product((0, 1, 2), (0, 1))),
    *(f"up_blocks.{i}.attentions.{j}" for i, j in product((1, 2, 3), (0, 1, 2))),
    "mid_block.attentions.0",
]
LAYERS = [*(f"attn1.to_{k}" for k in ("q", "k", "v", "out")), None, *(f"attn2.to_{k}" for k in ("q", "k", "v", "out"))]


def fine_tune(
    config: ZooConfig, start: Mapping[str, Tensor], count: int, data: ImageData, *, seed: int, epochs: int, rate: float
) -> dict[str, Tensor]:
    """Continuations of one network with different orders of images: `{name: [count, *shape]}`."""
    tensors = {name: tensor[None].repeat(count, *[1] * tensor.ndim) for name, tensor in start.items()}
    settings = HyperParameters.repeat(range(1000 * seed, 1000 * seed + count), learning_rate=rate)
    (snapshot,) = train_stacked(config, tensors, data, settings, epochs=epochs)
    return snapshot.tensors


def descendants(
    data: Mapping[str, ImageData], config: ZooConfig, tasks: Mapping[str, str], arguments: argparse.Namespace
) -> LabelledNetworks:
    """Train an ancestor on all datasets at once, then fine-tune it on each, with true and with shuffled labels."""
    joined: dict[str, Any] = {
        f"{split}_{part}": torch.cat([getattr(images, f"{split}_{part}") for images in data.values()])
        for split, part in product(SPLITS, ("images", "labels"))
    }
    everything = replace(next(iter(data.values())), name="all", **joined)
    first = StackedNetworks.initialize(config, [arguments.seed]).state_dict(0)
    trained = fine_tune(config, first, 1, everything, seed=0, epochs=arguments.ancestor_epochs, rate=3e-3)
    ancestor = {name: tensor[0] for name, tensor in trained.items()}
    parts: list[dict[str, Tensor]] = []
    labels: dict[str, list[str]] = {DATA_SET: [], TASK: [], GENERAL: []}
    for number, (name, images) in enumerate(data.items(), start=1):
        mixed = images.train_labels[torch.randperm(len(images.train_labels), generator=_generator(number))]
        for shuffled, count in ((False, arguments.networks), (True, arguments.shuffled_networks)):
            source = replace(images, train_labels=mixed) if shuffled else images
            seed = number + 100 * shuffled
            parts.append(fine_tune(config, ancestor, count, source, seed=seed, epochs=arguments.epochs, rate=1e-3))
            labels[DATA_SET] += [SHUFFLED if shuffled else name] * count
            labels[TASK] += [SHUFFLED if shuffled else tasks[name]] * count
            labels[GENERAL] += [SHUFFLED if shuffled else "true labels"] * count
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return LabelledNetworks(config, tensors, labels, [str(index) for index in range(len(labels[TASK]))])


def refitted_accuracy(networks: StackedNetworks, data: ImageData) -> Tensor:
    """Test accuracy `[M]` with a last layer that ridge regression fits to the training images of a data set."""
    assert isinstance(networks.config, ZooConfig)
    width = networks.tensors["classifier.weight"].shape[2]
    identity = torch.eye(width).expand(networks.num_models, width, width)
    changed = {"classifier.weight": identity, "classifier.bias": torch.zeros(networks.num_models, width)}
    names = {str(index): f"feature {index}" for index in range(width)}
    outputs = {"num_labels": width, "id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    body = StackedNetworks(with_settings(networks.config, **outputs), {**networks.tensors, **changed})
    train, test = (body.logits(data.split(name)[0]).double() for name in ("train", "test"))
    mean = train.mean(dim=1, keepdim=True)
    train, test = train - mean, test - mean
    wanted = F.one_hot(data.train_labels, data.num_classes).double()
    share = wanted.mean(dim=0)
    scale = train.square().mean(dim=(1, 2))[:, None, None] * train.shape[1]
    gram = train.mT @ train + RIDGE * scale * torch.eye(width, dtype=torch.float64) + 1e-12 * torch.eye(width)
    solved = torch.linalg.solve(gram, train.mT @ (wanted - share))
    return ((test @ solved + share).argmax(dim=2) == data.test_labels).double().mean(dim=1)


def describe(space: RegionMap, levels: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Distances within and between regions, and nearest regions, for every level with several regions."""
    return {
        level: {
            "distances": space.group_distances(level, generator=_generator(seed)).to_dict(),
            "nearest_centroid": space.classify(level, rule="centroid").to_dict(),
            "nearest_neighbour": space.classify(level, rule="neighbour").to_dict(),
        }
        for level in levels
        if len(set(space.labels[level])) > 1
    }


def interiors(
    space: RegionMap,
    networks: LabelledNetworks,
    data: Mapping[str, ImageData],
    levels: Sequence[str],
    *,
    num_points: int,
    seed: int,
) -> dict[str, Any]:
    """Scores on the datasets of every region for points inside and outside it."""
    found: dict[str, Any] = {}
    for level in levels:
        for name in dict.fromkeys(networks.labels[level]):
            if name == SHUFFLED:
                continue
            pairs = zip(networks.labels[level], networks.labels[DATA_SET], strict=True)
            own = dict.fromkeys(data_set for label, data_set in pairs if label == name)

            def score(points: Tensor, own: Mapping[str, None] = own, level: str = level) -> Tensor:
                stack = networks.at(points)
                measure: Callable[[ImageData], Tensor] = (
                    (lambda images: stack.evaluate(*images.split("test"))[1])
                    if level == DATA_SET
                    else (lambda images: refitted_accuracy(stack, images))
                )
                return torch.stack([measure(data[key]) for key in own]).mean(dim=0)

            scores = space.score_region(level, name, score, num_points=num_points, generator=_generator(seed))
            found.setdefault(level, {})[name] = scores.to_dict()
    return found


def adapter_report(folder: Path) -> dict[str, Any]:
    """Distances between LoRA adapters of Stable Diffusion, and between the layers of each.

    Every adapter is the only one of its kind, so there are no regions of adapters; but each has many layers. Points
    are changes of layers of one shape, scaled to unit length. The question is whether the nearest one belongs to the
    same adapter, or to the same place in another.
    """
    adapters = {path.stem: _attention(open_factors(path)) for path in sorted(folder.glob("*.safetensors"))}
    modules = shared_modules(adapters)
    distances = RegionMap(adapter_points(adapters), {"adapter": list(adapters)}).distances("cosine")
    shapes: dict[tuple[int, int], list[str]] = {}
    for module in modules:
        first, second = adapters[next(iter(adapters))][module]
        shapes.setdefault((len(second), first.shape[1]), []).append(module)
    found: dict[str, Any] = {}
    for shape, members in shapes.items():
        layers = {f"{name} {module}": adapters[name][module] for name in adapters for module in members}
        gram = product_gram(layers)
        norms = gram.diagonal().sqrt()
        labels = {
            "adapter": [name for name in adapters for _ in members],
            "layer": [module for _ in adapters for module in members],
            "kind": [module.rpartition(".to_")[2] for _ in adapters for module in members],
        }
        space = RegionMap(points_from_gram(gram / (norms[:, None] * norms)), labels)
        levels = {level: space.classify(level, rule="neighbour") for level in labels if len(set(labels[level])) > 1}
        ratio = space.group_distances("adapter", num_shuffles=199, generator=_generator(0))
        found[f"{shape[0]} x {shape[1]}"] = {
            "layers": len(members),
            "distance_ratio_of_adapters": ratio.ratio,
            "p_value": ratio.p_value,
            "nearest_neighbour": {level: {"accuracy": r.accuracy, "chance": r.chance} for level, r in levels.items()},
        }
    return {
        "adapters": list(adapters),
        "shared_layers": len(modules),
        "cosine_distances": distances.tolist(),
        "by_shape": found,
    }


def _attention(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of attention layers by their names in diffusers, for all naming schemes of files."""
    named = {}
    numbered = [layer and f"{block}.transformer_blocks.0.{layer}" for block in BLOCKS for layer in LAYERS]
    for module, pair in factors.items():
        if module.startswith("unet:"):
            name = numbered[int(module.partition(":")[2])]
        else:
            name = None if module.startswith("text_encoder") else module.replace(".processor", "")
        if name is not None:
            named[name] = pair
    return named


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(arguments: argparse.Namespace, tasks: Mapping[str, str]) -> dict[str, Any]:
    """All results of the record; also draws the maps."""
    zoos = [Zoo.load(folder) for folder in arguments.zoos]
    data = {zoo.facts.name: load_zoo_images(zoo.facts) for zoo in zoos}
    held_out = zoo_networks(zoos, groups={TASK: tasks}, splits=("validation", "test"))
    aligned = replace(held_out, tensors=align_networks(held_out.tensors, held_out.spec))
    tuned = descendants(data, held_out.config, tasks, arguments)
    populations = {"independent": held_out, "independent_aligned": aligned, "fine_tuned": tuned}
    spaces = {
        name: RegionMap.from_networks(networks.tensors, networks.labels, runs=networks.runs)
        for name, networks in populations.items()
    }
    if arguments.sane is not None:
        sane = load_sane(arguments.sane)
        for name in ("independent_aligned", "fine_tuned"):
            networks = populations[name]
            points = latent_points(*sane, networks.tensors)
            spaces[f"{name}_latents"] = RegionMap(points, networks.labels, networks.runs)
    report: dict[str, Any] = {"spaces": {}, "interiors": {}}
    for name, space in spaces.items():
        report["spaces"][name] = describe(space, list(space.labels), seed=arguments.seed)
        print(name, {level: found["nearest_centroid"]["accuracy"] for level, found in report["spaces"][name].items()})
    for name, networks in populations.items():
        report["interiors"][name] = interiors(
            spaces[name], networks, data, list(networks.labels), num_points=arguments.points, seed=arguments.seed
        )
    if arguments.picture is not None:
        maps = {
            name.replace("_", " ").replace(" latents", ", SANE latents"): (
                space.project("tsne", seed=arguments.seed),
                space.labels[DATA_SET],
            )
            for name, space in spaces.items()
        }
        plot_maps(maps, arguments.picture, method="t-SNE; one dot per network")
    if arguments.adapters is not None:
        report["adapters"] = adapter_report(arguments.adapters)
    return report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, draw, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--points": "--num-points"})
    parser.add_argument(
        "--zoo", dest="zoos", nargs="+", required=True, help="zoo folders or Hub repo ids of one architecture"
    )
    parser.add_argument("--tasks", required=True, help="JSON object: data set to task")
    parser.add_argument("--sane", help="SANE folder or Hub repo id")
    parser.add_argument("--adapters", type=Path, help="folder of LoRA files of Stable Diffusion")
    parser.add_argument("--num-models", dest="networks", type=int, default=16, help="fine-tuned networks per dataset")
    parser.add_argument("--shuffled-networks", type=int, default=4, help="the same on shuffled labels")
    parser.add_argument("--ancestor-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning")
    parser.add_argument(
        "--num-points", dest="points", type=int, default=40, help="points on lines, and in the hull, of every region"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="PNG of the maps to write")
    arguments, record = start(parser, argv, hidden=("picture",))
    report = measure(arguments, json.loads(arguments.tasks))
    print(json.dumps(report["interiors"], indent=2))
    facts = {"split": "independent networks: validation and test runs; scores: test images"}
    return finish(record, report, arguments.output, data=facts)


if __name__ == "__main__":
    run_script(main, name="regions.py")
