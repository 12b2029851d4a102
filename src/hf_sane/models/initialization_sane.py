"""Initialise the linear path of a SANE autoencoder from the principal subspace of real tokens."""

import torch
from torch import Tensor


def principal_directions(tokens: Tensor, weight_mask: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Principal component analysis of tokens, with padding treated as zero.

    The projection `t_hat = mu + V_r V_r^T (t - mu)` on the `r` leading directions is the best linear autoencoder with
    `r` latents (Eckart and Young, 1936). All `D` directions are returned, so that a wider residual stream keeps the
    remaining ones.

    Args:
        tokens: `[n, D]` normalised tokens.
        weight_mask: `[n, D]` bool with at least one `True`.
        rank: Number of directions `r` for which R2 is computed.

    Returns:
        `mean` `[D]` and `directions` `[D, D]` (columns, leading first), float64 on the CPU; and the R2 of the
        projection over the real weights of the sample.
    """
    mask = weight_mask.cpu()
    sample = torch.where(mask, tokens.detach().double().cpu(), 0.0)
    mean = sample.mean(0)
    centred = sample - mean
    directions = torch.linalg.svd(centred.T @ centred / len(sample))[0]
    leading = directions[:, :rank]
    error = (centred - centred @ leading @ leading.T)[mask].square().sum()
    spread = (sample[mask] - sample[mask].mean()).square().sum()
    return mean, directions, 1.0 - (error / spread.clamp_min(torch.finfo(torch.float64).tiny)).item()


__all__: list[str] = []  # used only by `SANEModel`
