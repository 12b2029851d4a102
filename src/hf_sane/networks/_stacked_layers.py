"""Layers of many small networks at once, in a layout that is fast on CPUs: models first, images last.

Activations are `[M, C, H, W, B]`. With images as the innermost axis, unfolding, pooling and elementwise operations run
over contiguous memory, and each convolution becomes a few matrix products per network. `torch.vmap` over `conv2d` uses
grouped convolutions instead, whose backward pass is the slowest part of training a zoo (benchmarks/zoo_training.py).
"""

from typing import Any

import torch
from torch import Tensor

# With fewer inputs per kernel row, unfolding rows as well replaces several thin products by a better one.
FULL_UNFOLD_LIMIT = 8


class _PooledConvolution(torch.autograd.Function):
    """Stacked `conv2d` (no padding, stride 1) and `max_pool2d`; see `pooled_convolution`.

    Only kernel columns are unfolded: `U[m, (c, j), h, w, b] = x[m, c, h, w + j, b]`. Row `i` of the kernel then acts
    on a contiguous slice of `U`, so `out = sum_i W_i @ U[.., i : i + h_out]` needs `1 / k` of the memory of im2col.
    Images with one channel are unfolded fully (`rows = k`). Columns `w = p * w' + q` are stored with `q` before `w'`
    for pooling size `p`, so that the values of a pooling cell form `p * p` contiguous blocks; values that pooling
    discards at the border are never computed.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
        models, channels, height, width, batch = images.shape
        outputs, size = weight.shape[1], weight.shape[-1]
        h_pooled, w_pooled = (height - size + 1) // pool, (width - size + 1) // pool
        rows = size if channels * size <= FULL_UNFOLD_LIMIT else 1
        num_parts = size // rows
        h_kept = h_pooled * pool + num_parts - 1
        images = images.contiguous()
        s_model, s_channel, s_row, s_column, _ = images.stride()
        unfolded = images.as_strided(
            (models, channels, rows, size, h_kept, pool, w_pooled, batch),
            (s_model, s_channel, s_row, s_column, s_row, s_column, pool * s_column, 1),
        ).reshape(models, channels * rows * size, -1)
        # [k / rows, M, O, C * rows * k]: the part of the kernel for each slice.
        parts = weight.view(models, outputs, channels, num_parts, rows, size).permute(3, 0, 1, 2, 4, 5)
        parts = parts.reshape(num_parts, models, outputs, -1)
        step, length = pool * w_pooled * batch, h_pooled * pool * pool * w_pooled * batch
        out = torch.baddbmm(bias.unsqueeze(-1), parts[0], unfolded[..., :length])
        for i in range(1, num_parts):
            out.baddbmm_(parts[i], unfolded[..., i * step : i * step + length])
        pooled, wins = _max_of_cells(out.view(models, outputs, h_pooled, pool, pool, w_pooled, batch))
        ctx.save_for_backward(unfolded, weight, *wins)
        ctx.shape, ctx.pool = images.shape, pool
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        unfolded, weight, *wins = ctx.saved_tensors
        gradient = gradient.contiguous()
        bias = gradient.sum(dim=(2, 3, 4))
        cells = _split_among_cells(gradient, wins, ctx.pool)  # [M, O, h_pooled, p, p, w_pooled, B]
        models, outputs, channels, size, _ = weight.shape
        rows = unfolded.shape[1] // (channels * size)
        flat = cells.view(models, outputs, -1)
        step = cells.shape[-3:].numel()
        slices = [unfolded[..., i * step : i * step + flat.shape[-1]] for i in range(size // rows)]
        parts = torch.stack([torch.bmm(flat, part.mT) for part in slices])
        parts = parts.view(-1, models, outputs, channels, rows, size).permute(1, 2, 3, 0, 4, 5)
        images = _input_gradient(cells, weight, ctx.shape) if ctx.needs_input_grad[0] else None
        return images, parts.reshape(weight.shape), bias, None


def _max_of_cells(cells: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Maximum of each cell `[.., h, p, p, w, B]`, and for all but its first value whether it exceeds those before.

    Among equal values the first wins, as in torch's max_pool2d. Comparisons are floats, since mixed types are three
    times slower.
    """
    pool = cells.shape[-3]
    if pool == 1:
        return cells[..., 0, 0, :, :], []
    best, wins = cells[..., 0, 0, :, :], []
    for value in (cells[..., i, j, :, :] for i in range(pool) for j in range(pool) if i or j):
        wins.append(torch.gt(value, best, out=torch.empty_like(value)))
        best = torch.maximum(value, best)
    return best, wins


def _split_among_cells(gradient: Tensor, wins: list[Tensor], pool: int) -> Tensor:
    """Pass the gradient `[M, O, h, w, B]` to the winner of each cell: `[M, O, h, p, p, w, B]`."""
    if pool == 1:
        return gradient[..., None, None, :, :]
    cells = gradient.new_empty(*gradient.shape[:3], pool, pool, *gradient.shape[3:])
    places = [(i, j) for i in range(pool) for j in range(pool)]
    for (i, j), win in zip(reversed(places[1:]), reversed(wins), strict=True):
        torch.mul(gradient, win, out=cells[..., i, j, :, :])
        gradient = gradient - cells[..., i, j, :, :]
    cells[..., 0, 0, :, :] = gradient
    return cells


def _input_gradient(cells: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Full convolution of the padded gradient with the flipped kernel, unfolded by columns as in the forward pass."""
    models, channels, height, width, batch = shape
    outputs, size = weight.shape[1], weight.shape[-1]
    h_pooled, pool, _, w_pooled = cells.shape[2:6]
    border = size - 1
    padded = cells.new_zeros(models, outputs, height + border, width + border, batch)
    inner = padded[:, :, border : border + h_pooled * pool, border : border + w_pooled * pool]
    inner.unflatten(3, (w_pooled, pool)).unflatten(2, (h_pooled, pool)).copy_(cells.transpose(4, 5))
    s_model, s_output, s_row, s_column, _ = padded.stride()
    unfolded = padded.as_strided(
        (models, outputs, size, height + border, width, batch), (s_model, s_output, s_column, s_row, s_column, 1)
    ).reshape(models, outputs * size, -1)
    parts = weight.flip(3, 4).permute(3, 0, 2, 1, 4).reshape(size, models, channels, outputs * size)
    step, length = width * batch, height * width * batch
    images = torch.bmm(parts[0], unfolded[..., :length])
    for i in range(1, size):
        images.baddbmm_(parts[i], unfolded[..., i * step : i * step + length])
    return images.view(shape)


def pooled_convolution(images: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """Convolve with every network's own kernels (no padding, stride 1), then max-pool cells of size `pool`.

    Args:
        images: `[M, C, H, W, B]`, or `[1, C, H, W, B]` for all networks.
        weight: `[M, O, C, k, k]`.
        bias: `[M, O]`.
        pool: Kernel size and stride of the pooling, `p`; 1 for none.

    Returns:
        `[M, O, (H - k + 1) // p, (W - k + 1) // p, B]`, as from `max_pool2d(conv2d(...), p)`.
    """
    models, outputs = weight.shape[:2]
    if len(images) == models:
        return _PooledConvolution.apply(images, weight, bias, pool)
    merged = _PooledConvolution.apply(images, weight.reshape(1, -1, *weight.shape[2:]), bias.reshape(1, -1), pool)
    return merged.view(models, outputs, *merged.shape[2:])


def stacked_linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply every network's own linear layer.

    Args:
        values: `[M, F, B]`, or `[1, F, B]` for all networks.
        weight: `[M, O, F]`.
        bias: `[M, O]`.

    Returns:
        `[M, O, B]`.
    """
    models, outputs = weight.shape[:2]
    if len(values) == models:
        return torch.baddbmm(bias.unsqueeze(-1), weight, values)
    merged = torch.addmm(bias.reshape(-1, 1), weight.reshape(models * outputs, -1), values[0])
    return merged.view(models, outputs, -1)


def stacked_dropout(values: Tensor, rates: Tensor, generator: torch.Generator | None) -> Tensor:
    """Zero each value with its network's probability and scale the rest by `1 / (1 - rate)`.

    Args:
        values: `[M, ..., B]`.
        rates: `[M]` in [0, 1).
        generator: Source of randomness on the device of `values`; the global one if `None`.

    Returns:
        `[M, ..., B]`.
    """
    rates = rates.view(-1, *(1 for _ in values.shape[1:]))
    draws = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
    return values * ((draws >= rates) / (1 - rates))
