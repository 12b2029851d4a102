"""Baselines for sampled networks: networks derived from anchors without an autoencoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_sane.networks._modules import fresh_networks
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._diversity import WeightSpace, nearest_distances, nearest_training_distance
from hf_sane.sampling._generation import NetworkCodec, SampledNetworks, check_raw_tokens
from hf_sane.sampling._selection import Draw, Judge

RELATIVE_TOLERANCE = 1e-3
MAX_STEPS = 60
AVERAGE_GROUP = 5  # anchors per average, since there is only one average of all
SCRATCH_SEED = 1_000_000  # seeds of networks from scratch, far from those of zoos


def reconstructed_anchors(codec: NetworkCodec, anchor_tokens: Tensor) -> SampledNetworks:
    """Anchors that are encoded and decoded without noise, from which sampling starts.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchor_tokens: `[A, N, D]` raw tokens.
    """
    latents = codec.encode(anchor_tokens)
    return SampledNetworks(latents, codec.decode(latents))


def noisy_anchors(
    space: WeightSpace,
    anchor_tokens: Tensor,
    num_samples: int,
    *,
    scale: float,
    shape: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Anchors with noise added to their weights: `w + scale * sigma * eps`.

    The simplest way to obtain new networks of nearly the same function, which is hard to beat if anchors are in wide
    minima (Zeng et al., arXiv:2506.07998). Running statistics of batch norm get no noise.

    Args:
        space: Standardised weight space.
        anchor_tokens: `[A, N, D]` raw tokens.
        num_samples: Number of networks, `S`; each starts from a random anchor.
        scale: Standard deviation of the noise in units of `shape`, >= 0.
        shape: `[N, D]` standard deviations `sigma`, such as [`anchor_spread`]; those of the layers if `None`.
        generator: Source of randomness on the device of the anchors; the global one if `None`.

    Returns:
        `[S, N, D]` raw tokens.

    Raises:
        ValueError: If `num_samples < 1`, `scale` is negative or not finite, or tokens do not fit.
    """
    centres, noise = _noise(space, anchor_tokens, num_samples, shape, generator)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"the noise scale must be a finite number >= 0, got {scale}")
    return centres + scale * noise


def matched_noise_scale(
    space: WeightSpace,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    *,
    distance: float,
    shape: Tensor | None = None,
    num_samples: int = 64,
    generator: torch.Generator | None = None,
) -> float:
    """Noise scale at which noisy anchors are as far from training networks as the samples in the comparison.

    Accuracy falls with distance for every method, so methods must be compared at the same distance. Bisection on the
    scale, with the same anchors and noise at every step, until the mean distance to the nearest training network is
    within 0.1% of `distance`.

    Args:
        space: Standardised weight space.
        anchor_tokens: `[A, N, D]` raw tokens.
        training_tokens: `[T, N, D]` raw tokens of all training networks, the anchors among them.
        distance: Mean distance to reach, > 0; see [`nearest_training_distance`].
        shape: Standard deviations; see [`noisy_anchors`].
        num_samples: Noisy networks per step.
        generator: Source of randomness on the device of the anchors; the global one if `None`.

    Returns:
        The scale, for [`noisy_anchors`].

    Raises:
        ValueError: If `distance` is not positive and finite, the anchors themselves are farther away than that, or
            `shape` is zero everywhere.
    """
    if not 0 < distance < float("inf"):
        raise ValueError(f"the distance to match must be positive and finite, got {distance}")
    centres, noise = _noise(space, anchor_tokens, num_samples, shape, generator)
    if not noise.any():
        raise ValueError("expected noise on some weights, got a shape of zeros: the anchors do not differ")
    training = space.points(training_tokens)

    def mean_distance(scale: float) -> float:
        return nearest_distances(space.points(centres + scale * noise), training)[0].mean().item()

    if (start := mean_distance(0.0)) > distance:
        raise ValueError(
            f"the anchors are {start:.4g} from the nearest training network, more than the {distance:.4g} to match; "
            "pass the training networks that the anchors were chosen from"
        )
    return _bisect(mean_distance, distance)


def _bisect(function: Callable[[float], float], wanted: float) -> float:
    """Argument at which an increasing function on [0, inf) reaches `wanted`."""
    low, high = 0.0, wanted
    while function(high) < wanted:
        low, high = high, 2 * high
    for _ in range(MAX_STEPS):
        middle = (low + high) / 2
        value = function(middle)
        if abs(value - wanted) <= RELATIVE_TOLERANCE * wanted:
            break
        low, high = (middle, high) if value < wanted else (low, middle)
    return middle


def _noise(
    space: WeightSpace,
    anchor_tokens: Tensor,
    num_samples: int,
    shape: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Randomly chosen anchors and unit noise in units of `shape`, both `[S, N, D]`."""
    check_raw_tokens(anchor_tokens, space.layout)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    pick = torch.randint(len(anchor_tokens), (num_samples,), generator=generator, device=anchor_tokens.device)
    centres = anchor_tokens[pick]
    noise = torch.randn(centres.shape, generator=generator, dtype=centres.dtype, device=centres.device)
    return centres, noise * (space.token_scales() if shape is None else shape).to(centres)


def anchor_spread(space: WeightSpace, anchor_tokens: Tensor) -> Tensor:
    """Standard deviation of every weight over aligned anchors, `[N, D]`; zero at padding and running statistics.

    Raises:
        ValueError: If there are fewer than two anchors.
    """
    check_raw_tokens(anchor_tokens, space.layout)
    if len(anchor_tokens) < 2:
        raise ValueError(f"a spread over anchors needs at least two, got {len(anchor_tokens)}")
    return anchor_tokens.std(dim=0) * (space.token_scales() > 0)


def interpolated_anchors(
    space: WeightSpace,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    num_samples: int,
    *,
    distance: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Networks on the lines between aligned anchors: `w_a + share (w_b - w_a)`.

    The share is that at which networks are as far from training networks as those that they are compared with; at
    most 1/2, where no line is farther from both of its ends.

    Args:
        space: Standardised weight space.
        anchor_tokens: `[A, N, D]` raw tokens of at least two anchors, aligned to one reference.
        training_tokens: `[T, N, D]` raw tokens of all training networks, the anchors among them.
        num_samples: Networks to make, `S`.
        distance: Mean distance to the nearest training network, > 0.
        generator: CPU source of randomness; the global one if `None`.

    Returns:
        `[S, N, D]` raw tokens.

    Raises:
        ValueError: If there are fewer than two anchors, or the distance is not positive and finite.
    """
    if len(anchor_tokens) < 2 or not 0 < distance < float("inf"):
        raise ValueError(f"expected at least 2 anchors and a distance > 0, got {len(anchor_tokens)} and {distance}")
    pairs = torch.stack([torch.randperm(len(anchor_tokens), generator=generator)[:2] for _ in range(num_samples)])
    first, second = anchor_tokens[pairs[:, 0]], anchor_tokens[pairs[:, 1]]
    training = space.points(training_tokens)

    def at(share: float) -> Tensor:
        return first + share * (second - first)

    def mean_distance(share: float) -> float:
        return nearest_distances(space.points(at(share)), training)[0].mean().item()

    if mean_distance(0.5) <= distance:
        return at(0.5)
    low, high = 0.0, 0.5
    for _ in range(MAX_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_distance(middle) < distance else (low, middle)
    return at(high)


def shrunken_networks(space: WeightSpace, raw_tokens: Tensor, like: Tensor) -> Tensor:
    """Networks whose weights are scaled to the mean norm of others.

    Averages have small weights, and small weights alone speed up fine-tuning: compare at equal norm.

    Args:
        space: Says which values are weights: running statistics keep their size.
        raw_tokens: `[S, N, D]` raw tokens to scale.
        like: `[R, N, D]` raw tokens of the networks whose norm is taken.

    Returns:
        `[S, N, D]` raw tokens.
    """
    is_weight = space.token_scales() > 0
    own, wanted = (tokens[:, is_weight].double().norm(dim=1) for tokens in (raw_tokens, like))
    factors = (wanted.mean() / own).to(raw_tokens)[:, None, None]
    return torch.where(is_weight, factors * raw_tokens, raw_tokens)


def average_networks(
    anchor_tokens: Tensor,
    num_samples: int,
    *,
    group_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Averages of the weights of aligned anchors, over all of them or over random groups.

    Args:
        anchor_tokens: `[A, N, D]` raw tokens, aligned to one reference.
        num_samples: Number of averages, `S`; they are all equal if each contains all anchors.
        group_size: Anchors per average, drawn without repetition; all if `None`.
        generator: CPU source of randomness; the global one if `None`.

    Returns:
        `[S, N, D]` raw tokens.

    Raises:
        ValueError: If there are fewer anchors than `group_size`, or a number is below 1.
    """
    size = len(anchor_tokens) if group_size is None else group_size
    if num_samples < 1 or not 1 <= size <= len(anchor_tokens):
        raise ValueError(
            f"expected num_samples >= 1 and groups of 1 to {len(anchor_tokens)} anchors, got {num_samples} and {size}"
        )
    draws = [torch.randperm(len(anchor_tokens), generator=generator)[:size] for _ in range(num_samples)]
    groups = [draw.sort().values for draw in draws]  # so that equal groups have equal averages, to the last bit
    return torch.stack([anchor_tokens[group.to(anchor_tokens.device)].mean(dim=0) for group in groups])


def noise_baseline(
    codec: NetworkCodec,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    *,
    like: StackedNetworks,
    generator: torch.Generator | None = None,
) -> Draw:
    """Anchors with noise on their weights, whose mean distance to the training networks is that of other networks.

    Without matching, smaller noise would give arbitrarily accurate networks. Distances are measured as in
    [`matched_noise_scale`], without permutations.

    Args:
        codec: Tokenizer, layout and architecture.
        anchor_tokens: `[A, N, D]` raw tokens.
        training_tokens: `[T, N, D]` raw tokens of all training networks, including the anchors.
        like: Networks of the method to compare noise with.
        generator: CPU source of randomness, for the scale and for draws; the global one if `None`.

    Returns:
        A function for [`keep_best`] that draws noisy networks: their tokens, and the networks without conditioning.

    Raises:
        ValueError: As in [`matched_noise_scale`].
    """
    space = WeightSpace.fit(codec.layout, training_tokens)
    distance = nearest_training_distance(space, codec.tokens(like), training_tokens).mean().item()
    scale = matched_noise_scale(space, anchor_tokens, training_tokens, distance=distance, generator=generator)

    def draw(count: int) -> tuple[Tensor, StackedNetworks]:
        tokens = noisy_anchors(space, anchor_tokens, count, scale=scale, generator=generator)
        return tokens, codec.networks(tokens)

    return draw


def simple_baselines(
    codec: NetworkCodec,
    anchor_tokens: Tensor,
    judge: Judge,
    *,
    num_networks: int,
    draw_noise: Draw,
    shown: Tensor | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> dict[str, StackedNetworks]:
    """Baselines without sampled latents: anchors, their reconstructions, noisy anchors, averages, scratch.

    With a judge that conditions batch norm, all but anchors and networks from scratch are conditioned.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchor_tokens: `[A, N, D]` raw tokens, which must be aligned for meaningful averages.
        judge: Judge, with or without batch-norm conditioning.
        num_networks: Number of networks of each of noise, averages and scratch.
        draw_noise: See [`noise_baseline`].
        shown: `[S, N, D]` raw tokens of the anchors to include as a baseline; all if `None`.
        seed: Random seed of the networks from scratch.
        generator: CPU source of randomness, for the averages; the global one if `None`.

    Returns:
        Networks by name: `"anchors"`, `"reconstructed_anchors"`, `"anchor_noise"`, `"anchor_average"` and `"scratch"`.
    """
    shown = anchor_tokens if shown is None else shown
    _, noisy = draw_noise(num_networks)
    group_size = min(AVERAGE_GROUP, len(anchor_tokens))
    averages = average_networks(anchor_tokens, num_networks, group_size=group_size, generator=generator)
    return {
        "anchors": codec.networks(shown),
        "reconstructed_anchors": judge.condition(reconstructed_anchors(codec, shown).networks),
        "anchor_noise": judge.condition(noisy),
        "anchor_average": judge.condition(codec.networks(averages)),
        "scratch": fresh_networks(codec.config, [SCRATCH_SEED + seed + index for index in range(num_networks)]),
    }
