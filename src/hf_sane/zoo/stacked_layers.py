"""Layers of many small networks at once, in the layout that keeps a CPU busy: models first, images last.

Activations are `[M, C, H, W, B]`. With the images innermost, unfolding, pooling and everything elementwise run over
contiguous memory, and each convolution becomes a few matrix products per network. `torch.vmap` over `conv2d` turns into
grouped convolutions instead, whose backward is the slowest part of training a zoo (benchmarks/zoo_training.py).
"""

from typing import Any

import torch
from torch import Tensor

# Below this many inputs per kernel row, unfolding rows as well makes one better product out of several thin ones.
FULL_UNFOLD_LIMIT = 8


class _Convolution(torch.autograd.Function):
    """Stacked `conv2d` without padding, stride 1; see `stacked_convolution`.

    Only kernel columns are unfolded: `U[m, (c, j), h, w, b] = x[m, c, h, w + j, b]`. Row `i` of the kernel then acts on a
    contiguous slice of `U`, so `out = sum_i W_i @ U[.., i : i + H_out]` needs a k-th of the memory of im2col. Images of one
    channel are unfolded fully (`rows = k`).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        models, channels, height, width, batch = images.shape
        outputs, size = weight.shape[1], weight.shape[-1]
        h_out, w_out = height - size + 1, width - size + 1
        rows = size if channels * size <= FULL_UNFOLD_LIMIT else 1
        h_kept = height - rows + 1
        images = images.contiguous()
        s_model, s_channel, s_row, s_column, _ = images.stride()
        unfolded = images.as_strided(
            (models, channels, rows, size, h_kept, w_out, batch),
            (s_model, s_channel, s_row, s_column, s_row, s_column, 1),
        ).reshape(models, channels * rows * size, h_kept * w_out * batch)
        # [k / rows, M, O, C * rows * k]: the part of the kernel that meets each slice.
        parts = weight.view(models, outputs, channels, size // rows, rows, size).permute(3, 0, 1, 2, 4, 5)
        parts = parts.reshape(size // rows, models, outputs, -1)
        step, length = w_out * batch, h_out * w_out * batch
        out = torch.baddbmm(bias.unsqueeze(-1), parts[0], unfolded[..., :length])
        for i in range(1, len(parts)):
            out.baddbmm_(parts[i], unfolded[..., i * step : i * step + length])
        ctx.save_for_backward(unfolded, parts)
        ctx.shapes = (images.shape, weight.shape, rows, h_kept)
        return out.view(models, outputs, h_out, w_out, batch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        unfolded, parts = ctx.saved_tensors
        (models, channels, height, width, batch), shape, rows, h_kept = ctx.shapes
        outputs, size = shape[1], shape[-1]
        w_out = width - size + 1
        flat = gradient.reshape(models, outputs, -1)
        step, length = w_out * batch, flat.shape[-1]
        slices = [slice(i * step, i * step + length) for i in range(len(parts))]
        weight = torch.stack([torch.bmm(flat, unfolded[..., s].mT) for s in slices])
        weight = weight.view(-1, models, outputs, channels, rows, size).permute(1, 2, 3, 0, 4, 5).reshape(shape)
        bias = flat.sum(dim=-1)
        if not ctx.needs_input_grad[0]:
            return None, weight, bias
        columns = torch.zeros_like(unfolded)
        for s, part in zip(slices, parts, strict=True):
            columns[..., s].baddbmm_(part.mT, flat)
        columns = columns.view(models, channels, rows, size, h_kept, w_out, batch)
        images = gradient.new_zeros(models, channels, height, width, batch)
        for i in range(rows):
            for j in range(size):
                images[:, :, i : i + h_kept, j : j + w_out] += columns[:, :, i, j]
        return images, weight, bias


class _MaxPool(torch.autograd.Function):
    """Stacked `max_pool2d` with kernel = stride; see `stacked_max_pool`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        corners = _corners(values, size)
        out = torch.maximum(corners[0], corners[1])
        for corner in corners[2:]:
            torch.maximum(out, corner, out=out)
        ctx.save_for_backward(values, out)
        ctx.size = size
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, out = ctx.saved_tensors
        covered = all(length % ctx.size == 0 for length in values.shape[2:4])
        result = torch.empty_like(values) if covered else torch.zeros_like(values)
        remaining = gradient
        sources, targets = _corners(values, ctx.size), _corners(result, ctx.size)
        for source, target in zip(sources[:-1], targets[:-1], strict=True):
            # Of equal values the first gets the gradient, as in torch's max_pool2d.
            hit = source == out
            torch.mul(remaining, hit, out=target)
            remaining = remaining - target
        targets[-1].copy_(remaining)
        return result, None


def _corners(values: Tensor, size: int) -> list[Tensor]:
    """The `size * size` views that hold one value of each pooling cell."""
    height, width = (length // size * size for length in values.shape[2:4])
    return [values[:, :, i:height:size, j:width:size] for i in range(size) for j in range(size)]


def stacked_convolution(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with every network's own kernels: `conv2d` without padding, stride 1.

    Args:
        images: `[M, C, H, W, B]`, or `[1, C, H, W, B]` for all networks.
        weight: `[M, O, C, k, k]`.
        bias: `[M, O]`.

    Returns:
        `[M, O, H - k + 1, W - k + 1, B]`.
    """
    models, outputs = weight.shape[:2]
    if len(images) == models:
        return _Convolution.apply(images, weight, bias)
    merged = _Convolution.apply(images, weight.reshape(1, -1, *weight.shape[2:]), bias.reshape(1, -1))
    return merged.view(models, outputs, *merged.shape[2:])


def stacked_max_pool(values: Tensor, size: int) -> Tensor:
    """`max_pool2d` with kernel and stride `size`: `[M, C, H, W, B]` to `[M, C, H // size, W // size, B]`."""
    return values if size == 1 else _MaxPool.apply(values, size)


def stacked_linear(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every network's own linear layer.

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
