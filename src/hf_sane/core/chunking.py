"""Tensors to tokens and back: one strided copy per layer, batched over models, differentiable."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_sane.core.layout import LayerSpec, Layout


def tokens_from_tensors(tensors: Mapping[str, Tensor], layout: Layout, *, batch_dims: int = 0) -> Tensor:
    """Write tensors into tokens.

    Args:
        tensors: Name to `[*batch, *shape]`; must hold every tensor of the layout's layers.
        layout: Where each scalar goes.
        batch_dims: Leading axes of every tensor that count models.

    Returns:
        `[*batch, N, D]`, zero at padding; float64 if any tensor is, else float32: wide enough to hold every dtype exactly.

    Raises:
        KeyError: If a tensor is missing.
        ValueError: If a shape differs from the layout's.
    """
    specs = [spec for layer in layout.layers for spec in layer.tensors]
    if missing := [spec.name for spec in specs if spec.name not in tensors]:
        raise KeyError(f"the layout expects tensors that are missing: {missing}; was it made from another network?")
    first = tensors[specs[0].name]
    batch = first.shape[:batch_dims]
    for spec in specs:
        if tensors[spec.name].shape != (*batch, *spec.shape):
            raise ValueError(
                f"{spec.name}: the layout expects {(*batch, *spec.shape)}, got {tuple(tensors[spec.name].shape)}"
            )
    wide = any(tensors[spec.name].dtype == torch.float64 for spec in specs)
    dtype = torch.float64 if wide else torch.float32
    if torch.is_grad_enabled() and any(tensors[spec.name].requires_grad for spec in specs):
        parts = [_padded(tensors, layer, layout, batch, dtype) for layer in layout.layers]
        return torch.cat(parts, dim=batch_dims)
    tokens = torch.empty(*batch, layout.num_tokens, layout.token_dim, dtype=dtype, device=first.device)
    for layer, part in zip(layout.layers, layout.token_slices, strict=True):
        _write(tokens[..., part, :], tensors, layer, layout, batch)
    return tokens


def _write(
    target: Tensor, tensors: Mapping[str, Tensor], layer: LayerSpec, layout: Layout, batch: torch.Size
) -> None:
    """Copy one layer into its tokens `[*batch, n, D]`, padding included."""
    weight = tensors[layer.weight.name]
    bias = None if layer.bias is None else tensors[layer.bias.name]
    if layout.token_layout == "rowwise":
        rows = target.view(*batch, layer.channels, -1)
        fan_in = layer.weight.numel // layer.channels
        rows[..., :fan_in] = weight.reshape(*batch, layer.channels, fan_in)
        if bias is not None:
            rows[..., fan_in] = bias
        rows[..., layer.row_length :] = 0
    else:
        flat = target.view(*batch, -1)
        flat[..., : layer.weight.numel] = weight.reshape(*batch, -1)
        if bias is not None:
            flat[..., layer.weight.numel : layer.num_weights] = bias
        flat[..., layer.num_weights :] = 0


def _padded(
    tensors: Mapping[str, Tensor], layer: LayerSpec, layout: Layout, batch: torch.Size, dtype: torch.dtype
) -> Tensor:
    """One layer as tokens `[*batch, n, D]`, recorded by autograd."""
    rowwise = layout.token_layout == "rowwise"
    rows = (layer.channels, -1) if rowwise else (-1,)
    content = tensors[layer.weight.name].reshape(*batch, *rows)
    if layer.bias is not None:
        bias = tensors[layer.bias.name]
        content = torch.cat([content, bias[..., None] if rowwise else bias], dim=-1)
    pad = -content.shape[-1] % layout.token_dim
    return torch.nn.functional.pad(content.to(dtype), (0, pad)).reshape(*batch, -1, layout.token_dim)


def tensors_from_tokens(tokens: Tensor, layout: Layout, *, cast: bool = True) -> dict[str, Tensor]:
    """Read tensors out of tokens.

    Args:
        tokens: `[*batch, N, D]`.
        layout: Where each scalar sits.
        cast: Whether to return each tensor in the dtype that the layout notes; else in that of `tokens`.

    Returns:
        Name to `[*batch, *shape]` for every tensor in the layout's layers. Fresh memory, or recorded by autograd.

    Raises:
        ValueError: If `tokens` has another shape than the layout's.
    """
    if tokens.shape[-2:] != (layout.num_tokens, layout.token_dim):
        raise ValueError(
            f"expected tokens [..., {layout.num_tokens}, {layout.token_dim}], got {tuple(tokens.shape)}; "
            "decode with the layout that encode gave"
        )
    batch = tokens.shape[:-2]
    tensors = {}
    for layer, part in zip(layout.layers, layout.token_slices, strict=True):
        content = tokens[..., part, :]
        if layout.token_layout == "rowwise":
            content = content.reshape(*batch, layer.channels, -1)
            fan_in = layer.weight.numel // layer.channels
            weight, bias = content[..., :fan_in], content[..., fan_in]  if layer.bias is not None else None
        else:
            content = content.reshape(*batch, -1)
            weight, bias = content[..., : layer.weight.numel], content[..., layer.weight.numel : layer.num_weights]
        for spec, value in zip(layer.tensors, (weight, bias), strict=False):
            dtype = getattr(torch, spec.dtype) if cast else tokens.dtype
            shaped = value.reshape(*batch, *spec.shape)
            shares = shaped.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
            tensors[spec.name] = shaped.to(dtype, copy=shares, memory_format=torch.contiguous_format)
    return tensors
