"""Compare soups, SANE sampling and ensembles made of the same `n` trained networks, without training.

There are two populations: *independent* networks, the best training runs of a zoo, and *fine-tuned* networks, which
continue one of them with different orders of the images. Soups, sampling and noise make one network from `n`
ingredients; the ensemble runs all of them. All choices are made on validation images, and results are reported on test
images, for several draws of ingredients.

    python benchmarks/soup_vs_sampling.py --zoo demo_output/zoos --zoo-config seed --output FILE \
        --sane demo_output/sane
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.hub._publish import load_sane
from hf_sane.merging._averaging import uniform_weights
from hf_sane.merging._greedy import greedy_soup
from hf_sane.merging._ingredients import align_ingredients, open_ingredients
from hf_sane.merging._scoring import ImageScore
from hf_sane.merging._soups import CheckpointMixer
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData, load_images, load_zoo_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._failures import run_script
from hf_sane.sampling._anchors import choose_anchors
from hf_sane.sampling._baselines import noise_baseline
from hf_sane.sampling._generation import Density, NetworkCodec
from hf_sane.sampling._selection import Judge, choose_bandwidth, keep_best, subsample
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo

BANDWIDTHS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
ANCHOR_FRACTION = 0.3


def fine_tune(start: StackedNetworks, count: int, data: ImageData, *, seed: int, epochs: int) -> StackedNetworks:
    """Continuations of one network with different orders of images."""
    tensors = {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in start.tensors.items()}
    settings = HyperParameters.repeat(range(1_000 * (seed + 1), 1_000 * (seed + 1) + count), learning_rate=1e-3)
    (snapshot,) = train_stacked(start.config, tensors, data, settings, epochs=epochs)
    return StackedNetworks(start.config, snapshot.tensors)


def soups(networks: StackedNetworks, data: ImageData) -> dict[str, StackedNetworks]:
    """Uniform soups with and without alignment, and the greedy soup of aligned networks."""
    score = ImageScore(*data.split("validation"))
    plain = open_ingredients([networks.state_dict(index) for index in range(networks.num_models)])
    aligned = align_ingredients(plain, permutation_spec(networks.config))
    mixer = CheckpointMixer(networks.model(0), aligned)
    found = {}
    for name, ingredients in (("uniform_soup_unaligned", plain), ("uniform_soup", aligned)):
        CheckpointMixer(mixer.model, ingredients).mix(uniform_weights(ingredients))
        found[name] = StackedNetworks.from_state_dicts(networks.config, [_copy(mixer)])
    greedy_soup(mixer, score)
    return {**found, "greedy_soup": StackedNetworks.from_state_dicts(networks.config, [_copy(mixer)])}


def _copy(mixer: CheckpointMixer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in mixer.model.state_dict().items()}


def sampled(
    codec: NetworkCodec, tokens: Tensor, judge: Judge, *, candidates: int, seed: int
) -> dict[str, StackedNetworks]:
    """Sampling around the ingredients, and noise on them at the same distance with the same selection."""
    generator = torch.Generator().manual_seed(seed)
    latents = codec.encode(tokens)
    choice = choose_bandwidth(
        codec,
        latents,
        judge,
        bandwidths=BANDWIDTHS,
        density=Density(0.0),
        share=1.0,  # only accuracy is compared here
        num_candidates=candidates // 2,
        num_samples=1,
        generator=generator,
    )
    kept = {"num_candidates": candidates, "num_samples": 1}
    best = subsample(codec, latents, judge, density=Density(choice.bandwidth), generator=generator, **kept)
    draw = noise_baseline(codec, tokens, tokens, like=best.networks, generator=generator)
    return {
        "sane_sampled": best.networks,
        "sane_mean_latent": codec.decode(latents.mean(dim=0, keepdim=True)),
        "ingredient_plus_noise": keep_best(draw, judge, **kept).networks,
    }


def compare(
    codec: NetworkCodec, networks: StackedNetworks, tokens: Tensor, data: ImageData, *, candidates: int, seed: int
) -> dict[str, float]:
    """Test accuracy of all methods with these ingredients."""
    validation = networks.evaluate(*data.split("validation"))[1]
    images, labels = data.split("test")
    alone = networks.evaluate(images, labels)[1]
    votes = networks.logits(images).softmax(dim=2).mean(dim=0).argmax(dim=1)
    row = {
        "mean_ingredient": alone.mean().item(),
        "best_ingredient": alone[validation.argmax()].item(),
        "ensemble": (votes == labels).float().mean().item(),
    }
    judge = Judge.of_images(*data.split("validation"))
    made = {**soups(networks, data), **sampled(codec, tokens, judge, candidates=candidates, seed=seed)}
    return row | {name: network.evaluate(images, labels)[1].item() for name, network in made.items()}


def measure(arguments: argparse.Namespace, codec: NetworkCodec, zoo: Zoo, data: ImageData) -> dict[str, Any]:
    """All methods, populations and numbers of ingredients, over draws of ingredients."""
    train = zoo.splits["train"]
    anchors = train.select(choose_anchors(train, top_fraction=ANCHOR_FRACTION))
    anchor_tokens = aligned_tokens(anchors)
    counts = [count for count in arguments.ingredients if count <= len(anchors)]
    if counts != arguments.ingredients:
        raise ValueError(f"the zoo has {len(anchors)} anchors, fewer than {max(arguments.ingredients)} ingredients")
    report: dict[str, Any] = {}
    for count in counts:
        rows: dict[str, list[dict[str, float]]] = {"independent": [], "fine_tuned": []}
        for seed in range(arguments.draws):
            order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(seed))
            tokens = anchor_tokens[order[:count]]
            networks = codec.networks(tokens)
            settings = {"candidates": arguments.candidates, "seed": seed}
            rows["independent"].append(compare(codec, networks, tokens, data, **settings))
            tuned = fine_tune(networks.select(slice(0, 1)), count, data, seed=seed, epochs=arguments.epochs)
            rows["fine_tuned"].append(compare(codec, tuned, codec.tokens(tuned), data, **settings))
        for population, found in rows.items():
            report.setdefault(population, {})[f"{count}_ingredients"] = {name: _mean(found, name) for name in found[0]}
            report.setdefault(f"{population}_std", {})[f"{count}_ingredients"] = {
                name: _std(found, name) for name in found[0]
            }
    return report


def _mean(rows: list[dict[str, float]], name: str) -> float:
    return torch.tensor([row[name] for row in rows]).mean().item()


def _std(rows: list[dict[str, float]], name: str) -> float:
    return torch.tensor([row[name] for row in rows]).std(correction=min(1, len(rows) - 1)).item()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--candidates": "--num-candidates"})
    parser.add_argument("--zoo", required=True, help="zoo folder or Hub repo id, of one architecture")
    parser.add_argument("--zoo-config", dest="config", help="name of the zoo, if there are several")
    parser.add_argument("--sane", required=True, help="SANE folder or Hub repo id")
    parser.add_argument("--images", help="'digits' or an .npz file; by default those of the zoo")
    parser.add_argument("--ingredients", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--draws", type=int, default=5, help="draws of ingredients")
    parser.add_argument(
        "--num-candidates",
        dest="candidates",
        type=int,
        default=200,
        help="sampled networks, the best of which is kept",
    )
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuned ingredients")
    arguments, record = start(parser, argv)
    zoo = Zoo.load(arguments.zoo, arguments.config)
    data = load_images(arguments.images) if arguments.images else load_zoo_images(zoo.facts)
    codec = NetworkCodec(*load_sane(arguments.sane), *zoo.splits["train"].layout_and_config())
    report = measure(arguments, codec, zoo, data)
    facts = {"zoo": zoo.facts.name, "images": data.describe(), "split": "by training run"}
    return finish(record, report, arguments.output, data=facts, shows=True)


if __name__ == "__main__":
    run_script(main, name="soup_vs_sampling.py")
