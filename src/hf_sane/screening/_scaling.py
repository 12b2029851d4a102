"""Rescale channels: a factor in one layer that the next layer divides by does not change a ReLU network."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.symmetry._permutation import Occurrence, PermutationSpec


def scalable_axes(spec: PermutationSpec) -> list[str]:
    """Axes whose entries may be scaled, with the tensors that produce them (rows) or use them (columns).

    Axes that involve normalisation layers, or are both rows and columns of a tensor, are left out.
    """
    found = []
    for axis, places in spec.occurrences.items():
        rows = [place for place in places if place.dim == 0]
        columns = [place for place in places if place.dim == 1]
        weights = {place.tensor.rpartition(".")[0] for place in rows if len(spec.axes[place.tensor]) > 1}
        vectors = {place.tensor.rpartition(".")[0] for place in rows if len(spec.axes[place.tensor]) == 1}
        twice = {place.tensor for place in rows} & {place.tensor for place in columns}
        if columns and weights and vectors <= weights and not twice and len(rows) + len(columns) == len(places):
            found.append(axis)
    return found


def canonical_scales(
    spec: PermutationSpec, tensors: Mapping[str, Tensor], *, like: Mapping[str, Tensor] | None = None
) -> StateDict:
    """The network of this class of rescaled ones in which what makes a channel has norm 1, or is nearest to another.

    Weights `w` and bias `b` that produce channel `j` become `w / c_j` and `b / c_j` with `c_j^2 = |w|^2 + b^2`, and
    weights that use it are multiplied by `c_j`. The function is the same if the activation is positively homogeneous,
    `f(c x) = c f(x)` for `c > 0`, as ReLU is. Channels of zeros are not changed.

    Args:
        spec: Permutation symmetries, which say where a channel is produced and used. Axes are visited in their order.
        tensors: The network.
        like: Network in the same order, to whose channels those are brought as near as scales can (least squares).

    Returns:
        New tensors; floating-point tensors are float64.
    """
    scaled = {name: x.double().clone() if x.is_floating_point() else x for name, x in tensors.items()}
    for axis in scalable_axes(spec):
        rows = [place for place in spec.occurrences[axis] if place.dim == 0]
        columns = [place for place in spec.occurrences[axis] if place.dim == 1]
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
