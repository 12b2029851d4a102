"""The demo's sampling part: networks decoded from latents, beside everything that needs no autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_sane.demo.settings import DemoSettings
from hf_sane.sampling.anchors import choose_anchors
from hf_sane.sampling.baselines import (
    average_networks,
    matched_noise_scale,
    noisy_anchors,
    random_networks,
    reconstructed_anchors,
)
from hf_sane.sampling.diversity import WeightSpace, nearest_training_distance, pairwise_distance
from hf_sane.sampling.generation import Density, NetworkCodec, sample_from_prior
from hf_sane.sampling.selection import Judge, SelectedNetworks, bootstrap, choose_bandwidth, keep_best, subsample
from hf_sane.zoo.alignment import aligned_tokens
from hf_sane.zoo.dataset import Zoo
from hf_sane.zoo.images import ImageData
from hf_sane.zoo.networks import StackedNetworks
from hf_sane.zoo.permutations import permutation_spec
from hf_sane.zoo.training import HyperParameters, train_stacked

AVERAGE_GROUP = 5  # anchors per average: of all of them there is only one
SCRATCH_SEED = 1_000_000  # far from the zoo's own seeds
REPORTED_EPOCHS = (0, 1, 5)


@dataclass(frozen=True)
class Samples:
    """What sampling produced.

    Attributes:
        methods: Name to `num_kept` networks, those of `report.METHOD_TITLES`.
        anchor_ids: Runs of the anchors, best first.
        bandwidth: The one chosen on validation images.
        facts: Further numbers for the record.
    """

    methods: Mapping[str, StackedNetworks]
    anchor_ids: tuple[str, ...]
    bandwidth: float
    facts: Mapping[str, Any]


def draw_samples(codec: NetworkCodec, zoo: Zoo, data: ImageData, settings: DemoSettings) -> Samples:
    """Draw networks by every method, `num_kept` each.

    Bandwidth, candidates and bootstrapping rounds are chosen on validation images. Noise on anchors is matched to the
    subsampled networks: its mean distance to the nearest training network is theirs, once before and once after the same
    selection (best of the same number of candidates on the same images).

    Args:
        codec: Autoencoder, tokenizer, layout and architecture of the zoo.
        zoo: Aligned seed zoo.
        data: Its images.
        settings: Sizes.
    """
    train = zoo.splits["train"]
    chosen = choose_anchors(train, top_fraction=settings.anchor_fraction)
    anchor_split = train.select(chosen)
    anchor_tokens, training_tokens = aligned_tokens(anchor_split), aligned_tokens(train)
    judge = Judge(*data.split("validation"))
    generator = torch.Generator().manual_seed(settings.seed)
    latents = codec.encode(anchor_tokens)
    choice = choose_bandwidth(
        codec,
        latents,
        judge,
        bandwidths=settings.bandwidths,
        density=Density(0.0),
        share=settings.accuracy_share,
        num_candidates=settings.num_candidates // 2,
        num_kept=settings.num_kept,
        generator=generator,
    )
    density = Density(choice.bandwidth)
    kept = {"num_candidates": settings.num_candidates, "num_kept": settings.num_kept, "generator": generator}
    subsampled = subsample(codec, latents, judge, density=density, **kept)  # type: ignore[arg-type]
    bootstrapped, history = bootstrap(
        codec,
        latents,
        judge,
        density=density,
        num_anchors=max(2, 2 * settings.num_kept),
        **kept,  # type: ignore[arg-type]
    )
    few = range(settings.num_kept)
    prior = sample_from_prior(codec, settings.num_kept, std=latents.std().item(), generator=generator)
    methods = {
        "anchors": codec.networks(anchor_tokens).select(list(few)),
        "reconstructed_anchors": reconstructed_anchors(codec, anchor_tokens[: settings.num_kept]).networks,
        "sane_kde": codec.decode(density.sample(latents, settings.num_kept, generator=generator)),
        "sane_subsampled": subsampled.networks,
        "sane_bootstrapped": bootstrapped.networks,
        **_noise_baselines(codec, anchor_tokens, training_tokens, subsampled, judge, settings),
        "anchor_average": codec.networks(
            average_networks(
                anchor_tokens,
                settings.num_kept,
                group_size=min(AVERAGE_GROUP, len(anchor_tokens)),
                generator=generator,
            )
        ),
        "sane_prior": prior.networks,
        "scratch": random_networks(train.config(0), [SCRATCH_SEED + settings.seed + i for i in few]),
    }
    facts = {
        "num_anchors": len(chosen),
        "num_candidates": settings.num_candidates,
        "num_kept": settings.num_kept,
        "bandwidth": choice.bandwidth,
        "bandwidth_candidates": list(choice.bandwidths),
        "bandwidth_kept_validation_accuracy": list(choice.kept_accuracy),
        "bootstrap_validation_accuracy": list(history),
    }
    return Samples(methods, tuple(anchor_split.run_ids), choice.bandwidth, facts)


def _noise_baselines(
    codec: NetworkCodec,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    subsampled: SelectedNetworks,
    judge: Judge,
    settings: DemoSettings,
) -> dict[str, StackedNetworks]:
    """Anchor + noise as far from the training networks as the subsampled ones; plain, and selected in the same way."""
    space = WeightSpace.fit(codec.layout, training_tokens)
    distance = nearest_training_distance(space, codec.tokens(subsampled.networks), training_tokens).mean().item()
    generator = torch.Generator().manual_seed(settings.seed + 1)
    scale = matched_noise_scale(space, anchor_tokens, training_tokens, distance=distance, generator=generator)

    def draw(count: int) -> tuple[Tensor, StackedNetworks]:
        tokens = noisy_anchors(space, anchor_tokens, count, scale=scale, generator=generator)
        return tokens, codec.networks(tokens)

    selected = keep_best(draw, judge, num_candidates=settings.num_candidates, num_kept=settings.num_kept)
    return {"anchor_noise": draw(settings.num_kept)[1], "anchor_noise_selected": selected.networks}


def measure_distances(
    codec: NetworkCodec, zoo: Zoo, methods: Mapping[str, StackedNetworks]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean distance to the nearest training network (up to permutations), and within each method.

    Args:
        codec: Layout and architecture.
        zoo: Aligned seed zoo.
        methods: Name to networks.
    """
    train = zoo.splits["train"]
    training = aligned_tokens(train)
    space = WeightSpace.fit(codec.layout, training)
    spec = permutation_spec(train.config(0))
    nearest, pairwise = {}, {}
    for name, networks in methods.items():
        tokens = codec.tokens(networks)
        found = nearest_training_distance(space, tokens, training, permutations=spec, realigned=3)
        nearest[name] = found.mean().item()
        pairwise[name] = pairwise_distance(space.points(tokens))
    return nearest, pairwise


def finetune_all(
    methods: Mapping[str, StackedNetworks],
    data: ImageData,
    hyper_parameters: Mapping[str, Any],
    settings: DemoSettings,
) -> dict[str, list[list[float]]]:
    """Fine-tune the networks of all methods together, with the zoo's own hyper-parameters.

    Args:
        methods: Name to networks of one architecture.
        data: Images.
        hyper_parameters: Learning rate, weight decay and optimiser of the zoo.
        settings: Epochs and seed.

    Returns:
        Method to test accuracies `[epochs + 1, networks]`, row 0 before training.
    """
    counts = [networks.num_models for networks in methods.values()]
    first = next(iter(methods.values()))
    tensors = {n: torch.cat([networks.tensors[n] for networks in methods.values()]) for n in first.tensors}
    seeds = [SCRATCH_SEED + settings.seed + i for count in counts for i in range(count)]
    epochs = settings.finetune_epochs
    curves: dict[str, list[list[float]]] = {name: [] for name in methods}
    for snapshot in train_stacked(
        first.config,
        tensors,
        data,
        HyperParameters.repeat(seeds, **hyper_parameters),
        epochs=epochs,
        keep_epochs=range(epochs + 1),
    ):
        for name, part in zip(methods, snapshot.test_accuracy.split(counts), strict=True):
            curves[name].append(part.tolist())
    return curves


def sampling_results(
    curves: Mapping[str, list[list[float]]], distances: Mapping[str, float], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The sampling part of the record: mean test accuracy at epochs 0, 1 and 5, and distances."""
    rows: dict[str, Any] = {
        f"epoch_{epoch}": {name: sum(found[epoch]) / len(found[epoch]) for name, found in curves.items()}
        for epoch in REPORTED_EPOCHS
    }
    return {**rows, "nearest_training_distance": dict(distances), **facts}
