"""Principal components of weight tokens, and of whole networks, for linear codes and linear paths."""

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


def network_directions(tokens: Tensor, weight_mask: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal component analysis of whole networks, with padding treated as zero.

    The smaller one of the two matrices of products, between networks or between weights, is decomposed in float64.

    Args:
        tokens: `[T, N, D]` normalised tokens of networks of one layout.
        weight_mask: `[N, D]` bool, `True` at real weights.
        size: Number of components `K`; those beyond the rank of the networks are zero.

    Returns:
        `mean` `[N, D]`, orthonormal `directions` `[N, D, K]` (leading first), and standard deviations `[K]` along them
        (one for components without spread). Float64, on the CPU.
    """
    mask = weight_mask.cpu()
    networks = tokens.detach().cpu().double().masked_fill(~mask, 0.0).flatten(1)
    mean = networks.mean(0)
    centred = networks - mean
    if len(centred) < centred.shape[1]:
        powers, vectors = torch.linalg.eigh(centred @ centred.T)
        vectors = centred.T @ vectors
        vectors = vectors / vectors.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    else:
        powers, vectors = torch.linalg.eigh(centred.T @ centred)
    powers = powers.flip(0).clamp_min(0)
    rank = min(size, int((powers > powers[0] * centred.shape[1] * torch.finfo(torch.float64).eps).sum()))
    directions, deviations = centred.new_zeros(centred.shape[1], size), centred.new_ones(size)
    directions[:, :rank] = vectors.flip(1)[:, :rank]
    deviations[:rank] = (powers[:rank] / len(centred)).sqrt()
    return mean.view(mask.shape), directions.view(*mask.shape, size), deviations


__all__: list[str] = []  # used only by the autoencoders
