"""How files store the tensors of a Transformers model: under other names, in parts, or transposed."""

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class SavedForm:
    """Where the values of a tensor in a file are in the model.

    Attributes:
        source: Name of the tensor in the state dict of the model.
        dims: For each dimension of the tensor in the file, the dimension of the source and the positions in it; `None`
            for a dimension of size 1 that the source lacks.
        at: Positions in the other dimensions of the source, such as the number of an expert.
    """

    source: str
    dims: tuple[tuple[int, tuple[int, ...]] | None, ...]
    at: Mapping[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        return tuple(1 if found is None else len(found[1]) for found in self.dims)

    @property
    def _positions(self) -> dict[int, Sequence[int]]:
        """Positions in every dimension of the source, those of the file first and in their order."""
        found: dict[int, Sequence[int]] = dict(pair for pair in self.dims if pair is not None)
        return found | {dim: [place] for dim, place in self.at.items()}

    def read(self, source: Tensor) -> Tensor:
        """The tensor as a file stores it."""
        for dim, positions in self._positions.items():
            source = source.index_select(dim, torch.tensor(positions))
        return source.permute(list(self._positions)).reshape(self.shape)

    def write(self, source: Tensor, saved: Tensor) -> None:
        """Write the values of a file into the tensor of the model, in place."""
        positions = self._positions
        found = saved.reshape([len(places) for places in positions.values()])
        found = found.permute([list(positions).index(dim) for dim in range(source.ndim)])
        index = torch.meshgrid(*(torch.tensor(positions[dim]) for dim in range(source.ndim)), indexing="ij")
        source[index] = found


@torch.no_grad()
def saved_forms(model: PreTrainedModel) -> dict[str, SavedForm]:
    """Form of each tensor in the files of a model, found by saving a copy whose values are all different.

    Tensors that files compute from several others are left out, and those without values.
    """
    model = copy.deepcopy(model).double()  # in which up to 2^53 values are different
    state: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and tensor.numel() and id(tensor) not in known:
            known.add(id(tensor))
            state[name] = tensor
    starts, start = list[int](), 0
    for tensor in state.values():
        tensor.copy_(torch.arange(start, start + tensor.numel()).view_as(tensor))
        starts.append(start)
        start += tensor.numel()
    found: dict[str, SavedForm] = {}
    bounds = torch.tensor(starts)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for path in sorted(Path(folder).glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                if not tensor.numel() or not tensor.is_floating_point():
                    continue
                number = int(torch.searchsorted(bounds, tensor.flatten()[0].long(), right=True)) - 1
                source = list(state)[max(0, number)]
                form = _form(source, state[source].shape, tensor.long() - starts[max(0, number)])
                if form is not None:
                    found[name] = form
    return found


def _form(source: str, shape: Sequence[int], values: Tensor) -> SavedForm | None:
    """The form of a tensor whose values are places in the flattened source; `None` if they are computed otherwise."""
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    if not 0 <= int(values.min()) <= int(values.max()) < math.prod(shape):
        return None
    first = int(values.flatten()[0])
    at = {dim: first // stride % size for dim, (stride, size) in enumerate(zip(strides, shape, strict=True))}
    dims: list[tuple[int, tuple[int, ...]] | None] = []
    expected = torch.full((), first)
    for axis in range(values.ndim):
        line = values.movedim(axis, 0).flatten(1)[:, 0] if values.ndim > 1 else values
        moving = [dim for dim, stride in enumerate(strides) if bool((line // stride % shape[dim] != at[dim]).any())]
        if len(moving) > 1 or (moving and moving[0] not in at):
            return None
        dims.append((moving[0], tuple((line // strides[moving[0]] % shape[moving[0]]).tolist())) if moving else None)
        expected = expected.unsqueeze(-1) + (line - first)
    if not torch.equal(expected, values):
        return None
    taken = {found[0] for found in dims if found is not None}
    if len(taken) < sum(found is not None for found in dims):
        return None
    # Dimensions of size 1 correspond in their order.
    left = [dim for dim in at if dim not in taken]
    for axis, found in enumerate(dims):
        same = next((dim for dim in left if shape[dim] == 1), None)
        if found is None and same is not None:
            dims[axis] = same, (0,)
            left = [dim for dim in left if dim != same]
    return SavedForm(source, tuple(dims), {dim: at[dim] for dim in left})
