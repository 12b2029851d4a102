"""Split long token sequences into windows with context, and join them again."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def halo_spans(length: int, window_size: int, halo_size: int = 0) -> Iterator[tuple[slice, slice]]:
    """Yield the windows that cover a sequence, each as `(context, keep)`.

    `context` slices the sequence and `keep` slices the context, so that concatenating all `sequence[context][keep]`
    gives the sequence. Every context has the same length `min(window_size, length)`, the number of tokens in training,
    because reconstruction is worse if attention covers more or fewer tokens than in training (paper, figure on the
    inference window). There are at least `halo_size` tokens of context on either side of the kept tokens, except at
    the ends of the sequence.

    The released code pads the first and last window instead and stops with an assertion whenever
    `0 < length % window < halo`; this function clamps window starts to `[0, length - window_size]`, so that every
    length works.

    Args:
        length: Number of tokens in the sequence, `N >= 0`.
        window_size: Number of tokens in a context, including the halo.
        halo_size: Number of tokens on each side that are processed but not kept; less than half a window.

    Yields:
        `(context, keep)`, both slices with explicit start and stop.

    Raises:
        ValueError: If the halo leaves no tokens to keep, or a size is negative.
    """
    if length < 0 or halo_size < 0 or window_size - 2 * halo_size < 1:
        raise ValueError(
            f"need length >= 0, halo_size >= 0 and window_size > 2 * halo_size, got length={length}, "
            f"window_size={window_size}, halo_size={halo_size}; use a smaller halo"
        )
    context_size = min(window_size, length)
    kept = 0
    while kept < length:
        start = min(max(kept - halo_size, 0), length - context_size)
        stop = start + context_size
        keep_stop = length if stop == length else stop - halo_size
        yield slice(start, stop), slice(kept - start, keep_stop - start)
        kept = keep_stop


def window_index(length: int, window_size: int, halo_size: int = 0) -> tuple[Tensor, Tensor]:
    """Token indices of all windows of [`halo_spans`] at once.

    Args:
        length: Number of tokens in the sequence, `N`.
        window_size: Number of tokens in a context, including the halo.
        halo_size: Number of tokens on each side that are processed but not kept.

    Returns:
        `index` `[S, C]` int64, the sequence index of every context token, with `C = min(window_size, length)`;
        `keep` `[S, C]` bool, `True` if the window owns the token. Each token is owned exactly once.
    """
    spans = list(halo_spans(length, window_size, halo_size))
    index = torch.empty(len(spans), min(window_size, length), dtype=torch.int64)
    keep = torch.zeros(index.shape, dtype=torch.bool)
    for row, (context, kept) in enumerate(spans):
        index[row] = torch.arange(context.start, context.stop)
        keep[row, kept] = True
    return index, keep


def map_windows(
    function: Callable[[Tensor, Tensor], Tensor],
    features: Tensor,
    positions: Tensor,
    *,
    window_size: int,
    halo_size: int,
    batch_size: int,
) -> Tensor:
    """Apply a function of windows to whole sequences of the same length, keeping each token once.

    Args:
        function: Function from `[B, C, F]` and positions `[B, C, 3]` to `[B, C, G]`, independent for each window.
        features: `[M, N, F]`.
        positions: `[N, 3]` or `[M, N, 3]`.
        window_size: Number of tokens in a context, including the halo.
        halo_size: Number of tokens on each side that are processed but not kept.
        batch_size: Number of windows per call of `function`; windows of different models share a batch.

    Returns:
        `[M, N, G]` float32, on the device of `features`.

    Raises:
        ValueError: If shapes do not fit or there are no tokens.
    """
    num_models, length = features.shape[:2] if features.ndim == 3 else (0, 0)
    if positions.shape not in ((length, 3), (num_models, length, 3)) or num_models * length == 0 or batch_size < 1:
        raise ValueError(
            f"expected sequences [M, N, *], positions [N, 3] or [M, N, 3] and batch_size >= 1, got "
            f"{tuple(features.shape)}, {tuple(positions.shape)} and {batch_size}; batch only models of the same length"
        )
    index, keep = window_index(length, window_size, halo_size)
    positions = positions.expand(num_models, length, 3)
    joined: Tensor | None = None
    for jobs in torch.arange(num_models * len(index)).split(batch_size):
        model, window = jobs // len(index), jobs % len(index)
        token = index[window]  # [B, C]
        mapped = function(features[model[:, None], token], positions[model[:, None], token])
        if joined is None:
            joined = features.new_empty((num_models, length, mapped.shape[-1]), dtype=torch.float32)
        kept = keep[window]
        joined[model[:, None].expand_as(token)[kept], token[kept]] = mapped[kept.to(mapped.device)].to(joined)
    assert joined is not None
    return joined


def map_whole(
    function: Callable[[Tensor, Tensor], Tensor], features: Tensor, positions: Tensor, *, batch_size: int
) -> Tensor:
    """Apply a function of whole networks to all of them, a batch at a time.

    Args:
        function: Function from `[B, *]` and positions `[B, N, 3]` to `[B, *]`, independent for each network.
        features: `[M, *]`.
        positions: `[N, 3]` or `[M, N, 3]`.
        batch_size: Number of networks per call of `function`.

    Returns:
        `[M, *]` float32, on the device of `features`.

    Raises:
        ValueError: If there are no networks.
    """
    if len(features) == 0 or batch_size < 1:
        raise ValueError(f"expected networks and batch_size >= 1, got {tuple(features.shape)} and {batch_size}")
    positions = positions.expand(len(features), *positions.shape[-2:])
    parts = zip(features.split(batch_size), positions.split(batch_size), strict=True)
    return torch.cat([function(part, where).to(features.device, torch.float32) for part, where in parts])


__all__ = ["halo_spans"]
