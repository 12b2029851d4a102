"""Features of each layer's weights: metrics of singular values, and distributions with more detail than s(W)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hf_sane.core._layer_kinds import is_stack_of_matrices, possible_kinds
from hf_sane.core._layout import Layout
from hf_sane.core._power_law import fit_power_law
from hf_sane.core._spectra import channel_rows, gram_eigenvalues, row_correlation, singular_values
from hf_sane.core._types import StateDict
from hf_sane.probing._quantiles import quantiles

DISTRIBUTION_LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99, 1.0)
MAX_ALPHA = 10.0  # also without a tail; layers with a few equal singular values give larger exponents
MIN_LOG_NORM = -2.0  # of squared norms; weight decay can shrink a layer to 1e-18, which would dominate every probe
SMALLEST_SIZE = 0.03  # before logarithms, in standard deviations; logarithms of weights near zero are not informative
MAX_KURTOSIS = 30.0  # a layer that collapsed to one value would otherwise dominate every probe


def layer_spectrum(values: Tensor, layout: Layout) -> Tensor:
    """Singular values of each layer, with its tokens as rows, in descending order.

    They are invariant to permutations of channels and rotations of the `F` dimensions. For latents this refines
    the per-layer scalar of SANE (arXiv:2406.09997, section 4.2, the standard deviation over a layer's token
    embeddings); for weights it is the empirical spectrum of Martin and Mahoney (arXiv:1810.01075).

    Args:
        values: `[M, N, F]` float, latents or tokens.
        layout: Layout of the networks.

    Returns:
        `[M, sum over layers of min(tokens, F)]` float32.
    """
    return torch.cat([singular_values(values[:, part]) for part in layout.token_slices], dim=1).float()


def layer_distribution(tokens: Tensor, layout: Layout) -> Tensor:
    """Distribution of each layer's real weights: mean, std, variance, mean size, kurtosis and 13 quantiles.

    Args:
        tokens: `[M, N, D]` float; normalised, or decoded by an autoencoder.
        layout: Layout of the networks.

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


def weight_profile(tokens: Tensor, layout: Layout, *, with_spectrum: bool = True) -> Tensor:
    """Distribution and spectrum of each layer's weights, and the logarithms of their sizes.

    The function of a network depends on ratios of scales between layers, and training changes scales by factors, so
    that linear probes benefit from `log |x|` in addition to `x`. `x` is [`layer_distribution`] joined with
    [`layer_spectrum`]; sizes below 0.03 count as 0.03.

    Args:
        tokens: `[M, N, D]` float; normalised, or decoded by an autoencoder.
        layout: Layout of the networks.
        with_spectrum: Whether `x` contains the spectrum. Omit it to reduce overfitting if there are few training runs.

    Returns:
        `[M, 2 (18 L + sum over layers of min(tokens, D))]` float32 (without spectrum `[M, 36 L]`): all `x`, then all
        logarithms.
    """
    weights = tokens * layout.weight_mask.to(tokens.device)  # values decoded into padding have no meaning
    values = layer_distribution(weights, layout)
    if with_spectrum:
        values = torch.cat([values, layer_spectrum(weights, layout)], dim=1)
    return torch.cat([values, values.abs().clamp_min(SMALLEST_SIZE).log()], dim=1)


def spectral_features(tokens: Tensor, layout: Layout) -> Tensor:
    """Metrics of weight matrices by Martin and Mahoney, and Jin et al., as a baseline for probes.

    The metrics of each matrix `W` (convolutions flattened to `[c_out, c_in * k]`, fused experts one by one), with
    eigenvalues `lambda` of `W W^T`, are
    `log10 ||W||_F^2`, `log10 lambda_max`, stable rank `||W||_F^2 / lambda_max`, exponent `alpha` of the tail,
    `alpha log10 lambda_max`, `log10 sum lambda^alpha` (arXiv:2002.06716), and the weight correlation
    (arXiv:2010.05983). Since matrices of zoos are small, a tail holds at least half of the eigenvalues here, so that
    alpha depends on more than two or three of them; alpha is at most 10, and the logarithms of squared norms are at
    least -2. Biases, norms and single rows have no spectrum.

    Args:
        tokens: `[M, N, D]` float, raw, since normalisation would change all metrics.
        layout: Layout of the networks.

    Returns:
        `[M, 7 L']` float32, matrix by matrix.

    Raises:
        ValueError: If the networks have no matrix.
    """
    parts = []
    for weight in _matrices(layout.tensors(tokens)):
        if weight.ndim < 3 or min(weight.shape[1], weight[0, 0].numel()) < 2 or not weight.is_floating_point():
            continue
        eigenvalues = gram_eigenvalues(weight.flatten(2))
        largest = eigenvalues[:, 0].clamp_min(torch.finfo(torch.float32).tiny)
        relative = eigenvalues / largest[:, None]
        # Zeros of a rank-deficient matrix, up to rounding, do not belong to a tail.
        clean = torch.where(relative > 1e-12, relative, 0.0)
        fit = fit_power_law(clean, min_tail=max(2, -(-clean.shape[1] // 2)))
        alpha = fit.alpha.to(relative).nan_to_num(MAX_ALPHA).clamp_max(MAX_ALPHA)
        stable_rank = relative.sum(1)
        log_norm = (stable_rank * largest).log10().clamp_min(MIN_LOG_NORM)
        log_largest = largest.log10().clamp_min(MIN_LOG_NORM)
        weighted = alpha * log_largest
        alpha_norm = weighted + relative.pow(alpha[:, None]).sum(1).log10().clamp_min(0)
        correlation = row_correlation(channel_rows(weight, batch_dims=1)).mean(1)
        parts += [log_norm, log_largest, stable_rank, alpha, weighted, alpha_norm, correlation.to(relative)]
    if not parts:
        raise ValueError("these networks have no weight matrix; expected a layer with at least two rows and columns")
    return torch.stack(parts, dim=1).float()


def _matrices(tensors: StateDict) -> Iterator[Tensor]:
    """Stacked tensors `[M, ...]`, with fused experts `[M, experts, m, n]` split into one `[M, m, n]` each."""
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if len(shapes[name]) == 3 and is_stack_of_matrices(shapes[name], possible_kinds(name, shapes)):
            yield from tensor.unbind(1)
        else:
            yield tensor
