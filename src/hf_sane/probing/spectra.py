"""Shape of each layer's weights: singular values, and a finer distribution than s(W)."""

import torch
from torch import Tensor

from hf_sane.core.layout import Layout
from hf_sane.probing.quantiles import quantiles

DISTRIBUTION_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99, 1.0)
MAX_KURTOSIS = 30.0  # a layer that collapsed to one value would otherwise decide every probe


def layer_spectrum(values: Tensor, layout: Layout) -> Tensor:
    """Singular values of each layer, its tokens as rows, in descending order.

    They do not change when channels are permuted, nor when the `F` dimensions are rotated. For latents this refines the
    per-layer scalar of SANE (arXiv:2406.09997, section 4.2, the standard deviation over a layer's token embeddings); for
    weights it is the empirical spectrum of Martin and Mahoney (arXiv:1810.01075).

    Args:
        values: `[M, N, F]` float: latents, or tokens.
        layout: Which token belongs to which layer.

    Returns:
        `[M, sum over layers of min(tokens, F)]` float32.
    """
    return torch.cat([torch.linalg.svdvals(values[:, part].double()) for part in layout.token_slices], dim=1).float()


def layer_distribution(tokens: Tensor, layout: Layout) -> Tensor:
    """Distribution of each layer's real weights: mean, std, variance, mean size, kurtosis and 13 quantiles.

    Args:
        tokens: `[M, N, D]` float; normalised, or decoded by an autoencoder.
        layout: Which scalars are weights, and of which layer.

    Returns:
        `[M, 18 L]` float32, layer by layer.
    """
    parts = []
    for part in layout.token_slices:
        weights = tokens[:, part][:, layout.weight_mask[part].to(tokens.device)].double()
        mean, variance = weights.mean(dim=1), weights.var(dim=1, unbiased=False)
        fourth = (weights - mean[:, None]).pow(4).mean(dim=1)
        kurtosis = (fourth / variance.square().clamp_min(1e-12)).clamp_max(MAX_KURTOSIS)
        moments = torch.stack([mean, variance.sqrt(), variance, weights.abs().mean(dim=1), kurtosis], dim=1)
        parts += [moments, quantiles(weights, DISTRIBUTION_LEVELS, dim=1)]
    return torch.cat(parts, dim=1).float()
