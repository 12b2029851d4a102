"""Token layouts, which define how the rows of a layer are arranged in tokens, and the resulting indices."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from hf_sane.core._layer_kinds import LayerKind
from hf_sane.records._registry import Registry


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype (`"float32"`) of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorSpec":
        """Describe `tensor`, which may be on the meta device."""
        return cls(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Tensors that are tokenized together: rows `[channels, fan_in | bias]`.

    Attributes:
        name: Common prefix of its tensors (`layer1.0.conv1`), or the whole name of a single tensor.
        kind: Kind of the layer, guessed from names and shapes. It affects neither tokens nor equality.
        weight: Tensor that forms the rows.
        bias: Tensor with one scalar per channel, appended as the last column; or `None`.
    """

    name: str
    kind: LayerKind = field(compare=False)
    weight: TensorSpec
    bias: TensorSpec | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Weight and, if present, bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def channels(self) -> int:
        """Number of rows; one for a 0-d tensor."""
        return self.weight.shape[0] if self.weight.shape else 1

    @property
    def row_length(self) -> int:
        """Number of scalars per row, including bias."""
        return math.prod(self.weight.shape[1:]) + (self.bias is not None)

    @property
    def num_weights(self) -> int:
        """Number of scalars, including bias."""
        return self.channels * self.row_length


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Rule by which the scalars of a layer become tokens.

    A layer is cut into consecutive rows `[weight | bias]` of equal length; each row is padded with zeros to a multiple
    of the token size, and cut into tokens.

    Attributes:
        name: Name in settings and files.
        rows: Number of rows of a layer, which must divide the number of channels.
        counts_rows: Whether the third position of a token is the index of its row rather than that of the token within
            its layer.
    """

    name: str
    rows: Callable[[LayerSpec], int]
    counts_rows: bool

    def num_tokens(self, layer: LayerSpec, token_dim: int) -> int:
        """Number of tokens of a layer."""
        rows = self.rows(layer)
        return rows * math.ceil(layer.num_weights / rows / token_dim)


TOKEN_LAYOUTS: Registry[TokenLayout] = Registry("token layout")


def register_token_layout(name: str, rows: Callable[[LayerSpec], int], *, counts_rows: bool) -> None:
    """Register a rule for cutting layers into tokens, under a name for `token_layout` settings.

    Args:
        name: New name. The layout must be registered before loading anything that was made with it.
        rows: Number of rows into which a layer is cut, which must divide its channels.
        counts_rows: Whether the third position of a token is the index of its row rather than that of the token within
            its layer.

    Raises:
        ValueError: If the name is taken.
    """
    TOKEN_LAYOUTS.add(name, TokenLayout(name, rows, counts_rows))


def find_token_layout(name: str) -> TokenLayout:
    """The token layout with a given name.

    Raises:
        ValueError: If there is no such layout.
    """
    return TOKEN_LAYOUTS.find(name)


register_token_layout("rowwise", lambda layer: layer.channels, counts_rows=True)
register_token_layout("dense", lambda layer: 1, counts_rows=False)


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle in the flattened tokens of a network that holds one tensor, or the padding of a layer.

    Attributes:
        name: Name of the tensor; empty for padding.
        layer: Index of its layer.
        shape: `(rows, columns)`, with the same scalars as the tensor, in the same order.
        stride: Number of scalars from one row to the next.
        start: Number of scalars before the first row of the layer.
        column: Number of scalars of a row before the rectangle.
    """

    name: str
    layer: int
    shape: tuple[int, int]
    stride: int
    start: int
    column: int


@dataclass(frozen=True)
class Geometry:
    """Indices that follow from a network's layers and token layout, computed once per structure.

    Attributes:
        token_dim: Number of scalars per token, `D`.
        layers: Layers in the order of their tokens.
        weight_mask: `[N, D]` bool.
        positions: `[N, 3]` int64.
        places: Places of all tensors.
        paddings: Parts of the tokens without weights.
        rows: Number of rows of each layer.
    """

    token_dim: int
    layers: tuple[LayerSpec, ...]
    weight_mask: Tensor
    positions: Tensor
    places: tuple[Place, ...]
    paddings: tuple[Place, ...]
    rows: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the whole network, `N`."""
        return len(self.positions)


def token_slices(token_layout: str, token_dim: int, layers: tuple[LayerSpec, ...]) -> tuple[slice, ...]:
    """Slices of the tokens of each layer."""
    rule = find_token_layout(token_layout)
    counts = [rule.num_tokens(layer, token_dim) for layer in layers]
    return tuple(slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True))


@lru_cache(maxsize=32)
def geometry_of(token_layout: str, token_dim: int, layers: tuple[LayerSpec, ...]) -> Geometry:
    """The geometry of layers, which is read-only, since all networks that have them share it.

    Raises:
        ValueError: If a registered token layout cuts a layer into rows of different lengths.
    """
    rule = find_token_layout(token_layout)
    slices = token_slices(token_layout, token_dim, layers)
    counts, length = [tokens.stop - tokens.start for tokens in slices], slices[-1].stop
    mask = torch.zeros(length, token_dim, dtype=torch.bool)
    channels = torch.empty(length, dtype=torch.int64)
    places: list[Place] = []
    all_rows = []
    for index, (layer, tokens, count) in enumerate(zip(layers, slices, counts, strict=True)):
        rows = rule.rows(layer)
        if layer.channels % rows:
            raise ValueError(
                f"{token_layout}: {rows} rows do not divide the {layer.channels} channels of {layer.name}"
            )
        all_rows.append(rows)
        mask[tokens].view(rows, -1)[:, : layer.num_weights // rows] = True
        order = torch.arange(count)
        channels[tokens] = order // (count // rows) if rule.counts_rows else order
        stride, column = count * token_dim // rows, 0  # rows hold [weight | bias | padding]
        for name, numel in [*((spec.name, spec.numel) for spec in layer.tensors), ("", -1)]:
            width = numel // rows if name else stride - column
            places.append(Place(name, index, (rows, width), stride, tokens.start * token_dim, column))
            column += width
    layer_index = torch.repeat_interleave(torch.arange(len(layers)), torch.tensor(counts))
    return Geometry(
        token_dim,
        layers,
        mask,
        torch.stack([torch.arange(length), layer_index, channels], dim=1),
        tuple(place for place in places if place.name),
        tuple(place for place in places if not place.name and place.shape[1]),
        tuple(all_rows),
    )
