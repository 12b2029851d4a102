"""Features without an autoencoder: the weights (W), and statistics of each layer (s(W))."""

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.probing._quantiles import quantiles

STATISTICS_LEVELS = (0.01, 0.25, 0.5, 0.75, 0.99)


def flattened_weights(tokens: Tensor, layout: Layout) -> Tensor:
    """W: all real weights of each network, without padding.

    Args:
        tokens: `[M, N, D]` float, raw or normalised (a probe standardises every feature anyway).
        layout: Layout of the networks.

    Returns:
        `[M, F]` float32, `F = layout.num_weights`, in the order of the tokens.

    Raises:
        ValueError: If `tokens` does not fit `layout`.
    """
    _check(tokens, layout)
    return tokens[:, layout.weight_mask.to(tokens.device)].float()


def layer_statistics(tokens: Tensor, layout: Layout) -> Tensor:
    """s(W): mean, variance and quantiles 0.01, 0.25, 0.5, 0.75, 0.99 of each layer (Unterthiner et al. 2020).

    Weights and bias of a layer are taken together. Deviation: the statistics are over real weights. The released code
    of SANE computes them over padded tokens, so that in a layer with much padding most quantiles are zero.

    Args:
        tokens: `[M, N, D]` float, raw or normalised.
        layout: Layout of the networks.

    Returns:
        `[M, 7 L]` float32, layer by layer.

    Raises:
        ValueError: If `tokens` does not fit `layout`.
    """
    _check(tokens, layout)
    parts = []
    for part in layout.token_slices:
        weights = tokens[:, part][:, layout.weight_mask[part].to(tokens.device)].double()
        moments = torch.stack([weights.mean(dim=1), weights.var(dim=1, unbiased=False)], dim=1)
        parts += [moments, quantiles(weights, STATISTICS_LEVELS, dim=1)]
    return torch.cat(parts, dim=1).float()


def _check(tokens: Tensor, layout: Layout) -> None:
    if tokens.ndim != 3 or tokens.shape[1:] != (layout.num_tokens, layout.token_dim):
        raise ValueError(
            f"expected tokens [M, {layout.num_tokens}, {layout.token_dim}] of this layout, got {list(tokens.shape)}"
        )
