"""Select sampled networks on validation data: subsampling, bandwidth selection, bootstrapping."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from hf_sane.networks._batchnorm import BATCH_SIZE, NUM_BATCHES, condition_batch_norm
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._processes import current_processes
from hf_sane.records._progress import tracked
from hf_sane.sampling._generation import Density, NetworkCodec

# Losses and scores of networks, `[M]` each; lower losses and higher scores are better.
Measure = Callable[[StackedNetworks], tuple[Tensor, Tensor]]
# Draws `count` candidates: their sources `[count, ...]` (latents or tokens), and the networks.
Draw = Callable[[int], tuple[Tensor, StackedNetworks]]


@dataclass(frozen=True, slots=True)
class LatentDraw:
    """A [`Draw`] whose networks need not be decoded by the process that draws their latents.

    Attributes:
        sample: Draws `count` latents `[count, N, Z]`.
        decode: Decodes latents to networks.
    """

    sample: Callable[[int], Tensor]
    decode: Callable[[Tensor], StackedNetworks]

    def __call__(self, count: int) -> tuple[Tensor, StackedNetworks]:
        """Latents and networks."""
        latents = self.sample(count)
        return latents, self.decode(latents)


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores networks on validation data, optionally after batch-norm conditioning.

    Attributes:
        measure: Losses and scores of networks, both `[M]`, such as [`Task.rank`]. Must not use test data, which is for
            reports on the selected networks.
        conditioning_images: `[m, C, H, W]` for batch-norm conditioning; no conditioning if `None`.
        num_batches: Number of batches of conditioning.
        batch_size: Batch size of conditioning.
        seed: Random seed of conditioning; every network sees the same batches.
        reset: Whether conditioning resets the running statistics of the networks first.
    """

    measure: Measure
    conditioning_images: Tensor | None = None
    num_batches: int = NUM_BATCHES
    batch_size: int = BATCH_SIZE
    seed: int = 0
    reset: bool = True

    @classmethod
    def of_images(cls, images: Tensor, labels: Tensor, **options: Any) -> Self:
        """Judge by accuracy on validation images `[n, C, H, W]` with labels `[n]`; options are other attributes."""
        return cls(partial(StackedNetworks.evaluate, images=images, labels=labels), **options)

    def condition(self, networks: StackedNetworks) -> StackedNetworks:
        """The networks with running statistics from the conditioning images, if there are any."""
        if self.conditioning_images is None:
            return networks
        return condition_batch_norm(
            networks,
            self.conditioning_images,
            num_batches=self.num_batches,
            batch_size=self.batch_size,
            reset=self.reset,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def __call__(self, networks: StackedNetworks) -> tuple[StackedNetworks, Tensor, Tensor]:
        """Condition and score: networks, loss `[M]` and score `[M]`; a loss that is not finite becomes infinite."""
        conditioned = self.condition(networks)
        loss, score = self.measure(conditioned)
        return conditioned, torch.where(loss.isfinite(), loss, torch.inf), score


@dataclass(frozen=True, slots=True)
class SelectedNetworks:
    """The best candidates, sorted from best to worst.

    Attributes:
        sources: `[K, ...]`, what the networks were made from: latents, or tokens for baselines in weight space.
        networks: `K` networks, conditioned.
        validation_score: `[K]`, descending.
        validation_loss: `[K]`; among equal scores, ascending.
        candidate_score: Validation score of all candidates, in the order drawn.
        rounds: Mean validation score of the kept networks after each round, for methods with several rounds.
    """

    sources: Tensor
    networks: StackedNetworks
    validation_score: Tensor
    validation_loss: Tensor
    candidate_score: Tensor
    rounds: tuple[float, ...] = ()

    @property
    def mean_score(self) -> float:
        """Mean validation score of the kept networks."""
        return self.validation_score.mean().item()


def keep_best(
    draw: Draw,
    judge: Judge,
    *,
    num_candidates: int,
    num_samples: int,
    chunk_size: int = 64,
    rivals: SelectedNetworks | None = None,
) -> SelectedNetworks:
    """Draw candidates in chunks and keep the best by validation score, with validation loss as tie-breaker.

    Processes that share the work draw the same candidates, judge one chunk each, and keep the same networks.

    Args:
        draw: Function that draws a number of candidates; at most `chunk_size` and the kept ones are in memory at a
            time.
        judge: Scores them.
        num_candidates: Number of networks to draw in total.
        num_samples: Number of networks to keep, `K`; at most the number of candidates.
        chunk_size: Candidates per call of `draw`.
        rivals: Networks that were already judged and compete with the candidates.

    Returns:
        The best `num_samples`, best first.

    Raises:
        ValueError: If more networks are kept than drawn, or a number is below 1.
    """
    available = num_candidates + (rivals.networks.num_models if rivals else 0)
    if num_candidates < 1 or not 1 <= num_samples <= available or chunk_size < 1:
        raise ValueError(
            f"expected 1 <= num_samples <= candidates and chunk_size >= 1, got {num_samples} of {available} and "
            f"{chunk_size}"
        )
    best = rivals
    scores: list[Tensor] = []
    processes = current_processes()
    for first in tracked(range(0, num_candidates, chunk_size * processes.count), desc="sampling", unit="batch"):
        own: SelectedNetworks | None = None
        for index in range(processes.count):
            count = min(chunk_size, num_candidates - first - index * chunk_size)
            if count > 0 and (chunk := _judged(draw, judge, count, is_own=index == processes.index)) is not None:
                own = chunk if processes.count == 1 else _best(chunk, num_samples)
        for found in processes.gather(own):
            if found is not None:
                scores.append(found.candidate_score)
                best = _best(found if best is None else _joined(best, found), num_samples)
    assert best is not None
    return replace(best, candidate_score=torch.cat(scores))


def _judged(draw: Draw, judge: Judge, count: int, *, is_own: bool) -> SelectedNetworks | None:
    """A chunk of candidates; one that another process judges is only drawn, so that random numbers go on alike."""
    if not is_own and isinstance(draw, LatentDraw):
        draw.sample(count)
        return None
    sources, networks = draw(count)
    if not is_own:
        return None
    networks, loss, score = judge(networks)
    return SelectedNetworks(sources, networks, score, loss, score)


def _joined(first: SelectedNetworks, second: SelectedNetworks) -> SelectedNetworks:
    pairs = {name: (tensor, second.networks.tensors[name]) for name, tensor in first.networks.tensors.items()}
    return SelectedNetworks(
        torch.cat([first.sources, second.sources]),
        StackedNetworks(first.networks.config, {name: torch.cat(pair) for name, pair in pairs.items()}),
        torch.cat([first.validation_score, second.validation_score]),
        torch.cat([first.validation_loss, second.validation_loss]),
        second.candidate_score,
    )


def rank_networks(score: Tensor, loss: Tensor) -> Tensor:
    """Indices `[M]` of networks from best to worst: by score, and by loss among equal scores."""
    by_loss = loss.argsort(stable=True)
    return by_loss[score[by_loss].argsort(stable=True, descending=True)]


def _best(found: SelectedNetworks, num_samples: int) -> SelectedNetworks:
    order = rank_networks(found.validation_score, found.validation_loss)[:num_samples]
    return SelectedNetworks(
        found.sources[order.to(found.sources.device)],
        found.networks.select(order),
        found.validation_score[order],
        found.validation_loss[order],
        found.candidate_score,
    )


def subsample(
    codec: NetworkCodec,
    anchors: Tensor,
    judge: Judge,
    *,
    density: Density,
    num_candidates: int = 200,
    num_samples: int = 10,
    chunk_size: int = 64,
    anchor_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SelectedNetworks:
    """Subsampling (SANE_SUB): draw many networks, keep the best on validation data.

    The mean score of kept networks is biased upward on the validation data, so report test data.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchors: `[A, N, Z]` latents, from [`NetworkCodec.encode`].
        judge: Scores candidates.
        density: Bandwidth and mode.
        num_candidates: Number of networks to draw (200 for CNNs and 50 for ResNets in the paper).
        num_samples: Number of networks to keep.
        chunk_size: Number of networks to draw and judge at a time.
        anchor_weights: `[A]` mixture weights; equal if `None`.
        generator: Source of randomness on the device of `anchors`; the global one if `None`.

    Raises:
        ValueError: As in [`keep_best`] and [`sample_latents`].
    """

    def sample(count: int) -> Tensor:
        return density.sample(anchors, count, anchor_weights=anchor_weights, generator=generator)

    draw = LatentDraw(sample, codec.decode)
    return keep_best(draw, judge, num_candidates=num_candidates, num_samples=num_samples, chunk_size=chunk_size)


@dataclass(frozen=True, slots=True)
class BandwidthChoice:
    """The result of [`choose_bandwidth`].

    Attributes:
        bandwidth: The selected bandwidth.
        bandwidths: All candidates, ascending.
        kept_score: Mean validation score of the kept networks, for each.
        candidate_score: Mean validation score of all drawn networks, for each.
    """

    bandwidth: float
    bandwidths: tuple[float, ...]
    kept_score: tuple[float, ...]
    candidate_score: tuple[float, ...]


def choose_bandwidth(
    codec: NetworkCodec,
    anchors: Tensor,
    judge: Judge,
    *,
    bandwidths: Sequence[float],
    density: Density,
    share: float = 0.98,
    num_candidates: int = 100,
    num_samples: int = 10,
    chunk_size: int = 64,
    generator: torch.Generator | None = None,
) -> BandwidthChoice:
    """Select the largest bandwidth that costs little validation score.

    Scores alone nearly always prefer bandwidth 0, which only reconstructs anchors. Therefore, the largest bandwidth
    whose kept networks reach at least `share` of the best mean validation score wins, so that networks are as new as
    possible without losing accuracy. All bandwidths are tried with the same random numbers.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchors: `[A, N, Z]` latents.
        judge: Scores candidates.
        bandwidths: Candidates, >= 0, in the unit of `density`.
        density: Unit and mode; its bandwidth is not used.
        share: In (0, 1].
        num_candidates: Networks to draw for each bandwidth.
        num_samples: Networks to keep for each bandwidth.
        chunk_size: Number of networks to draw and judge at a time.
        generator: Source of randomness on the device of `anchors`; the global one if `None`.

    Raises:
        ValueError: If there are no candidates, or `share` is outside (0, 1]; also as in [`subsample`].
    """
    if not bandwidths or not 0 < share <= 1:
        raise ValueError(f"expected at least one bandwidth and a share in (0, 1], got {list(bandwidths)} and {share}")
    seed = int(torch.randint(2**62, (), generator=generator, device=anchors.device))
    ascending = sorted(bandwidths)
    kept, drawn = [], []
    for bandwidth in ascending:
        selected = subsample(
            codec,
            anchors,
            judge,
            density=replace(density, bandwidth=bandwidth),
            num_candidates=num_candidates,
            num_samples=num_samples,
            chunk_size=chunk_size,
            generator=torch.Generator(anchors.device).manual_seed(seed),
        )
        kept.append(selected.mean_score)
        drawn.append(selected.candidate_score.mean().item())
    enough = max(kept) - (1 - share) * abs(max(kept))  # scores other than accuracy may be negative
    good = [bandwidth for bandwidth, score in zip(ascending, kept, strict=True) if score >= enough]
    return BandwidthChoice(good[-1], tuple(ascending), tuple(kept), tuple(drawn))


def bootstrap(
    codec: NetworkCodec,
    anchors: Tensor,
    judge: Judge,
    *,
    density: Density,
    num_rounds: int = 3,
    num_anchors: int = 20,
    num_candidates: int = 100,
    num_samples: int = 10,
    weigh_anchors: bool = False,
    chunk_size: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[SelectedNetworks, tuple[float, ...]]:
    """Bootstrapping (SANE_BOOT): sample, keep the best, make their latents the anchors of the next round.

    The best networks of all previous rounds remain candidates, so a round cannot lose them (the released code drops
    them, and returns the first networks of an unsorted list). Anchors need not be trained networks: `anchors` may come
    from a prior.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchors: `[A, N, Z]` latents of the first round.
        judge: Scores candidates.
        density: Bandwidth and mode. With the unit `anchor_std`, kernels become narrower as anchors concentrate.
        num_rounds: Number of rounds, >= 1.
        num_anchors: Number of networks that become anchors of the next round, >= 2.
        num_candidates: Number of networks to draw in each round, >= `num_anchors`.
        num_samples: Number of networks to return, at most `num_anchors`.
        weigh_anchors: Whether to draw anchors of later rounds with probabilities proportional to their validation
            scores.
        chunk_size: Number of networks to draw and judge at a time.
        generator: Source of randomness on the device of `anchors`; the global one if `None`.

    Returns:
        The best `num_samples`, best first, and after each round the mean validation score of the best `num_samples`.

    Raises:
        ValueError: If numbers do not fit together; also as in [`subsample`].
    """
    if num_rounds < 1 or not 2 <= num_anchors <= num_candidates or not 1 <= num_samples <= num_anchors:
        raise ValueError(
            "expected num_rounds >= 1 and 1 <= num_samples <= num_anchors <= num_candidates with num_anchors >= 2, "
            f"got {num_rounds} rounds, {num_samples}, {num_anchors} and {num_candidates}"
        )
    best: SelectedNetworks | None = None
    history = []
    for _ in range(num_rounds):
        centres = anchors if best is None else best.sources
        weights = best.validation_score.clamp_min(1e-6) if best is not None and weigh_anchors else None

        sample = partial(density.sample, centres, anchor_weights=weights, generator=generator)
        draw = LatentDraw(sample, codec.decode)
        best = keep_best(
            draw, judge, num_candidates=num_candidates, num_samples=num_anchors, chunk_size=chunk_size, rivals=best
        )
        history.append(best.validation_score[:num_samples].mean().item())
    assert best is not None
    return _best(best, num_samples), tuple(history)
