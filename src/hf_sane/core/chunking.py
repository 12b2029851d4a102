"""Tensors to tokens and back: one strided pass per layer, batched over models, differentiable."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_sane.core.layout import LayerSpec, Layout

# Per layer (scale, shift): every weight `w` becomes `scale * w + shift` on its way, in the same pass over memory.
Affine = Sequence[tuple[float, float]]


def tokens_from_tensors(
    tensors: Mapping[str, Tensor], layout: Layout, *, batch_dims: int = 0, affine: Affine | None = None
) -> Tensor:
    """Write tensors into tokens.

    Args:
        tensors: Name to `[*batch, *shape]`; must hold every tensor of the layout's layers.
        layout: Where each scalar goes.
        batch_dims: Leading axes of every tensor that count models.
        affine: Scale and shift of each layer's weights; none when `None`.

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
        return _recorded(tensors, layout, batch, dtype, affine)
    tokens = torch.empty(*batch, layout.num_tokens, layout.token_dim, dtype=dtype, device=first.device)
    for index, (layer, part) in enumerate(zip(layout.layers, layout.token_slices, strict=True)):
        rows, fan_in = _content(tokens[..., part, :], layer, layout, batch)
        sides = [rows[..., :fan_in], rows[..., fan_in : fan_in + _bias_columns(layer, layout)]]
        for spec, side in zip(layer.tensors, sides, strict=False):
            _transfer(side, tensors[spec.name].detach().reshape(side.shape), None if affine is None else affine[index])
        rows[..., fan_in + _bias_columns(layer, layout) :] = 0
    return tokens


def tensors_from_tokens(
    tokens: Tensor, layout: Layout, *, cast: bool = True, affine: Affine | None = None
) -> dict[str, Tensor]:
    """Read tensors out of tokens.

    Args:
        tokens: `[*batch, N, D]`.
        layout: Where each scalar sits.
        cast: Whether to return each tensor in the dtype that the layout notes; else in that of `tokens`.
        affine: Scale and shift of each layer's weights; none when `None`.

    Returns:
        Name to `[*batch, *shape]` for every tensor in the layout's layers. Fresh memory, or recorded by autograd.

    Raises:
        ValueError: If `tokens` has another shape than the layout's.
    """
    if tokens.ndim < 2 or tokens.shape[-2:] != (layout.num_tokens, layout.token_dim):
        raise ValueError(
            f"expected tokens [..., {layout.num_tokens}, {layout.token_dim}], got {tuple(tokens.shape)}; "
            "decode with the layout that encode gave"
        )
    batch = tokens.shape[:-2]
    recorded = tokens.requires_grad and torch.is_grad_enabled()
    tensors = {}
    for index, (layer, part) in enumerate(zip(layout.layers, layout.token_slices, strict=True)):
        rows, fan_in = _content(tokens[..., part, :], layer, layout, batch)
        sides = [rows[..., :fan_in], rows[..., fan_in : fan_in + _bias_columns(layer, layout)]]
        for spec, side in zip(layer.tensors, sides, strict=False):
            dtype = getattr(torch, spec.dtype) if cast else tokens.dtype
            if recorded:
                scale, shift = affine[index] if affine else (1.0, 0.0)
                tensors[spec.name] = (
                    (side * scale + shift if affine else side).reshape((*batch, *spec.shape)).to(dtype)
                )
                continue
            target = torch.empty(side.shape, dtype=tokens.dtype if affine else dtype, device=tokens.device)
            _transfer(target, side, None if affine is None else affine[index])
            tensors[spec.name] = target.view((*batch, *spec.shape)).to(dtype)
    return tensors


def _bias_columns(layer: LayerSpec, layout: Layout) -> int:
    """How many scalars the bias adds to a row (`rowwise`) or to the flattened layer (`dense`)."""
    if layer.bias is None:
        return 0
    return 1 if layout.token_layout == "rowwise" else layer.bias.numel


def _content(tokens: Tensor, layer: LayerSpec, layout: Layout, batch: Sequence[int]) -> tuple[Tensor, int]:
    """A layer's tokens `[*batch, n, D]` as rows that hold `[weight | bias | padding]`, and where the weight ends."""
    if layout.token_layout == "rowwise":
        return tokens.view(*batch, layer.channels, -1), layer.weight.numel // layer.channels
    return tokens.view(*batch, -1), layer.weight.numel


def _transfer(target: Tensor, source: Tensor, affine: tuple[float, float] | None) -> None:
    """`target = scale * source + shift` in one pass."""
    if affine is None or affine == (1.0, 0.0):
        target.copy_(source)
        return
    scale, shift = affine
    values = source if source.dtype == target.dtype else source.to(target.dtype)
    torch.add(target.new_tensor(shift), values, alpha=scale, out=target)


def _recorded(
    tensors: Mapping[str, Tensor], layout: Layout, batch: Sequence[int], dtype: torch.dtype, affine: Affine | None
) -> Tensor:
    """The same tokens, recorded by autograd."""
    parts = []
    for index, layer in enumerate(layout.layers):
        lead = (*batch, layer.channels) if layout.token_layout == "rowwise" else tuple(batch)
        content = torch.cat([tensors[spec.name].reshape(*lead, -1).to(dtype) for spec in layer.tensors], dim=-1)
        if affine is not None:
            content = content * affine[index][0] + affine[index][1]
        pad = -content.shape[-1] % layout.token_dim
        parts.append(torch.nn.functional.pad(content, (0, pad)).reshape(*batch, -1, layout.token_dim))
    return torch.cat(parts, dim=len(batch))
