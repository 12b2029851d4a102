"""Pool latents that arrive in blocks, from sums for each layer and the latents of at most one layer."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_sane.probing._poolings import MOMENT_LEVELS
from hf_sane.probing._quantiles import quantiles

StreamPooling = Literal["mean", "layer_mean", "layer_mean_std", "layer_moments", "layer_covariance", "layer_spectrum"]
STREAM_POOLINGS: tuple[StreamPooling, ...] = get_args(StreamPooling)
WITH_PRODUCTS = ("layer_covariance", "layer_spectrum")


class LatentAccumulator:
    """Accumulates the statistics of the latents `z` of one network that poolings need.

    For each layer, in float64: `sum z` and `sum z^2`, `[L, Z]`, for means and standard deviations; `sum z z^T`,
    `[L, Z, Z]`, for `layer_covariance`, and for `layer_spectrum`, since the singular values of a layer are the roots
    of its eigenvalues (exact to 1e-8 of the largest, less than the rounding of float32 latents). The quantiles of
    `layer_moments` cannot be computed from sums, so the latents of the current layer are kept, in a buffer as long as
    the longest layer. Otherwise, memory does not depend on the size of the network.

    Args:
        layer_sizes: Number of tokens of each of the `L` layers.
        latent_dim: `Z`.
        poolings: Poolings to compute.
    """

    def __init__(self, layer_sizes: Sequence[int], latent_dim: int, poolings: Sequence[StreamPooling]) -> None:
        size = (len(layer_sizes), latent_dim)
        self._expected = torch.tensor(layer_sizes)
        self._counts = torch.zeros(len(layer_sizes), dtype=torch.int64)
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)
        with_products, with_quantiles = any(name in WITH_PRODUCTS for name in poolings), "layer_moments" in poolings
        self._products = torch.zeros(*size, latent_dim, dtype=torch.float64) if with_products else None
        self._quantiles = torch.zeros(size[0], len(MOMENT_LEVELS), latent_dim) if with_quantiles else None
        self._layer = torch.empty(max(layer_sizes) if with_quantiles else 0, latent_dim)

    def add(self, latents: Tensor, layers: Tensor) -> None:
        """Add the next latents.

        Args:
            latents: `[n, Z]` float on the CPU, in the order of the sequence.
            layers: `[n]` int64, layer index of each.
        """
        present, sizes = torch.unique_consecutive(layers, return_counts=True)
        for layer, part in zip(present.tolist(), latents.split(sizes.tolist()), strict=True):
            if self._quantiles is not None:
                self._keep(layer, part)
            wide = part.double()
            self._counts[layer] += len(part)
            self._sums[layer] += wide.sum(dim=0)
            self._squares[layer] += wide.square().sum(dim=0)
            if self._products is not None:
                self._products[layer] += wide.mT @ wide

    def _keep(self, layer: int, part: Tensor) -> None:
        """Keep latents for quantiles, which are computed, and the buffer reused, once a layer is complete."""
        assert self._quantiles is not None
        done, size = int(self._counts[layer]), int(self._expected[layer])
        self._layer[done : done + len(part)] = part
        if done + len(part) == size:
            self._quantiles[layer] = quantiles(self._layer[:size], MOMENT_LEVELS, dim=0)

    def pool(self, pooling: StreamPooling) -> Tensor:
        """One embedding, `[F]` float32, as returned by `pool_latents` for all latents at once.

        Raises:
            ValueError: If latents of some tokens are missing, or the pooling was not requested.
        """
        if not torch.equal(self._counts, self._expected):
            raise ValueError(
                f"expected the latents of {int(self._expected.sum())} tokens, got {int(self._counts.sum())}; add "
                "the others first"
            )
        counts = self._counts[:, None].double()
        means = self._sums / counts
        deviations = (self._squares / counts - means.square()).clamp_min(0).sqrt()
        if pooling == "mean":
            return (self._sums.sum(dim=0) / counts.sum()).float()
        if pooling == "layer_mean":
            return means.flatten().float()
        if pooling == "layer_mean_std":
            return torch.cat([means, deviations], dim=1).flatten().float()
        if pooling == "layer_moments" and self._quantiles is not None:
            return torch.cat([means, deviations, self._quantiles.flatten(1)], dim=1).flatten().float()
        if pooling == "layer_covariance" and self._products is not None:
            row, column = torch.triu_indices(means.shape[1], means.shape[1])
            moments = self._products[:, row, column] / counts
            return torch.cat([means, moments], dim=1).flatten().float()
        if pooling == "layer_spectrum" and self._products is not None:
            squares = torch.linalg.eigvalsh(self._products).flip(-1).clamp_min(0)
            return torch.cat([row[:size] for row, size in zip(squares.sqrt(), self._expected, strict=True)]).float()
        raise ValueError(f"expected one of the requested poolings, got {pooling!r}; pass it to LatentAccumulator")
