"""Evaluation of the reconstruction of whole networks."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import ZooSplit

ROUNDING = 1e-13  # relative rounding error of sums of squares in float64
MAX_SCALARS = 2**26  # number of scalars read at a time: 256 MiB


def group_by_layout(split: ZooSplit, indices: Sequence[int]) -> list[tuple[Layout, list[int]]]:
    """Group models by layout, so that their tokens can be stacked: `(layout, indices)` in order of appearance."""
    members: dict[str, list[int]] = {}
    keys = split.column("layout")
    for index in indices:
        members.setdefault(keys[index], []).append(index)
    return [(split.layout(group[0]), group) for group in members.values()]


def read_models(split: ZooSplit, indices: Sequence[int]) -> Iterator[tuple[Layout, Tensor]]:
    """Yield raw tokens `[m, N, D]` of models of one layout, a limited number of scalars at a time."""
    for layout, members in group_by_layout(split, indices):
        size = max(1, MAX_SCALARS // (layout.num_tokens * layout.token_dim))
        for start in range(0, len(members), size):
            yield layout, split.select(members[start : start + size]).stacked_tokens()


def reconstruction_sums(original: Tensor, reconstruction: Tensor, weight_mask: Tensor) -> Tensor:
    """Sufficient statistics for R2 over real weights.

    Args:
        original: `[M, N, D]` tokens.
        reconstruction: `[M, N, D]` tokens.
        weight_mask: `[N, D]` bool.

    Returns:
        `[4]` float64: number of weights, and sums of weights, squared weights and squared errors. Results of batches
        can be added.
    """
    real = original[:, weight_mask].double()
    error = reconstruction[:, weight_mask].double() - real
    count = torch.tensor(float(real.numel()), dtype=torch.float64, device=real.device)
    return torch.stack([count, real.sum(), real.square().sum(), error.square().sum()])


def r2_from_sums(sums: Tensor) -> float:
    """`R2 = 1 - sum (t_hat - t)^2 / sum (t - mean t)^2` from [`reconstruction_sums`].

    NaN if there are no weights, or all weights are equal up to rounding, so that R2 is undefined.
    """
    count, total, squares, errors = sums.tolist()
    spread = squares - total**2 / count if count else 0.0
    return 1.0 - errors / spread if not spread <= ROUNDING * squares else math.nan


@torch.no_grad()
def reconstruct_tokens(
    model: WeightAutoencoder, tokens: Tensor, layout: Layout, *, halo_size: int = 0, batch_size: int = 64
) -> Tensor:
    """Encode and decode the normalised tokens `[M, N, D]` of whole models."""
    latents = model.encode_sequences(tokens, layout.positions, halo_size=halo_size, batch_size=batch_size)
    return model.decode_sequences(latents, layout.positions, halo_size=halo_size, batch_size=batch_size)


@torch.no_grad()
def evaluate_reconstruction(
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    split: ZooSplit,
    indices: Sequence[int],
    *,
    halo_size: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Reconstruct whole networks and compute error statistics over their real, normalised weights.

    Args:
        model: The autoencoder.
        extractor: Its weight tokenizer.
        split: Split of a zoo.
        indices: Models of `split` to reconstruct.
        halo_size: Context tokens on each side of a window.
        batch_size: Windows per forward pass.

    Returns:
        `[4]` float64 on the CPU, for [`r2_from_sums`]; results of several processes or zoos can be added.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for layout, raw in read_models(split, indices):
        tokens = extractor.normalize(raw, layout)
        decoded = reconstruct_tokens(model, tokens, layout, halo_size=halo_size, batch_size=batch_size)
        sums += reconstruction_sums(tokens, decoded, layout.weight_mask)
    return sums
