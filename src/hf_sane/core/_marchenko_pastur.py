"""The Marchenko-Pastur law for the eigenvalues of matrices of independent entries, and spikes beyond it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincinv

Array = NDArray[np.float64]

GRID = 1024
MAX_ITERATIONS = 200
FITTED_SHARE = (0.1, 0.9)  # of the bulk, since spikes affect its upper end and the density diverges at a hard edge
# Shape, scale and shift of the gamma distribution with the first three moments of the Tracy-Widom law for real
# matrices (Chiani, arXiv:1209.3394, table 1).
TRACY_WIDOM_GAMMA = (46.44604884387734, 0.1860540228037886, 9.848007781128567)


@dataclass(frozen=True, slots=True)
class MarchenkoPasturFit:
    """Bulk of the eigenvalues of `W W^T`, and the eigenvalues beyond it.

    Attributes:
        sigma: Standard deviation of the entries of `W` that fits the bulk.
        lower_edge: `sigma^2 (sqrt(N) - sqrt(M))^2` for a matrix of sides `N >= M`.
        upper_edge: `sigma^2 (sqrt(N) + sqrt(M))^2`.
        threshold: `upper_edge` with a margin for the largest eigenvalue of a random matrix.
        num_spikes: Number of eigenvalues above `threshold`.
        ks_distance: Kolmogorov-Smirnov distance between the bulk and the law; NaN if only the largest eigenvalues are
            known.
    """

    sigma: float
    lower_edge: float
    upper_edge: float
    threshold: float
    num_spikes: int
    ks_distance: float


def edges(rows: float, columns: float, sigma: float = 1.0) -> tuple[float, float]:
    """Limits of the eigenvalues of `W W^T` for independent entries with standard deviation `sigma`.

    `lambda_+- = sigma^2 (sqrt(N) +- sqrt(M))^2` (Marchenko and Pastur 1967). In the papers of Martin and Mahoney
    (arXiv:1810.01075), eigenvalues are those of `W^T W / N`; multiply them by `N` to obtain ours.
    """
    return sigma**2 * (math.sqrt(rows) - math.sqrt(columns)) ** 2, sigma**2 * (
        math.sqrt(rows) + math.sqrt(columns)
    ) ** 2


def density(values: ArrayLike, rows: float, columns: float, sigma: float = 1.0) -> Array:
    """Density of the law at eigenvalues of `W W^T`; zero outside the edges.

    `p(x) = sqrt((lambda_+ - x)(x - lambda_-)) / (2 pi sigma^2 M x)`, where `M` is the smaller side.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = edges(rows, columns, sigma)
    inside = np.clip((high - values) * (values - low), 0, None)
    below = 2 * np.pi * sigma**2 * min(rows, columns) * np.where(values > 0, values, np.inf)
    return np.sqrt(inside) / below


def cumulative(values: ArrayLike, rows: float, columns: float, sigma: float = 1.0) -> Array:
    """Share of eigenvalues of `W W^T` below `values`.

    In closed form: with `q = M / N <= 1` and `x = sigma^2 N (1 + q - 2 sqrt(q) cos t)`, `0 <= t <= pi`,
    `F = ((1 + q) t + 2 sqrt(q) sin t - 2 (1 - q) arctan(tan(t / 2) (1 + sqrt(q)) / (1 - sqrt(q)))) / (2 pi q)`.
    """
    large, small = max(rows, columns), min(rows, columns)
    q = small / large
    cosine = (1 + q - np.asarray(values, dtype=np.float64) / (sigma**2 * large)) / (2 * math.sqrt(q))
    return _cumulative_at(np.arccos(np.clip(cosine, -1, 1)), q)


def quantiles(levels: ArrayLike, rows: float, columns: float) -> Array:
    """Quantiles of the eigenvalues of `W W^T` at `levels`, for entries with standard deviation 1."""
    large, small = max(rows, columns), min(rows, columns)
    q = small / large
    angles = np.linspace(0, np.pi, GRID)
    found = np.interp(np.asarray(levels, dtype=np.float64), _cumulative_at(angles, q), angles)
    return large * (1 + q - 2 * math.sqrt(q) * np.cos(found))


def _cumulative_at(angles: Array, q: float) -> Array:
    root = math.sqrt(q)
    # arctan2 instead of a quotient avoids division by zero for square matrices and at t = pi.
    turned = np.arctan2((1 + root) * np.sin(angles / 2), (1 - root) * np.cos(angles / 2))
    return ((1 + q) * angles + 2 * root * np.sin(angles) - 2 * (1 - q) * turned) / (2 * np.pi * q)


def spike_threshold(rows: float, columns: float, sigma: float, *, level: float = 0.99, num_matrices: int = 1) -> float:
    """Threshold below which the largest eigenvalue of random matrices is with probability `level`.

    The largest eigenvalue of `W W^T` is near `mu = (sqrt(N - 1) + sqrt(M))^2` and varies on the scale
    `s = (sqrt(N - 1) + sqrt(M)) (1 / sqrt(N - 1) + 1 / sqrt(M))^(1/3)` by the Tracy-Widom law (Johnstone 2001, theorem
    1.1), which is approximated by a gamma distribution (Chiani, arXiv:1209.3394). The threshold is at least the edge.

    Args:
        rows: `N`.
        columns: `M`.
        sigma: Standard deviation of the entries.
        level: Probability in (0, 1).
        num_matrices: Number of independent matrices whose eigenvalues are pooled; the threshold is for the largest of
            all.
    """
    large, small = max(rows, columns), min(rows, columns)
    shape, scale, shift = TRACY_WIDOM_GAMMA
    quantile = scale * gammaincinv(shape, level ** (1 / num_matrices)) - shift
    root = math.sqrt(max(large - 1, 0.5)) + math.sqrt(small)
    width = root * (1 / math.sqrt(max(large - 1, 0.5)) + 1 / math.sqrt(small)) ** (1 / 3)
    return max(sigma**2 * (root**2 + quantile * width), edges(large, small, sigma)[1])


def fit_bulk(
    eigenvalues: Array, rows: int, columns: int, *, num_matrices: int = 1, level: float = 0.99
) -> MarchenkoPasturFit:
    """Fit `sigma` to the bulk of a whole spectrum and count the eigenvalues beyond it.

    Singular values of the bulk are regressed, through the origin, on the quantiles of the law, over the central 80 per
    cent of the bulk. Eigenvalues beyond the threshold are removed from the bulk, `s` removed ones reduce the sides of
    the matrix to `N - s` and `M - s`, and the fit is repeated until none is removed. At most half are removed, since
    spikes presuppose a bulk.

    Args:
        eigenvalues: `[n]` float64, positive, of `W W^T`, of one matrix or several pooled ones.
        rows: `N`, longer side of a matrix, without rows of zeros.
        columns: `M`, shorter side.
        num_matrices: Number of pooled matrices.
        level: See [`spike_threshold`].

    Raises:
        ValueError: If there are fewer than two eigenvalues.
    """
    if len(eigenvalues) < 2:
        raise ValueError(f"expected at least two positive eigenvalues to fit a bulk, got {len(eigenvalues)}")
    ordered = np.sort(eigenvalues)
    spikes = 0
    for _ in range(MAX_ITERATIONS):
        bulk = ordered[: len(ordered) - spikes]
        large, small = _deflated(rows, columns, spikes / num_matrices)
        sigma = _bulk_sigma(bulk, large, small)
        threshold = spike_threshold(large, small, sigma, level=level, num_matrices=num_matrices)
        beyond = min(int((ordered > threshold).sum()), len(ordered) // 2)
        if beyond <= spikes:
            break
        spikes = beyond
    share_below = cumulative(bulk, large, small, sigma)
    steps = np.arange(len(bulk) + 1) / len(bulk)
    distance = max(np.abs(share_below - steps[:-1]).max(), np.abs(share_below - steps[1:]).max())
    return MarchenkoPasturFit(sigma, *edges(large, small, sigma), threshold, spikes, float(distance))


def fit_energy(
    largest: Array, rows: int, columns: int, squared_norm: float, *, level: float = 0.99
) -> MarchenkoPasturFit:
    """Fit `sigma` if only the largest eigenvalues are known, from the norm without the spikes.

    `sigma^2 = (||W||_F^2 - sum of the spikes) / ((N - s)(M - s))`. How well the bulk follows the law is then unknown.

    Args:
        largest: `[n]` float64, the largest eigenvalues of `W W^T`.
        rows: `N`.
        columns: `M`.
        squared_norm: `||W||_F^2`.
        level: See [`spike_threshold`].
    """
    ordered = np.sort(largest)[::-1]
    spikes = 0
    for _ in range(MAX_ITERATIONS):
        large, small = _deflated(rows, columns, spikes)
        sigma = math.sqrt(max(squared_norm - ordered[:spikes].sum(), 0.0) / (large * small))
        threshold = spike_threshold(large, small, sigma, level=level)
        beyond = int((ordered > threshold).sum())
        if beyond <= spikes:
            break
        spikes = beyond
    return MarchenkoPasturFit(sigma, *edges(large, small, sigma), threshold, spikes, math.nan)


def _deflated(rows: int, columns: int, spikes: float) -> tuple[float, float]:
    large, small = max(rows, columns), min(rows, columns)
    return max(large - spikes, 1.0), max(small - spikes, 1.0)


def _bulk_sigma(bulk: Array, rows: float, columns: float) -> float:
    levels = (np.arange(len(bulk)) + 0.5) / len(bulk)
    inner = (levels >= FITTED_SHARE[0]) & (levels <= FITTED_SHARE[1])
    inner = inner if inner.any() else np.ones_like(inner)
    expected = np.sqrt(quantiles(levels[inner], rows, columns))
    return float(np.sqrt(bulk[inner]) @ expected / (expected @ expected))
