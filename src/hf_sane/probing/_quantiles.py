"""Quantiles along the tokens or weights of a layer, for inputs of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor


def quantiles(values: Tensor, levels: Sequence[float], *, dim: int) -> Tensor:
    """Quantiles along one axis, with linear interpolation between order statistics.

    `torch.quantile` gives the same numbers, but refuses inputs of more than 2^24 entries.

    Args:
        values: Float, any shape; at least one entry along `dim`.
        levels: In [0, 1].
        dim: Axis to reduce.

    Returns:
        `values` with axis `dim` replaced by one entry per level.

    Raises:
        ValueError: If a level is outside [0, 1] or there are no levels.
    """
    if not levels or min(levels) < 0 or max(levels) > 1:
        raise ValueError(f"expected at least one quantile level, all in [0, 1], got {list(levels)}")
    ordered = values.sort(dim=dim).values
    place = torch.tensor(levels, dtype=torch.float64) * (values.shape[dim] - 1)
    below = place.floor().long()
    above = (below + 1).clamp_max(values.shape[dim] - 1)
    shape = [1] * values.ndim
    shape[dim] = -1
    share = (place - below).to(values).view(shape)
    return torch.lerp(
        ordered.index_select(dim, below.to(values.device)), ordered.index_select(dim, above.to(values.device)), share
    )
