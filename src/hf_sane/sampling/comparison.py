"""Sampling under trial: networks decoded from latents, beside everything that needs no autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hf_sane.sampling.anchors import choose_anchors
from hf_sane.sampling.baselines import (
    average_networks,
    matched_noise_scale,
    noisy_anchors,
    random_networks,
    reconstructed_anchors,
)
from hf_sane.sampling.diversity import WeightSpace, nearest_training_distance, pairwise_distance
from hf_sane.sampling.generation import BandwidthUnit, Density, NetworkCodec, sample_from_prior
from hf_sane.sampling.selection import Judge, SelectedNetworks, bootstrap, choose_bandwidth, keep_best, subsample
from hf_sane.zoo.alignment import aligned_tokens
from hf_sane.zoo.dataset import Zoo
from hf_sane.zoo.images import ImageData
from hf_sane.zoo.networks import StackedNetworks
from hf_sane.zoo.permutations import permutation_spec
from hf_sane.zoo.training import HyperParameters, train_stacked

AVERAGE_GROUP = 5  # anchors per average: of all of them there is only one
SCRATCH_SEED = 1_000_000  # far from the zoo's own seeds


@strict
@dataclass(kw_only=True)
class ComparisonSettings:
    """How much is drawn and what it is chosen from.

    Attributes:
        seed: Of everything that is drawn.
        anchor_fraction: Best share of the training runs that serve as anchors (the paper: 30 %).
        num_anchors: The best so many of them; all when `None`.
        anchor_epoch: Epoch of the anchors; the last of each run when `None`.
        bandwidths: Candidates, in `unit`; 0 would only copy anchors and is not one.
        unit: Of the bandwidths, see [`Density`]; a single anchor needs `"latent_std"`.
        accuracy_share: The largest bandwidth wins whose kept networks keep this share of the best validation accuracy.
        num_candidates: Networks drawn for subsampling.
        num_kept: Networks kept, of every method.
    """

    seed: int = 0
    anchor_fraction: float = 0.3
    num_anchors: int | None = None
    anchor_epoch: int | None = None
    bandwidths: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.15, 0.2, 0.3, 0.4])
    unit: BandwidthUnit = "anchor_std"
    accuracy_share: float = 0.95
    num_candidates: int = 400
    num_kept: int = 10

    def validate_counts(self) -> None:
        """Enough candidates to keep some of them, and anchors for every one that is kept."""
        if not 1 <= self.num_kept <= self.num_candidates // 2:
            raise ValueError(
                f"expected 1 <= num_kept <= num_candidates / 2, got {self.num_kept} and {self.num_candidates}"
            )
        if not self.bandwidths or min(self.bandwidths) <= 0:
            raise ValueError(f"expected bandwidths > 0, which 0 is not: it copies anchors; got {self.bandwidths}")


@dataclass(frozen=True)
class Samples:
    """What sampling produced.

    Attributes:
        methods: Name to `num_kept` networks, by method.
        anchor_ids: Runs of the anchors, best first.
        bandwidth: The one chosen on validation images.
        facts: Further numbers for the record.
    """

    methods: Mapping[str, StackedNetworks]
    anchor_ids: tuple[str, ...]
    bandwidth: float
    facts: Mapping[str, Any]


def draw_samples(codec: NetworkCodec, zoo: Zoo, judge: Judge, settings: ComparisonSettings) -> Samples:
    """Draw networks by every method, `num_kept` each.

    Bandwidth, candidates and bootstrapping rounds are chosen on validation images. Noise on anchors is matched to the
    subsampled networks: its mean distance to the nearest training network is theirs, once before and once after the same
    selection (best of the same number of candidates on the same images). With a judge that conditions batch norm, every
    method but the anchors themselves and networks from scratch is conditioned.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture of the zoo.
        zoo: Aligned zoo of one architecture, homogeneous enough to sample from; it need not be the one that the
            autoencoder was trained on.
        judge: Scores on validation images.
        settings: Sizes.

    Raises:
        ValueError: If the zoo has fewer anchors than are asked for or kept.
    """
    train = zoo.splits["train"]
    chosen = choose_anchors(
        train,
        num_anchors=settings.num_anchors,
        top_fraction=settings.anchor_fraction,
        epoch=settings.anchor_epoch,
    )
    anchor_split = train.select(chosen)
    anchor_tokens, training_tokens = aligned_tokens(anchor_split), aligned_tokens(train)
    generator = torch.Generator().manual_seed(settings.seed)
    latents = codec.encode(anchor_tokens)
    choice = choose_bandwidth(
        codec,
        latents,
        judge,
        bandwidths=settings.bandwidths,
        density=Density(0.0, unit=settings.unit),
        share=settings.accuracy_share,
        num_candidates=settings.num_candidates // 2,
        num_kept=settings.num_kept,
        generator=generator,
    )
    density = Density(choice.bandwidth, unit=settings.unit)
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
    shown = [index % len(chosen) for index in few]
    prior = sample_from_prior(codec, settings.num_kept, std=latents.std().item(), generator=generator)
    methods = {
        "anchors": codec.networks(anchor_tokens[shown]),
        "reconstructed_anchors": judge.condition(reconstructed_anchors(codec, anchor_tokens[shown]).networks),
        "sane_kde": judge.condition(codec.decode(density.sample(latents, settings.num_kept, generator=generator))),
        "sane_subsampled": subsampled.networks,
        "sane_bootstrapped": bootstrapped.networks,
        **_noise_baselines(codec, anchor_tokens, training_tokens, subsampled, judge, settings),
        "anchor_average": judge.condition(codec.networks(_averages(anchor_tokens, settings, generator))),
        "sane_prior": judge.condition(prior.networks),
        "scratch": random_networks(train.config(0), [SCRATCH_SEED + settings.seed + i for i in few]),
    }
    facts = {
        "num_anchors": len(chosen),
        "num_candidates": settings.num_candidates,
        "num_kept": settings.num_kept,
        "bandwidth": choice.bandwidth,
        "bandwidth_unit": settings.unit,
        "bandwidth_candidates": list(choice.bandwidths),
        "bandwidth_kept_validation_accuracy": list(choice.kept_accuracy),
        "bootstrap_validation_accuracy": list(history),
    }
    return Samples(methods, tuple(anchor_split.run_ids), choice.bandwidth, facts)


def _averages(anchor_tokens: Tensor, settings: ComparisonSettings, generator: torch.Generator) -> Tensor:
    """Each the mean of a few anchors: `[num_kept, N, D]`."""
    group_size = min(AVERAGE_GROUP, len(anchor_tokens))
    return average_networks(anchor_tokens, settings.num_kept, group_size=group_size, generator=generator)


def _noise_baselines(
    codec: NetworkCodec,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    subsampled: SelectedNetworks,
    judge: Judge,
    settings: ComparisonSettings,
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
    return {
        "anchor_noise": judge.condition(draw(settings.num_kept)[1]),
        "anchor_noise_selected": selected.networks,
    }


def measure_distances(
    codec: NetworkCodec, zoo: Zoo, methods: Mapping[str, StackedNetworks]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean distance to the nearest training network (up to permutations), and within each method.

    Args:
        codec: Layout and architecture.
        zoo: Aligned zoo.
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
    *,
    epochs: int,
    seed: int = 0,
) -> dict[str, list[list[float]]]:
    """Fine-tune the networks of all methods together.

    Args:
        methods: Name to networks of one architecture.
        data: Images.
        hyper_parameters: Learning rate, weight decay and optimiser, such as the zoo's own.
        epochs: Passes over the training images.
        seed: Of the order of images.

    Returns:
        Method to test accuracies `[epochs + 1, networks]`, row 0 before training.
    """
    counts = [networks.num_models for networks in methods.values()]
    first = next(iter(methods.values()))
    tensors = {n: torch.cat([networks.tensors[n] for networks in methods.values()]) for n in first.tensors}
    seeds = [SCRATCH_SEED + seed + i for count in counts for i in range(count)]
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
