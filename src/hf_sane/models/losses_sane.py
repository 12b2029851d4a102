"""The loss of SANE: masked reconstruction and NT-Xent, as pure functions.

`L = (1 - gamma) L_rec + gamma L_contrast` (arXiv:2406.09997, section 3); the model combines them.
"""

from typing import Literal

import torch
from torch import Tensor, nn

MIN_SPREAD = 1e-4  # added to the standard deviation by MultiZoo-SANE (arXiv:2504.10141)


def masked_spread(target: Tensor, weight_mask: Tensor, *, per_token: bool) -> Tensor:
    """Standard deviation of the real weights of a batch, or of each token.

    Args:
        target: `[B, W, D]` float.
        weight_mask: `[B, W, D]` bool, `True` at real weights.
        per_token: Whether to compute statistics per token; tokens with fewer than two real weights use those of the
            batch, since division by a spread of zero would weight them by 1e8.

    Returns:
        Scalar, or `[B, W, 1]` if `per_token`; float32, without gradient.
    """
    target, mask = target.detach().float(), weight_mask.float()

    def spread(dims: tuple[int, ...]) -> Tensor:
        count = mask.sum(dims, keepdim=True).clamp_min(1)
        mean = (target * mask).sum(dims, keepdim=True) / count
        return (((target - mean) * mask).square().sum(dims, keepdim=True) / count).sqrt()

    batch = spread((0, 1, 2))
    if not per_token:
        return batch.squeeze()
    return torch.where(mask.sum(2, keepdim=True) >= 2, spread((2,)), batch)


def masked_reconstruction_loss(
    reconstruction: Tensor,
    target: Tensor,
    weight_mask: Tensor,
    *,
    denominator: Literal["weights", "all"] = "weights",
    normalization: Literal["none", "masked", "masked_per_token"] = "none",
) -> Tensor:
    """Mean squared error over real weights only.

    `L_rec = sum(m * ((t_hat - t) / s)^2) / sum(m)`, the reconstruction term of SANE (arXiv:2406.09997, equation 2),
    with `s = 1`. The released code divides by *all* entries, so that its value shrinks with the share of padding;
    `"all"` reproduces this. Masked loss normalisation (MultiZoo-SANE, arXiv:2504.10141) maps target and output by the
    same `tau(x) = (x - mu) / (sigma + 1e-4)`, with `mu` and `sigma` over real target weights; the means cancel in the
    difference, which leaves `s = sigma + 1e-4`.

    Args:
        reconstruction: `[B, W, D]` decoded tokens `t_hat`.
        target: `[B, W, D]` tokens `t`.
        weight_mask: `[B, W, D]` bool `m`. The loss is zero if it has no `True`.
        denominator: Whether to divide by the number of real weights or of all entries.
        normalization: Whether to normalise by statistics over the batch (`"masked"`), per token, or not at all.

    Returns:
        Scalar, float32.
    """
    error = torch.where(weight_mask, reconstruction.float() - target.float(), 0.0)
    if normalization != "none":
        error = error / (
            masked_spread(target, weight_mask, per_token=normalization == "masked_per_token") + MIN_SPREAD
        )
    count = weight_mask.numel() if denominator == "all" else weight_mask.sum().clamp_min(1)
    return error.square().sum() / count


def nt_xent_loss(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of each window.

    `L = mean_i -log( exp(cos(p_i, p_i') / T) / sum_{j != i} exp(cos(p_i, p_j) / T) )` over all `2 B` projections,
    where `i'` is the other view of `i` (SimCLR, arXiv:2002.05709, equation 1; SANE, equation 3). Negatives are the
    other windows of the batch, or, under data parallelism, of the process's own batch. The released code fixes `B`
    when the model is built; here, it is that of the input.

    Args:
        first: `[B, P]` projections of the first view.
        second: `[B, P]` projections of the second view, in the same order.
        temperature: `T > 0`.

    Returns:
        Scalar, float32; zero for a single window, which has no negatives.

    Raises:
        ValueError: If the two views differ in shape.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"expected two views [B, P] of the same shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            "cut both views from the same windows"
        )
    size = len(first)
    views = nn.functional.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = (views @ views.T / temperature).fill_diagonal_(float("-inf"))
    other = torch.arange(2 * size, device=views.device).roll(size)
    return nn.functional.cross_entropy(similarity, other)


__all__ = ["masked_reconstruction_loss", "masked_spread", "nt_xent_loss"]
