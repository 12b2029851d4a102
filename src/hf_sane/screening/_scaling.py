"""Rescale channels: a factor in one layer that the next layer divides by does not change a ReLU network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.symmetry._permutation import Occurrence, PermutationSpec

GATE = re.compile(r"gate|^w1$|^wi_0$")  # names of layers with an activation, by which another layer is multiplied


@dataclass(frozen=True)
class Scales:
    """Channels that may be scaled.

    Attributes:
        rows: Places of the weights that produce a channel.
        columns: Places of the weights that use it.
    """

    rows: tuple[Occurrence, ...]
    columns: tuple[Occurrence, ...]


def scalable_axes(spec: PermutationSpec) -> list[Scales]:
    """Axes whose entries may be scaled, with the tensors that produce them (rows) or use them (columns).

    Axes that involve normalisation layers, or are both rows and columns of a tensor, are left out. Both factors of a
    gated layer produce a channel; only the one without an activation is scaled.
    """
    found = []
    for places in spec.occurrences.values():
        rows = [place for place in places if place.dim == 0]
        columns = [place for place in places if place.dim == 1]
        weights = {_layer(place) for place in rows if len(spec.axes[place.tensor]) > 1}
        vectors = {_layer(place) for place in rows if len(spec.axes[place.tensor]) == 1}
        twice = {place.tensor for place in rows} & {place.tensor for place in columns}
        if columns and weights and vectors <= weights and not twice and len(rows) + len(columns) == len(places):
            found += [Scales(tuple(factor), tuple(columns)) for factor in _factors(spec, rows, columns)]
    return found


def _layer(place: Occurrence) -> str:
    return place.tensor.rpartition(".")[0]


def _factors(
    spec: PermutationSpec, rows: Sequence[Occurrence], columns: Sequence[Occurrence]
) -> list[list[Occurrence]]:
    """The rows that are scaled together: all, or those of one factor of a gated layer (as in SwiGLU)."""
    weights = [place for place in rows if len(spec.axes[place.tensor]) > 1]
    if all(place.positions.shape[1] == 2 * columns[0].positions.shape[1] for place in rows):
        # Both factors are in one tensor, the gate first.
        half = columns[0].positions.shape[1]
        return [[replace(place, positions=place.positions[:, half:]) for place in rows]]
    if len(weights) != 2 or spec.axes[weights[0].tensor] != spec.axes[weights[1].tensor]:
        return [list(rows)]
    layers = [_layer(place) for place in weights]
    gates = [layer for layer in layers if GATE.search(layer.rpartition(".")[2])]
    free = [layer for layer in layers if layer not in gates] if len(gates) == 1 else layers
    return [[place for place in rows if _layer(place) == layer] for layer in free]


def canonical_scales(
    spec: PermutationSpec, tensors: Mapping[str, Tensor], *, like: Mapping[str, Tensor] | None = None
) -> StateDict:
    """Rescale the channels of a network: to norm 1, or as near as possible to those of another network.

    Networks that differ only in the scales of their channels become equal.

    Weights `w` and bias `b` that produce channel `j` become `w / c_j` and `b / c_j` with `c_j^2 = |w|^2 + b^2`, and
    weights that use it are multiplied by `c_j`. The function is the same if the activation is positively homogeneous,
    `f(c x) = c f(x)` for `c > 0`, as ReLU is. Channels of zeros and of integers are not changed.

    Args:
        spec: Permutation symmetries, which say where a channel is produced and used. Axes are visited in their order.
        tensors: The network.
        like: Network in the same order, to whose channels those are brought as near as scales can (least squares).

    Returns:
        New tensors; floating-point tensors are float64.
    """
    scaled = {name: x.double().clone() if x.is_floating_point() else x for name, x in tensors.items()}
    for scales_of in scalable_axes(spec):
        rows, columns = scales_of.rows, scales_of.columns
        if not all(x[p.tensor].is_floating_point() for x in (tensors, like or {}) if x for p in (*rows, *columns)):
            continue  # codes of quantised weights have no scales
        mine = _stacked(scaled, rows)
        squares = mine.square().sum(1)
        if like is None:
            scales = torch.where(squares > 0, squares.sqrt(), 1.0)
        else:
            products = (mine * _stacked(like, rows)).sum(1)
            scales = torch.where((squares > 0) & (products > 0), squares / products, 1.0)
        for places, factors in ((rows, 1 / scales), (columns, scales)):
            for place in places:
                _multiply(scaled[place.tensor], place, factors)
    return scaled


def _stacked(tensors: Mapping[str, Tensor], rows: Iterable[Occurrence]) -> Tensor:
    """Weights that produce each entry, `[n, values]`."""
    return torch.cat([_entries(tensors[place.tensor], place).double() for place in rows], dim=1)


def _entries(tensor: Tensor, place: Occurrence) -> Tensor:
    """All values of each entry, `[n, values]`."""
    moved = tensor.movedim(place.dim, 0)[place.positions.flatten()]
    return moved.reshape(len(place.positions), -1)


def _multiply(tensor: Tensor, place: Occurrence, factors: Tensor) -> None:
    """Multiply each entry by a factor, in place."""
    repeated = factors.repeat_interleave(place.positions.shape[1])
    shape = [-1 if dim == place.dim else 1 for dim in range(tensor.ndim)]
    index = place.positions.flatten()
    tensor.index_copy_(place.dim, index, tensor.index_select(place.dim, index) * repeated.view(shape))
