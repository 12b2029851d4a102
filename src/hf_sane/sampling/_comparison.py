"""Comparison of networks decoded from latents with baselines that need no autoencoder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import Task
from hf_sane.records._settings import SeedSettings, setting
from hf_sane.sampling._anchors import TOP_FRACTION, choose_anchors
from hf_sane.sampling._baselines import (
    anchor_spread,
    interpolated_anchors,
    matched_noise_scale,
    noise_baseline,
    noisy_anchors,
    shrunken_networks,
    simple_baselines,
)
from hf_sane.sampling._diversity import (
    WeightSpace,
    measure_distances,
    nearest_distances,
    training_distances,
)
from hf_sane.sampling._generation import BandwidthUnit, Density, NetworkCodec, sample_from_prior
from hf_sane.sampling._samplers import SAMPLERS, SamplingTask
from hf_sane.sampling._selection import Judge, Measure, choose_bandwidth, keep_best
from hf_sane.zoo._alignment import comparable_tokens
from hf_sane.zoo._dataset import Zoo

METHODS = {  # in the order of tables and legends
    "anchors": "anchors (trained networks)",
    "reconstructed_anchors": "anchors, encoded and decoded",
    "linear_reconstructed": "anchors, through the linear code",
    "nearest_training": "trained network nearest to each subsampled one",
    "sane_kde": "SANE, KDE",
    "sane_subsampled": "SANE, subsampled",
    "sane_bootstrapped": "SANE, bootstrapped",
    "linear_kde": "linear code, KDE",
    "linear_subsampled": "linear code, subsampled",
    "linear_bootstrapped": "linear code, bootstrapped",
    "anchor_noise": "anchor + noise, same distance",
    "anchor_noise_selected": "anchor + noise, same distance, selected alike",
    "shaped_noise": "anchor + noise of the anchors' spread, same distance",
    "shaped_noise_selected": "anchor + noise of the anchors' spread, same distance, selected alike",
    "interpolation": "between two anchors, at most the same distance",
    "anchor_average": "average of anchors",
    "shrunken_anchor": "anchor, shrunken to the norm of averages",
    "shrunken_scratch": "random initialisation, shrunken to the norm of averages",
    "sane_prior": "SANE, from the prior",
    "scratch": "random initialisation",
}
LINEAR = ("linear_reconstructed", "linear_kde", "linear_subsampled", "linear_bootstrapped")
RIVALS = (
    *("nearest_training", "shaped_noise", "shaped_noise_selected", "interpolation"),
    *("shrunken_anchor", "shrunken_scratch"),
)
NOT_CONDITIONED = ("anchors", "nearest_training", "scratch", "shrunken_scratch")  # by running statistics of images


@strict
@dataclass(kw_only=True)
class SelectionSettings(SeedSettings):
    """Settings that comparisons share with the demo: how many networks to draw, and how to select them."""

    top_fraction: float = setting(
        "Share of the best training runs to take anchors from.",
        default=TOP_FRACTION,
        formerly="--anchor-fraction",
    )
    bandwidth: list[float] = setting(
        "Kernel widths to choose from on validation images, > 0, since 0 only copies anchors.",
        factory=lambda: [0.05, 0.1, 0.15, 0.2, 0.3, 0.4],
        formerly="--bandwidths",
    )
    accuracy_share: float = setting(
        "Use the largest bandwidth whose kept networks reach this share of the best validation accuracy.",
        default=0.95,
    )
    num_candidates: int = setting("Number of networks to draw for subsampling.", default=400)
    num_samples: int = setting("Number of networks to keep for each method.", default=10, formerly="--num-kept")

    def validate_counts(self) -> None:
        """Check that enough candidates are drawn to select from."""
        if not 1 <= self.num_samples <= self.num_candidates // 2:
            raise ValueError(
                "expected at least twice as many candidates as samples, got "
                f"num_samples={self.num_samples} and num_candidates={self.num_candidates}"
            )
        if not self.bandwidth or min(self.bandwidth) <= 0:
            raise ValueError(f"expected bandwidth > 0, since 0 only copies anchors, got {self.bandwidth}")


@strict
@dataclass(kw_only=True)
class ComparisonSettings(SelectionSettings):
    """Settings of a comparison."""

    num_anchors: int | None = setting("Number of anchors; by default all in that share.", default=None)
    epoch: int | None = setting(
        "Epoch of the anchors; by default the last epoch of each run.",
        default=None,
        formerly="--anchor-epoch",
    )
    unit: BandwidthUnit = setting(
        "Unit of the bandwidth: the spread of the anchors, of all their tokens (for a single anchor), or latents.",
        default="anchor_std",
    )


@dataclass(frozen=True)
class AnchorSet:
    """Anchors of one architecture to sample from, and the training networks to compare samples with.

    Attributes:
        codec: Autoencoder, tokenizer, layout and architecture.
        tokens: `[A, N, D]` raw tokens of the anchors.
        training_tokens: `[T, N, D]` raw tokens of all training networks, including the anchors.
        names: Runs of the anchors, sorted from best to worst.
    """

    codec: NetworkCodec
    tokens: Tensor
    training_tokens: Tensor
    names: tuple[str, ...]

    @classmethod
    def choose(
        cls,
        codec: NetworkCodec,
        zoo: Zoo,
        *,
        num_anchors: int | None = None,
        top_fraction: float = TOP_FRACTION,
        epoch: int | None = None,
        measure: Measure | None = None,
    ) -> Self:
        """Choose anchors among the training networks of a zoo, see [`choose_anchors`]; aligned if the zoo is.

        If the zoo has no accuracies, as for imported networks, networks are ranked by the scores of `measure`.
        """
        train = zoo.splits["train"]
        measured = None
        if measure is not None and not np.isfinite(train.column("validation_accuracy").astype(np.float64)).any():
            measured = measure(train.networks())[1].numpy()
        chosen = train.select(
            choose_anchors(train, num_anchors=num_anchors, top_fraction=top_fraction, epoch=epoch, accuracy=measured)
        )
        return cls(codec, comparable_tokens(chosen), comparable_tokens(train), tuple(chosen.run_ids))

    @cached_property
    def latents(self) -> Tensor:
        """`[A, N, Z]`."""
        return self.codec.encode(self.tokens)

    @cached_property
    def _space(self) -> WeightSpace:
        return WeightSpace.fit(self.codec.layout, self.training_tokens)

    def distances(self, networks: StackedNetworks) -> Tensor:
        """Distance of each network to the nearest training network, up to permutations of neurons: `[S]`."""
        return training_distances(self.codec, self._space, networks, self.training_tokens)

    def compare(
        self, sampled: Mapping[str, StackedNetworks], judge: Judge, task: Task, generator: torch.Generator
    ) -> dict[str, dict[str, float]]:
        """Measurements of the task, and distances to training networks, of sampled networks and baselines.

        Args:
            sampled: The sampled networks, by name. Noise on anchors is as far from training networks as the last.
            judge: Judge, with or without batch-norm conditioning.
            task: Measures on its test split.
            generator: CPU source of randomness, of the baselines.
        """
        *_, like = sampled.values()
        draw_noise = noise_baseline(self.codec, self.tokens, self.training_tokens, like=like, generator=generator)
        simple = simple_baselines(
            self.codec,
            self.tokens,
            judge,
            num_networks=like.num_models,
            draw_noise=draw_noise,
            generator=generator,
        )
        methods = {**sampled, **simple}
        distances = measure_distances(self.codec, self.training_tokens, methods, linear=self.codec)
        rows = {}
        for key, found in methods.items():
            values, _ = task.measure(found, "test")
            rows[key] = {task.label("test"): values.mean().item(), f"best_{task.label('test')}": task.best(values)}
            rows[key] |= {distance: by_name[key] for distance, by_name in distances.items()}
        return rows


@dataclass(frozen=True)
class Samples:
    """Result of sampling.

    Attributes:
        methods: `num_samples` networks for each of `METHODS`.
        anchor_ids: Runs of the anchors, sorted from best to worst.
        bandwidth: Bandwidth selected on validation images.
        facts: Additional numbers for the record.
        linear: The linear code, if a method uses it.
    """

    methods: Mapping[str, StackedNetworks]
    anchor_ids: tuple[str, ...]
    bandwidth: float
    facts: Mapping[str, Any]
    linear: NetworkCodec | None = None


def draw_samples(
    codec: NetworkCodec,
    zoo: Zoo,
    judge: Judge,
    settings: ComparisonSettings,
    *,
    methods: Collection[str] = tuple(METHODS),
) -> Samples:
    """Draw networks by several methods, `num_samples` each.

    Bandwidth, candidates and bootstrapping rounds are selected on validation images. Noise on anchors is matched to
    the subsampled networks in mean distance to the nearest training network, both without and with the same selection
    (best of the same number of candidates on the same images). With a judge that conditions batch norm, every method
    but trained networks and those from scratch is conditioned. The linear code has the same
    `latent_dim` as the SANE, is fitted to the same training networks, and is sampled in the same way.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture of the zoo.
        zoo: Zoo of one architecture, homogeneous enough to sample from; it need not be the one that the
            autoencoder was trained on.
        judge: Scores on validation images.
        settings: Settings of the comparison.
        methods: Which methods; the same networks whichever are chosen.

    Raises:
        ValueError: If the zoo has fewer anchors than requested or kept.
    """
    wanted = {*methods}
    anchors = AnchorSet.choose(
        codec,
        zoo,
        num_anchors=settings.num_anchors,
        top_fraction=settings.top_fraction,
        epoch=settings.epoch,
        measure=judge.measure,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    around, facts = _sampled(codec, anchors.latents, judge, settings, generator)
    sampled = {f"sane_{name}": networks for name, networks in around.items()}
    draw_noise = noise_baseline(
        codec,
        anchors.tokens,
        anchors.training_tokens,
        like=sampled["sane_subsampled"],
        generator=torch.Generator().manual_seed(settings.seed + 1),
    )
    noisy = keep_best(draw_noise, judge, num_candidates=settings.num_candidates, num_samples=settings.num_samples)
    simple = simple_baselines(
        codec,
        anchors.tokens,
        judge,
        num_networks=settings.num_samples,
        draw_noise=draw_noise,
        shown=anchors.tokens[[index % len(anchors.names) for index in range(settings.num_samples)]],
        seed=settings.seed,
        generator=generator,
    )
    drawn = {**sampled, **simple, "anchor_noise_selected": noisy.networks}
    facts = {"num_anchors": len(anchors.names), **facts}
    # What follows has random numbers of its own: whether it is drawn changes nothing above.
    linear = codec.linear(anchors.training_tokens) if wanted & {*LINEAR} else None
    if linear is not None:
        found, facts["linear"] = _linear_methods(linear, anchors, judge, settings)
        drawn |= found
    if wanted & {*RIVALS}:
        drawn |= _rivals(codec, anchors, judge, settings, drawn)
    methods = {name: drawn[name] for name in METHODS if name in wanted & drawn.keys()}
    return Samples(methods, anchors.names, facts["bandwidth"], facts, linear)


def _linear_methods(
    linear: NetworkCodec, anchors: AnchorSet, judge: Judge, settings: ComparisonSettings
) -> tuple[dict[str, StackedNetworks], dict[str, Any]]:
    """The methods of `LINEAR`, drawn as those of the SANE are, and facts for the record."""
    latents = linear.encode(anchors.tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    around, facts = _sampled(linear, latents, judge, settings, generator)
    shown = latents[[index % len(latents) for index in range(settings.num_samples)]]
    around["reconstructed"] = judge.condition(linear.decode(shown))
    return {name: around[name.removeprefix("linear_")] for name in LINEAR}, facts


def _rivals(
    codec: NetworkCodec,
    anchors: AnchorSet,
    judge: Judge,
    settings: ComparisonSettings,
    drawn: Mapping[str, StackedNetworks],
) -> dict[str, StackedNetworks]:
    """The methods of `RIVALS`: of one anchor alone there is no spread, and nothing to interpolate.

    Args:
        codec: Layout and architecture.
        anchors: Anchors and training networks.
        judge: Judge, with or without batch-norm conditioning.
        settings: Settings of the comparison.
        drawn: The methods that these are compared with.
    """
    space, training = WeightSpace.fit(codec.layout, anchors.training_tokens), anchors.training_tokens
    sampled = codec.tokens(drawn["sane_subsampled"])
    distances, nearest = nearest_distances(space.points(sampled), space.points(training))
    averages, count = codec.tokens(drawn["anchor_average"]), settings.num_samples
    shrunken = {
        name: codec.networks(shrunken_networks(space, codec.tokens(drawn[source]), averages))
        for name, source in (("shrunken_anchor", "anchors"), ("shrunken_scratch", "scratch"))
    }
    found = {"nearest_training": codec.networks(training[nearest]), **shrunken}
    if len(anchors.tokens) > 1:
        generator = torch.Generator().manual_seed(settings.seed + 1)
        distance, tokens = distances.mean().item(), anchors.tokens
        shape = anchor_spread(space, tokens)
        scale = matched_noise_scale(space, tokens, training, distance=distance, shape=shape, generator=generator)

        def draw(number: int) -> tuple[Tensor, StackedNetworks]:
            made = noisy_anchors(space, tokens, number, scale=scale, shape=shape, generator=generator)
            return made, codec.networks(made)

        found["shaped_noise"] = draw(count)[1]
        selected = keep_best(draw, judge, num_candidates=settings.num_candidates, num_samples=count)
        found["shaped_noise_selected"] = selected.networks
        between = interpolated_anchors(space, tokens, training, count, distance=distance, generator=generator)
        found["interpolation"] = codec.networks(between)
    return {
        name: networks if name in (*NOT_CONDITIONED, "shaped_noise_selected") else judge.condition(networks)
        for name, networks in found.items()
    }


def _sampled(
    codec: NetworkCodec, latents: Tensor, judge: Judge, settings: ComparisonSettings, generator: torch.Generator
) -> tuple[dict[str, StackedNetworks], dict[str, Any]]:
    """Networks sampled around the latents `[A, N, Z]` of the anchors, and facts for the record."""
    choice = choose_bandwidth(
        codec,
        latents,
        judge,
        bandwidths=settings.bandwidth,
        density=Density(0.0, unit=settings.unit),
        share=settings.accuracy_share,
        num_candidates=settings.num_candidates // 2,
        num_samples=settings.num_samples,
        generator=generator,
    )
    task = SamplingTask(
        codec,
        latents,
        judge,
        Density(choice.bandwidth, unit=settings.unit),
        num_samples=settings.num_samples,
        num_candidates=settings.num_candidates,
        generator=generator,
    )
    subsampled, bootstrapped = (SAMPLERS.find(name).run(task) for name in ("subsample", "bootstrap"))
    prior = sample_from_prior(codec, settings.num_samples, std=latents.std().item(), generator=generator)
    _, around = task.draw(settings.num_samples)
    methods = {
        "kde": judge.condition(around),
        "subsampled": subsampled.networks,
        "bootstrapped": bootstrapped.networks,
        "prior": judge.condition(prior.networks),
    }
    facts = {
        "num_candidates": settings.num_candidates,
        "num_kept": settings.num_samples,
        "bandwidth": choice.bandwidth,
        "bandwidth_unit": settings.unit,
        "bandwidth_candidates": list(choice.bandwidths),
        "bandwidth_kept_validation_accuracy": list(choice.kept_score),
        "bootstrap_validation_accuracy": list(bootstrapped.rounds),
    }
    return methods, facts
