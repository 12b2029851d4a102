"""Convert between tensors and tokens, in one strided pass per layer, batched over models and differentiable."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_sane.core._token_layouts import Geometry, Place

# Scale and shift per layer: every weight `w` becomes `scale * w + shift`, in the same pass over memory.
Affine = Sequence[tuple[float, float]]


def tokens_from_tensors(
    tensors: Mapping[str, Tensor], geometry: Geometry, *, batch_dims: int = 0, affine: Affine | None = None
) -> Tensor:
    """Write tensors into tokens.

    Args:
        tensors: Tensors `[*batch, *shape]` by name, including every tensor of the layout's layers.
        geometry: Place of each scalar.
        batch_dims: Number of leading axes of every tensor that index models.
        affine: Scale and shift of each layer's weights; none if `None`.

    Returns:
        `[*batch, N, D]`, zero at padding; float64 if any tensor is, otherwise float32, which can represent every dtype
        exactly.

    Raises:
        KeyError: If a tensor is missing.
        ValueError: If a shape differs from the layout's.
    """
    specs = [spec for layer in geometry.layers for spec in layer.tensors]
    if missing := [spec.name for spec in specs if spec.name not in tensors]:
        raise KeyError(f"the network lacks tensors of the layout: {missing}; was it made from another network?")
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
        return _recorded(tensors, geometry, batch, dtype, affine)
    tokens = torch.empty(*batch, geometry.num_tokens, geometry.token_dim, dtype=dtype, device=first.device)
    changes = _changes(affine, geometry, tokens)
    with torch.no_grad():
        for place in geometry.paddings:
            _view(tokens, place).zero_()
        for place in geometry.places:
            side = _view(tokens, place)
            _transfer(side, tensors[place.name].reshape(side.shape), changes[place.layer])
    return tokens


def tensors_from_tokens(
    tokens: Tensor, geometry: Geometry, *, cast: bool = True, affine: Affine | None = None
) -> dict[str, Tensor]:
    """Read tensors from tokens.

    Args:
        tokens: `[*batch, N, D]`.
        geometry: Place of each scalar.
        cast: Whether to return each tensor in the dtype of the layout rather than that of `tokens`.
        affine: Scale and shift of each layer's weights; none if `None`.

    Returns:
        Tensors `[*batch, *shape]` by name, for all layers of the layout, in new memory (or recorded by autograd).

    Raises:
        ValueError: If the shape of `tokens` differs from the layout's.
    """
    if tokens.ndim < 2 or tokens.shape[-2:] != (geometry.num_tokens, geometry.token_dim):
        raise ValueError(
            f"expected tokens [..., {geometry.num_tokens}, {geometry.token_dim}], got {tuple(tokens.shape)}; "
            "decode with the layout returned by encode"
        )
    batch = tokens.shape[:-2]
    recorded = tokens.requires_grad and torch.is_grad_enabled()
    tensors = {}
    if tokens.stride()[-2:] != (geometry.token_dim, 1):
        tokens = tokens.contiguous()
    changes = _changes(affine, geometry, tokens)
    dtypes = {spec.name: getattr(torch, spec.dtype) for layer in geometry.layers for spec in layer.tensors}
    shapes = {spec.name: (*batch, *spec.shape) for layer in geometry.layers for spec in layer.tensors}
    for place in geometry.places:
        side, dtype = _view(tokens, place), dtypes[place.name] if cast else tokens.dtype
        if recorded:
            scale, shift = affine[place.layer] if affine else (1.0, 0.0)
            values = side * scale + shift if affine else side
            tensors[place.name] = values.reshape(shapes[place.name]).to(dtype)
            continue
        target = torch.empty(side.shape, dtype=tokens.dtype if affine else dtype, device=tokens.device)
        _transfer(target, side, changes[place.layer])
        tensors[place.name] = target.view(shapes[place.name]).to(dtype)
    return tensors


def _view(tokens: Tensor, place: Place) -> Tensor:
    """The scalars of tokens `[*batch, N, D]` at a place, as `[*batch, rows, columns]`."""
    if tokens.requires_grad and torch.is_grad_enabled():
        # The gradient of a strided view has the size of its whole storage, for every tensor.
        rows = tokens.flatten(-2).narrow(-1, place.start, place.shape[0] * place.stride)
        return rows.unflatten(-1, (place.shape[0], place.stride)).narrow(-1, place.column, place.shape[1])
    return tokens.as_strided(
        (*tokens.shape[:-2], *place.shape),
        (*tokens.stride()[:-2], place.stride, 1),
        tokens.storage_offset() + place.start + place.column,
    )


def _changes(affine: Affine | None, geometry: Geometry, tokens: Tensor) -> list[tuple[float, Tensor] | None]:
    """Scale and shift of each layer, as used by `_transfer`; `None` for the identity."""
    if affine is None:
        return [None] * len(geometry.layers)
    shifts = tokens.new_tensor([shift for _, shift in affine]).unbind()
    return [None if pair == (1.0, 0.0) else (pair[0], shift) for pair, shift in zip(affine, shifts, strict=True)]


def _transfer(target: Tensor, source: Tensor, change: tuple[float, Tensor] | None) -> None:
    """Compute `target = scale * source + shift` in one pass."""
    if change is None:
        target.copy_(source)
        return
    values = source if source.dtype == target.dtype else source.to(target.dtype)
    torch.add(change[1], values, alpha=change[0], out=target)


def _recorded(
    tensors: Mapping[str, Tensor], geometry: Geometry, batch: Sequence[int], dtype: torch.dtype, affine: Affine | None
) -> Tensor:
    """The same tokens, recorded by autograd."""
    parts = []
    for index, (layer, rows) in enumerate(zip(geometry.layers, geometry.rows, strict=True)):
        lead = (*batch, rows)
        content = torch.cat([tensors[spec.name].reshape(*lead, -1).to(dtype) for spec in layer.tensors], dim=-1)
        if affine is not None:
            content = content * affine[index][0] + affine[index][1]
        pad = -content.shape[-1] % geometry.token_dim
        parts.append(torch.nn.functional.pad(content, (0, pad)).reshape(*batch, -1, geometry.token_dim))
    return torch.cat(parts, dim=len(batch))
