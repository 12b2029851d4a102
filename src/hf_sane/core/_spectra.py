"""Exact and approximate singular values of weight matrices, and metrics of them and of the entries."""

from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

PartialMethod = Literal["lanczos", "randomized"]

BLOCK_SCALARS = 2**22  # of a matrix that are converted to float64 at a time
OVERSAMPLING = 16
POWER_ITERATIONS = 4


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values in descending order, accurate also for the smallest.

    Args:
        matrices: `[..., m, n]` float.

    Returns:
        `[..., min(m, n)]` float64.
    """
    return torch.linalg.svdvals(matrices.double())


def gram_eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of the smaller of `W W^T` and `W^T W` in descending order, which are squared singular values.

    It is several times faster than [`singular_values`] and makes no float64 copy of the whole matrix. Squaring reduces
    the precision of small values: eigenvalues have errors of about `1e-16 lambda_max`, and singular values of
    `1e-8 sigma_max`, less than the rounding of weights in float32. Use [`singular_values`] for float64 weights.

    Args:
        matrices: `[..., m, n]` float.

    Returns:
        `[..., min(m, n)]` float64, >= 0.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    columns = max(1, BLOCK_SCALARS // max(1, wide[..., 0].numel()))
    gram = torch.zeros(*wide.shape[:-1], wide.shape[-2], dtype=torch.float64, device=wide.device)
    for start in range(0, wide.shape[-1], columns):
        block = wide[..., start : start + columns].double()
        gram += block @ block.mT
    return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)


def top_singular_values(matrix: Tensor, count: int, *, method: PartialMethod = "lanczos", seed: int = 0) -> Tensor:
    """The largest singular values of a large matrix, without a full decomposition.

    `"lanczos"` is ARPACK's implicitly restarted Lanczos method (`scipy.sparse.linalg.svds`), accurate to rounding.
    `"randomized"` projects onto `1.5 count + 16` random directions after four power iterations (Halko, Martinsson and
    Tropp, arXiv:0909.4061, algorithm 4.4, by `torch.svd_lowrank`). Its values are never too large, up to rounding, and
    too small by per cents if the spectrum is flat; since it requires only products of large matrices, it also suits
    GPUs.

    Args:
        matrix: `[m, n]` float.
        count: Number of singular values, `1 <= count < min(m, n)`.
        method: `"lanczos"` or `"randomized"`.
        seed: Random seed of the starting vectors.

    Returns:
        `[count]` float64 on the CPU, descending.

    Raises:
        ValueError: If `count` is out of range, or the method is unknown.
    """
    smaller = min(matrix.shape[-2:])
    if matrix.ndim != 2 or not 1 <= count < smaller:
        raise ValueError(
            f"expected one matrix and 1 <= count < {smaller}, got shape {list(matrix.shape)} and {count}; decompose "
            "small matrices exactly"
        )
    if method == "lanczos":
        start = np.random.default_rng(seed).standard_normal(smaller)
        found = svds(matrix.double().cpu().numpy(), k=count, v0=start, return_singular_vectors=False)
        return torch.from_numpy(np.sort(found)[::-1].copy())
    if method == "randomized":
        with torch.random.fork_rng():  # since svd_lowrank accepts no generator
            torch.manual_seed(seed)
            width = min(count + count // 2 + OVERSAMPLING, smaller)
            return torch.svd_lowrank(matrix.double(), q=width, niter=POWER_ITERATIONS)[1][:count].cpu()
    raise ValueError(f"expected method 'lanczos' or 'randomized', got {method!r}")


def rank_tolerance(largest: float, shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Limit up to which singular values count as zero: `sigma_max max(m, n) eps`, with `eps` of the weights' dtype.

    This is the convention of `numpy.linalg.matrix_rank`. For 16-bit weights, `eps` is that of float32, since rounding
    of the entries is noise of full rank, which no smaller tolerance could distinguish from weights.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return largest * max(shape) * eps


def weight_correlation(weight: Tensor, *, max_channels: int = 4096, seed: int = 0) -> float:
    """Similarity of the channels of a layer (Jin et al., arXiv:2010.05983).

    For dense layers, it is the mean over pairs of channels `i != j` of `|w_i^T w_j| / (||w_i|| ||w_j||)`; for
    convolutions, the same between the kernels of two channels for one input channel, averaged over input channels.
    Deviations: since kernels of one scalar have only cosines of 1, 1x1 convolutions count as dense; pairs with a
    channel of zeros count as 0.

    Args:
        weight: `[c_out, c_in]` or `[c_out, c_in, *kernel]` float.
        max_channels: Maximum number of channels; if there are more, the mean is over pairs of a random subset.
        seed: Random seed of the subset.

    Returns:
        In [0, 1]; NaN for a layer of one channel.
    """
    channels = weight.shape[0]
    if channels > max_channels:
        generator = torch.Generator().manual_seed(seed)
        weight = weight[torch.randperm(channels, generator=generator)[:max_channels].to(weight.device)]
    rows = channel_rows(weight)
    step = max(1, BLOCK_SCALARS // weight.shape[0] ** 2)
    parts = [row_correlation(rows[start : start + step]) for start in range(0, len(rows), step)]
    return torch.cat(parts).mean().item()


def channel_rows(weight: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Vectors of a layer that its weight correlation compares, see [`weight_correlation`].

    Args:
        weight: `[*batch, c_out, c_in, *kernel]`.
        batch_dims: Number of leading axes that index networks.

    Returns:
        `[*batch, c_in, c_out, k]` for kernels of `k > 1` scalars, otherwise `[*batch, 1, c_out, c_in]`.
    """
    kernels = weight.flatten(batch_dims + 2) if weight.ndim > batch_dims + 2 else weight.unsqueeze(-1)
    if kernels.shape[-1] > 1:
        return kernels.transpose(batch_dims, batch_dims + 1)
    return kernels[..., 0].unsqueeze(batch_dims)


def row_correlation(rows: Tensor) -> Tensor:
    """Mean absolute cosine between rows of each matrix: `[..., m, n]` to `[...]` float32; NaN for one row."""
    rows = rows.float()
    unit = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    count = rows.shape[-2]
    cosines = (unit @ unit.mT).abs_()
    sums = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    return sums / (count * (count - 1)) if count > 1 else torch.full_like(sums, torch.nan)
