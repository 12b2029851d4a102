"""Baselines for sampled networks: networks derived from anchors without an autoencoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_sane.sampling._diversity import WeightSpace, nearest_distances
from hf_sane.sampling._generation import NetworkCodec, SampledNetworks, check_raw_tokens

RELATIVE_TOLERANCE = 1e-3
MAX_STEPS = 60
SCRATCH_SEED = 1_000_000  # of networks from scratch: far from the seeds that zoos are trained from


def reconstructed_anchors(codec: NetworkCodec, anchor_tokens: Tensor) -> SampledNetworks:
    """Anchors through encoder and decoder, without noise: what sampling starts from.

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
    generator: torch.Generator | None = None,
) -> Tensor:
    """Anchors with noise on their weights: `w + scale * sigma_layer * eps`.

    The simplest way to a new network of nearly the same function, and hard to beat where anchors lie in wide minima
    (Zeng et al., arXiv:2506.07998). Running statistics of batch norm get no noise.

    Args:
        space: Standardised weight space.
        anchor_tokens: `[A, N, D]` raw tokens.
        num_samples: Networks to make, `S`; each starts from an anchor drawn at random.
        scale: Standard deviation of the noise in standard deviations of the layer, >= 0.
        generator: Source of randomness on the device of the anchors; the global one when `None`.

    Returns:
        `[S, N, D]` raw tokens.

    Raises:
        ValueError: For `num_samples < 1`, a negative or not finite `scale`, or tokens that do not fit.
    """
    centres, noise = _noise(space, anchor_tokens, num_samples, generator)
    if not 0 <= scale < float("inf"):
        raise ValueError(f"the noise scale must be a finite number >= 0, got {scale}")
    return centres + scale * noise


def matched_noise_scale(
    space: WeightSpace,
    anchor_tokens: Tensor,
    training_tokens: Tensor,
    *,
    distance: float,
    num_samples: int = 64,
    generator: torch.Generator | None = None,
) -> float:
    """The noise at which noisy anchors are as far from training networks as the samples they are compared with.

    Accuracy falls with distance for every method, so methods can only be compared at one distance. Bisection on the
    scale, with the same anchors and noise at every step, until the mean distance to the nearest training network is
    within 0.1 % of `distance`.

    Args:
        space: Standardised weight space.
        anchor_tokens: `[A, N, D]` raw tokens.
        training_tokens: `[T, N, D]` raw tokens of all training networks, the anchors among them.
        distance: Mean distance to reach, > 0; see [`nearest_training_distance`].
        num_samples: Noisy networks per step.
        generator: Source of randomness on the device of the anchors; the global one when `None`.

    Returns:
        The scale, for [`noisy_anchors`].

    Raises:
        ValueError: If `distance` is not positive and finite, or the anchors themselves are farther away than that.
    """
    if not 0 < distance < float("inf"):
        raise ValueError(f"the distance to match must be positive and finite, got {distance}")
    centres, noise = _noise(space, anchor_tokens, num_samples, generator)
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
    """Argument at which a growing function from [0, inf) reaches `wanted`."""
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
    space: WeightSpace, anchor_tokens: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Randomly chosen anchors and unit noise in their layers' standard deviations, both `[S, N, D]`."""
    check_raw_tokens(anchor_tokens, space.layout)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    pick = torch.randint(len(anchor_tokens), (num_samples,), generator=generator, device=anchor_tokens.device)
    centres = anchor_tokens[pick]
    noise = torch.randn(centres.shape, generator=generator, dtype=centres.dtype, device=centres.device)
    return centres, noise * space.token_scales().to(centres)


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
        num_samples: Averages to make, `S`; with all anchors in each they are all equal.
        group_size: Anchors per average, drawn without repetition; all when `None`.
        generator: CPU source of randomness; the global one when `None`.

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
    groups = [torch.randperm(len(anchor_tokens), generator=generator)[:size] for _ in range(num_samples)]
    return torch.stack([anchor_tokens[group.to(anchor_tokens.device)].mean(dim=0) for group in groups])
