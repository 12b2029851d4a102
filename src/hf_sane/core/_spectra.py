"""Singular values of weight matrices, exact and approximate, and metrics of them and of the entries."""

from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

PartialMethod = Literal["lanczos", "randomized"]

BLOCK_SCALARS = 2**22  # of a matrix, converted to float64 at a time
OVERSAMPLING = 16
POWER_ITERATIONS = 4


def singular_values(matrices: Tensor) -> Tensor:
    """Singular values in descending order, accurate to the last one.

    Args:
        matrices: `[..., m, n]` float.

    Returns:
        `[..., min(m, n)]` float64.
    """
    return torch.linalg.svdvals(matrices.double())


def gram_eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of `W W^T` (or `W^T W`, whichever is smaller) in descending order: squared singular values.

    Several times faster than [`singular_values`], and without a float64 copy of the whole matrix. Squaring costs
    precision at the small end: an eigenvalue is off by about `1e-16 lambda_max`, a singular value by `1e-8 sigma_max`,
    which is less than the rounding of weights stored in float32. Take [`singular_values`] for float64 weights.

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
    """The largest singular values of a large matrix, without decomposing it.

    `"lanczos"` is ARPACK's implicitly restarted Lanczos method (`scipy.sparse.linalg.svds`), accurate to rounding.
    `"randomized"` projects onto `1.5 count + 16` random directions after four power iterations (Halko, Martinsson and
    Tropp, arXiv:0909.4061, algorithm 4.4, by `torch.svd_lowrank`): its values are never too large, up to rounding, and
    too small by per cents where the spectrum is flat; it needs only products of large matrices, so it also suits a
    GPU.

    Args:
        matrix: `[m, n]` float.
        count: How many, `1 <= count < min(m, n)`.
        method: `"lanczos"` or `"randomized"`.
        seed: Random seed of the starting vectors.

    Returns:
        `[count]` float64 on the CPU, descending.

    Raises:
        ValueError: If there is no such number of values, or for an unknown method.
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
        with torch.random.fork_rng():  # svd_lowrank takes no generator
            torch.manual_seed(seed)
            width = min(count + count // 2 + OVERSAMPLING, smaller)
            return torch.svd_lowrank(matrix.double(), q=width, niter=POWER_ITERATIONS)[1][:count].cpu()
    raise ValueError(f"expected method 'lanczos' or 'randomized', got {method!r}")


def rank_tolerance(largest: float, shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Singular values up to this count as zero: `sigma_max max(m, n) eps`, with `eps` of the type the weights came in.

    The convention of `numpy.linalg.matrix_rank`. For 16-bit weights `eps` is that of float32: rounding of the entries
    is noise of full rank, which no tolerance below it could tell from weights.
    """
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    return largest * max(shape) * eps


def weight_correlation(weight: Tensor, *, max_channels: int = 4096, seed: int = 0) -> float:
    """How much the channels of a layer resemble each other (Jin et al., arXiv:2010.05983).

    Dense layers: the mean over pairs of channels `i != j` of `|w_i^T w_j| / (||w_i|| ||w_j||)`. Convolutions: the same
    between the kernels that two channels hold for one input channel, then the mean over input channels. Deviations: a
    kernel of one scalar has only cosines of 1, so 1x1 convolutions count as dense; a pair with a channel that is all
    zero counts as 0.

    Args:
        weight: `[c_out, c_in]` or `[c_out, c_in, *kernel]` float.
        max_channels: With more channels than that, the mean is over pairs among so many of them, drawn at random.
        seed: Random seed of that draw.

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
    """Which vectors of a layer its weight correlation compares, see [`weight_correlation`].

    Args:
        weight: `[*batch, c_out, c_in, *kernel]`.
        batch_dims: Leading axes that count networks.

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
