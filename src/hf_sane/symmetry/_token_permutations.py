"""Permutations of networks in token space, as permutations of scalars in a token sequence."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import LayerSpec
from hf_sane.symmetry._permutation import Permutation, PermutationSpec, gather_stacked

TABLE_ENTRIES = 2**26  # keep up to this many indices in memory (256 MiB as int32)


class TokenPermutations:
    """Several permutations of one architecture, as gather indices into flattened tokens.

    A permutation reorders channels (rows of a layer) and inputs (columns), so the index of a scalar is a sum of two
    small tables, `source[p, element] = rows[p, row(element)] + columns[p, column(element)]`: memory grows with the
    size of the network, but not with the number of permutations, and a window is indexed without the rest.

    Args:
        spec: Permutation symmetries of the architecture.
        layout: Layout of its tokens.
        permutations: `[P, n]` int64 per axis. Without axes (a linear map from inputs to outputs) there is one
            permutation, the identity, which is used for every index.

    Raises:
        KeyError: If the layout has tensors that the spec lacks.
    """

    def __init__(self, spec: PermutationSpec, layout: Layout, permutations: Permutation) -> None:
        self.layout = layout
        self.moves = bool(permutations)
        self.num_permutations = len(next(iter(permutations.values()))) if self.moves else 1
        # Column 0 of the second table is zero: biases move only with their channel.
        rows, columns = [], [torch.zeros(self.num_permutations, 1, dtype=torch.int64)]
        self._rows, self._columns = (torch.empty(layout.num_tokens, layout.token_dim, dtype=torch.int32) for _ in "rc")
        row_offset, column_offset = 0, 1
        for layer, part, count in zip(layout.layers, layout.token_slices, layout.layer_rows, strict=True):
            moved = _moved_dimensions(spec, layer, permutations)
            sources = _sources(layer, moved, self.num_permutations)
            num_scalars = (part.stop - part.start) * layout.token_dim
            row_table, column_table, row, column = _tables(layer, count, num_scalars, sources)
            rows.append(row_table + part.start * layout.token_dim)
            columns.append(column_table)
            self._rows[part] = (row + row_offset).view(-1, layout.token_dim)
            self._columns[part] = torch.where(column < 0, 0, column + column_offset).view(-1, layout.token_dim)
            row_offset += row_table.shape[1]
            column_offset += column_table.shape[1]
        self._row_table, self._column_table = torch.cat(rows, dim=1), torch.cat(columns, dim=1)

    @cached_property
    def _table(self) -> Tensor | None:
        """All indices `[P, N, D]` int32, if they are few enough to keep."""
        if self.num_permutations * self._rows.numel() > TABLE_ENTRIES:
            return None
        every = torch.arange(self.num_permutations)
        return self._compute(every, torch.zeros_like(every), self.layout.num_tokens).to(torch.int32)

    def _compute(self, chosen: Tensor, starts: Tensor, length: int) -> Tensor:
        window = starts.unsqueeze(1) + torch.arange(length)
        rows, columns = self._rows[window].flatten(1).long(), self._columns[window].flatten(1).long()
        index = self._row_table[chosen].gather(1, rows) + self._column_table[chosen].gather(1, columns)
        return index.view(len(chosen), length, self.layout.token_dim)

    def index(self, chosen: Tensor, starts: Tensor, length: int) -> Tensor:
        """Source indices of the scalars in permuted windows.

        Args:
            chosen: `[B]` int64 in `[0, P)`: the permutation of each window.
            starts: `[B]` int64: first token of each window.
            length: Tokens per window, `W`.

        Returns:
            `[B, W, D]` int64 into the flattened tokens `[N * D]` of the unpermuted network; padding is not moved.
        """
        chosen = chosen if self.moves else torch.zeros_like(chosen)
        if self._table is None:
            return self._compute(chosen, starts, length)
        if length == self.layout.num_tokens:
            return self._table[chosen].long()
        return self._table[chosen.unsqueeze(1), starts.unsqueeze(1) + torch.arange(length)].long()

    def apply(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Permute whole networks: tokens `[M, N, D]`, each with permutation `chosen[m]` (`[M]` int64)."""
        index = self.index(chosen, torch.zeros_like(chosen), self.layout.num_tokens)
        return tokens.flatten(1).gather(1, index.flatten(1)).view_as(tokens)


def _moved_dimensions(
    spec: PermutationSpec, layer: LayerSpec, permutations: Permutation
) -> Mapping[tuple[str, int], Tensor]:
    """For tensors of a layer and dimensions that move: source position of each position, `[P, size]`."""
    shapes = {tensor.name: tensor.shape for tensor in layer.tensors}
    if unknown := shapes.keys() - spec.axes.keys():
        raise KeyError(f"the permutation spec lacks {sorted(unknown)}; make one for this architecture")
    moved: dict[tuple[str, int], Tensor] = {}
    for axis, places in spec.occurrences.items():
        for place in places:
            if place.tensor not in shapes:
                continue
            size = shapes[place.tensor][place.dim]
            index = moved.setdefault((place.tensor, place.dim), torch.arange(size).repeat(len(permutations[axis]), 1))
            index[:, place.positions.flatten()] = place.positions[permutations[axis]].flatten(1)
    return moved


@dataclass(frozen=True)
class _Sources:
    """Source indices of a layer's rows, columns and biases: `[P, channels]`, `[P, fan_in]`, `[P, channels]`."""

    rows: Tensor
    columns: Tensor
    biases: Tensor


def _sources(layer: LayerSpec, moved: Mapping[tuple[str, int], Tensor], count: int) -> _Sources:
    """Sources of a layer; columns are the flattened dimensions after the first, each of which may move."""
    name, bias = layer.weight.name, layer.bias
    channels = torch.arange(layer.channels).repeat(count, 1)
    inner = {dim - 1: index for (tensor, dim), index in moved.items() if tensor == name and dim > 0}
    columns = (
        torch.arange(layer.weight.numel // layer.channels)
        .view(layer.weight.shape[1:])
        .expand(count, *layer.weight.shape[1:])
    )
    columns = (gather_stacked(columns, inner) if inner else columns).reshape(count, -1)
    biases = channels if bias is None else moved.get((bias.name, 0), channels)
    return _Sources(moved.get((name, 0), channels), columns, biases)


Tables = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # rows [P, R], columns [P, C], and per scalar its row and column (-1: none)


def _tables(layer: LayerSpec, count: int, num_scalars: int, sources: _Sources) -> Tables:
    """Tables of a layer that is cut into `count` rows `[weight | bias | padding]`. Padding does not move."""
    rows, columns, biases = sources.rows, sources.columns, sources.biases
    stride, fan_in, channels = num_scalars // count, columns.shape[1], layer.channels
    group = channels // count  # channels in a row
    channel = torch.arange(channels)
    weights_at = channel // group * stride + channel % group * fan_in
    biases_at = channel // group * stride + group * fan_in + channel % group
    end = layer.num_weights // count  # where the padding of a row begins
    every = len(rows)
    row_table = torch.cat(
        [weights_at[rows], biases_at[biases], (torch.arange(count) * stride).repeat(every, 1)], dim=1
    )
    column_table = torch.cat([columns, torch.arange(end, stride).repeat(every, 1)], dim=1)
    scalar = torch.arange(num_scalars)
    row, position = scalar // stride, scalar % stride
    is_weight, is_padding = position < group * fan_in, position >= end
    of_weight = row * group + position // fan_in
    of_bias = channels + row * group + position - group * fan_in
    row_index = torch.where(is_weight, of_weight, torch.where(is_padding, 2 * channels + row, of_bias))
    column_index = torch.where(is_weight, position % fan_in, torch.where(is_padding, fan_in + position - end, -1))
    return row_table, column_table, row_index, column_index
