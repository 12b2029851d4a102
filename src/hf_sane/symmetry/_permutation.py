"""Permutation symmetries: which axes of which tensors must be permuted together, and their application."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_sane.records._documents import Entry
from hf_sane.records._errors import reading
from hf_sane.symmetry._parts import Generator, Part, check_parts, generators, keeps_parts_together, reorder

Permutation = dict[str, Tensor]  # axis name -> int64 [n], or [M, n] for M models


@dataclass(frozen=True, slots=True)
class AxisSlice:
    """Entries `start` to `stop` of a named axis, each with `block` adjacent positions in a tensor dimension.

    `block > 1` describes a flattened feature map: a channel owns the block of its pixels.

    Attributes:
        axis: Name of the axis; `None` for fixed positions.
        start: First entry, >= 0.
        stop: One past the last entry, > `start`.
        block: Positions per entry, >= 1.
    """

    axis: str | None
    start: int
    stop: int
    block: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop or self.block < 1:
            raise ValueError(
                f"expected 0 <= start < stop and block >= 1, got start={self.start}, stop={self.stop}, "
                f"block={self.block} for axis {self.axis!r}"
            )

    @property
    def size(self) -> int:
        """Number of positions."""
        return (self.stop - self.start) * self.block


MAX_ENTRIES = 2**24  # limit for axes and dimensions from files, which may claim any size

# Content of one tensor dimension: fixed, one whole axis, or consecutive slices of axes.
Dimension = None | str | tuple[AxisSlice, ...]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One place where an axis occurs.

    Attributes:
        tensor: Name of the tensor.
        dim: Dimension of the tensor.
        positions: `[n, block]` int64, the positions of each entry of the axis in that dimension.
    """

    tensor: str
    dim: int
    positions: Tensor


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of one architecture.

    A permutation gives every axis `a` an index `pi_a`, and entry `i` of the permuted axis is entry `pi_a[i]` of the
    original one, in every tensor at once. Applied together these leave the network's function unchanged.

    Attributes:
        axes: For every tensor of the state dict, in its order, the content of each dimension: `None` (fixed), the name
            of an axis, or a tuple of [`AxisSlice`]. A dimension that holds an axis holds each of its entries at the
            same number of positions.
        sizes: Number of entries of each axis.
        unmatched: Tensors that are permuted but not compared in matching: counters and running statistics, which have
            the scale of activations.
        parts: Parts of axes that must not be reordered freely, such as heads x dimensions of a head; see [`Part`].
            Axes without parts are free.
        fixed: Why dimensions are fixed, fully or in part: `{tensor: {dim: reason}}`.

    Raises:
        ValueError: If `axes` names an axis without a size, a dimension does not hold all entries of an axis equally
            often, or parts do not fit their axis.
    """

    axes: Mapping[str, tuple[Dimension, ...]]
    sizes: Mapping[str, int]
    unmatched: frozenset[str] = field(default_factory=frozenset)
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tensor, dim, slices in self._slices():
            for axis in dict.fromkeys(part.axis for part in slices if part.axis is not None):
                parts = [part for part in slices if part.axis == axis]
                if axis not in self.sizes:
                    raise ValueError(f"{tensor!r} uses axis {axis!r}, which has no size; known: {sorted(self.sizes)}")
                counts = [0] * max(self.sizes[axis], *(part.stop for part in parts))
                for part in parts:
                    for entry in range(part.start, part.stop):
                        counts[entry] += part.block
                if len(counts) != self.sizes[axis] or min(counts) != max(counts):
                    raise ValueError(
                        f"dimension {dim} of {tensor!r} must hold every entry of axis {axis!r} (size "
                        f"{self.sizes[axis]}) at the same number of positions, got {parts}"
                    )
        if unused := self.sizes.keys() - {axis for axis, places in self.occurrences.items() if places}:
            raise ValueError(f"axes {sorted(unused)} have a size but occur in no tensor")
        check_parts(self.sizes, self.parts)

    def _slices(self) -> Iterator[tuple[str, int, tuple[AxisSlice, ...]]]:
        """Yield `(tensor, dim, slices)` for every dimension that moves."""
        for tensor, dimensions in self.axes.items():
            for dim, dimension in enumerate(dimensions):
                if isinstance(dimension, str):
                    yield tensor, dim, (AxisSlice(dimension, 0, self.sizes.get(dimension, 1)),)
                elif dimension is not None:
                    yield tensor, dim, dimension

    @cached_property
    def occurrences(self) -> dict[str, list[Occurrence]]:
        """All occurrences of every axis, in the order of `axes`."""
        found: dict[str, list[Occurrence]] = {axis: [] for axis in self.sizes}
        for tensor, dim, slices in self._slices():
            positions: dict[str, list[list[int]]] = {}
            offset = 0
            for part in slices:
                if part.axis is not None:
                    owned = positions.setdefault(part.axis, [[] for _ in range(self.sizes[part.axis])])
                    for i, entry in enumerate(range(part.start, part.stop)):
                        owned[entry].extend(range(offset + i * part.block, offset + (i + 1) * part.block))
                offset += part.size
            for axis, owned in positions.items():
                found[axis].append(Occurrence(tensor, dim, torch.tensor(owned, dtype=torch.int64)))
        return found

    @cached_property
    def generators(self) -> dict[str, Generator]:
        """Independent symmetries, whole blocks first (see [`Generator`]); a permutation chooses one order for each."""
        return generators(self.sizes, self.parts)

    @cached_property
    def generator_occurrences(self) -> dict[str, list[Occurrence]]:
        """All occurrences of every generator, in the order of `axes`, with positions `[n, copies * block]`."""
        order = {name: i for i, name in enumerate(self.axes)}
        found = {}
        for name, generator in self.generators.items():
            places = [
                Occurrence(place.tensor, place.dim, place.positions[entries].flatten(1))
                for axis, entries in generator.entries.items()
                for place in self.occurrences[axis]
            ]
            found[name] = sorted(places, key=lambda place: order[place.tensor])
        return found

    @cached_property
    def _dimensions(self) -> dict[str, dict[int, list[tuple[str, Tensor]]]]:
        """For every tensor, its moving dimensions and the `(axis, positions)` in each."""
        found: dict[str, dict[int, list[tuple[str, Tensor]]]] = {}
        for axis, places in self.occurrences.items():
            for place in places:
                found.setdefault(place.tensor, {}).setdefault(place.dim, []).append((axis, place.positions))
        return found

    @cached_property
    def _moving_sizes(self) -> dict[str, dict[int, int]]:
        """Number of entries of each tensor's moving dimensions."""
        found: dict[str, dict[int, int]] = {}
        for tensor, dim, slices in self._slices():
            found.setdefault(tensor, {})[dim] = sum(part.size for part in slices)
        return found

    def identity(self, num_models: int | None = None) -> Permutation:
        """The identity permutation: `[n]` per axis, or `[num_models, n]`."""
        shape = () if num_models is None else (num_models,)
        return {axis: torch.arange(size).expand(*shape, size).clone() for axis, size in self.sizes.items()}

    def random(self, num_models: int | None = None, *, generator: torch.Generator | None = None) -> Permutation:
        """A uniformly random allowed permutation `[n]`, or independent ones `[num_models, n]`.

        Args:
            num_models: Number of permutations, `M`; one without leading axis if `None`.
            generator: Source of randomness (CPU); the global one if `None`.
        """
        shape = () if num_models is None else (num_models,)
        permutation = self.identity(num_models)
        for free in self.generators.values():
            order = torch.rand(*shape, free.size, generator=generator, dtype=torch.float64).argsort(
                dim=-1, stable=True
            )
            for axis, entries in free.entries.items():
                reorder(permutation[axis], entries, order)
        return permutation

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Fixed dimensions `tensor[dim]`, by reason."""
        found: dict[str, list[str]] = {}
        for tensor, dims in self.fixed.items():
            for dim, reason in dims.items():
                found.setdefault(reason, []).append(f"{tensor}[{dim}]")
        return found

    def explain_fixed(self) -> str:
        """Fixed dimensions, as one line per reason."""
        return "\n".join(f"{reason}: {', '.join(places)}" for reason, places in self.reasons.items())

    def to_dict(self) -> dict[str, Any]:
        """The spec in a form that JSON supports, for [`from_dict`]."""
        axes = {
            tensor: [
                dimension
                if dimension is None or isinstance(dimension, str)
                else [[part.axis, part.start, part.stop, part.block] for part in dimension]
                for dimension in dimensions
            ]
            for tensor, dimensions in self.axes.items()
        }
        parts = {
            axis: [[part.name, part.size, list(part.within), part.moves] for part in made_of]
            for axis, made_of in self.parts.items()
        }
        fixed = {tensor: {str(dim): reason for dim, reason in found.items()} for tensor, found in self.fixed.items()}
        sizes, unmatched = dict(self.sizes), sorted(self.unmatched)
        return {"axes": axes, "sizes": sizes, "unmatched": unmatched, "parts": parts, "fixed": fixed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PermutationSpec":
        """Restore a spec from [`to_dict`].

        Raises:
            InvalidFileError: If the content is not a spec.
        """
        return cls.from_entry(Entry(values, "permutation spec", remedy="pass the result of to_dict()"))

    @classmethod
    def from_entry(cls, values: Entry) -> "PermutationSpec":
        """Like [`from_dict`], for content of a file: errors name the file and field.

        Raises:
            InvalidFileError: As in [`from_dict`].
        """
        sizes = {axis: entry.whole(at_least=1, at_most=MAX_ENTRIES) for axis, entry in values["sizes"].items()}
        axes = {
            tensor: tuple(_read_dimension(dimension) for dimension in dimensions.entries())
            for tensor, dimensions in values["axes"].items()
        }
        parts = {
            axis: tuple(_read_part(part) for part in made_of.entries()) for axis, made_of in values["parts"].items()
        }
        fixed = {
            tensor: {_read_key(found, dim): reason.text() for dim, reason in found.items()}
            for tensor, found in values["fixed"].items()
        }
        unmatched = frozenset(name.text() for name in values["unmatched"].entries())
        with reading(values.file, field=values.field, expected="symmetries that fit together", remedy=values.remedy):
            return cls(axes, sizes, unmatched, parts, fixed)

    def inverse(self, permutation: Permutation) -> Permutation:
        """The permutation that undoes `permutation` (`[n]` or `[M, n]` per axis)."""
        return {axis: index.argsort(dim=-1) for axis, index in self._checked(permutation).items()}

    def compose(self, first: Permutation, second: Permutation) -> Permutation:
        """The permutation that applies `first` and then `second` (both `[n]` or both `[M, n]` per axis)."""
        first, second = self._checked(first), self._checked(second)
        return {axis: torch.take_along_dim(first[axis], second[axis], dim=-1) for axis in self.sizes}

    def apply(
        self, tensors: Mapping[str, Tensor], permutation: Permutation, *, batch_dims: int = 0
    ) -> dict[str, Tensor]:
        """Permute a state dict, a stack of state dicts, or one state dict in several ways.

        Args:
            tensors: `{name: [*shape]}`, or `{name: [M, *shape]}` with `batch_dims=1`; any dtype. Tensors of the spec
                may be missing (parameters without buffers), but other tensors are not allowed.
            permutation: `[n]` per axis (the same for all models) or `[M, n]`.
            batch_dims: 0 or 1.

        Returns:
            New tensors in the order of `tensors`: `[*shape]`, or `[M, *shape]` if either argument is stacked. Tensors
            without moving axes are shared with the input, not copied.

        Raises:
            KeyError: If a tensor is not part of the spec, or the permutation lacks an axis or has an unknown one.
            ValueError: If shapes do not fit the spec, or an index is not a permutation.
        """
        permutation = self._checked(permutation)
        self.check_tensors(tensors, batch_dims=batch_dims)
        counts = {len(index) if index.ndim == 2 else None for index in permutation.values()}
        models = {len(tensor) for tensor in tensors.values()} if batch_dims else set()
        if len(counts) > 1 or len((counts - {None}) | models) > 1:
            raise ValueError(
                f"expected the same number of models throughout, got {counts} in the permutation (None: not "
                f"stacked) and "
                f"{models or 'no stack'} in the tensors"
            )
        stacked = next(iter(counts), None)
        return {name: self._move(name, tensor, permutation, batch_dims, stacked) for name, tensor in tensors.items()}

    def check_tensors(self, tensors: Mapping[str, Tensor], *, batch_dims: int = 0) -> None:
        """Raise `KeyError` for tensors that the spec lacks, and `ValueError` for shapes that it does not describe."""
        if batch_dims not in (0, 1):
            raise ValueError(f"batch_dims must be 0 or 1, got {batch_dims}")
        if foreign := [name for name in tensors if name not in self.axes]:
            raise KeyError(f"tensors {foreign} are not part of the permutation spec; was it made for another network?")
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape[batch_dims:])
            if len(shape) != len(self.axes[name]):
                raise ValueError(f"{name!r} must have {len(self.axes[name])} dimensions, got shape {shape}")
            for dim, size in self._moving_sizes.get(name, {}).items():
                if shape[dim] != size:
                    raise ValueError(f"dimension {dim} of {name!r} must have {size} entries, got shape {shape}")

    def _checked(self, permutation: Permutation) -> Permutation:
        if permutation.keys() != self.sizes.keys():
            differing = sorted(permutation.keys() ^ self.sizes.keys())
            raise KeyError(f"expected a permutation of axes {sorted(self.sizes)}; missing or unknown: {differing}")
        for axis, index in permutation.items():
            if index.ndim not in (1, 2) or index.shape[-1] != self.sizes[axis]:
                raise ValueError(
                    f"permutation of axis {axis!r} must be [{self.sizes[axis]}] or [models, {self.sizes[axis]}], got "
                    f"{list(index.shape)}"
                )
            if (index.sort(dim=-1).values != torch.arange(self.sizes[axis], device=index.device)).any():
                raise ValueError(f"index of axis {axis!r} is not a permutation of 0..{self.sizes[axis] - 1}")
        if self.parts and len({index.ndim for index in permutation.values()}) == 1:
            made = {name: free for name, free in self.generators.items() if name not in self.sizes}
            if not keeps_parts_together(made, {axis: permutation[axis] for axis in self.parts}):
                raise ValueError(
                    f"the permutation separates parts of the axes {sorted(self.parts)} (a head, a group); "
                    "expected a permutation from random, match, inverse or compose of this spec"
                )
        return permutation

    def _move(
        self, name: str, tensor: Tensor, permutation: Permutation, batch_dims: int, stacked: int | None
    ) -> Tensor:
        """Gather one tensor, dimension by dimension, or all at once for `stacked` permutations."""
        indices: dict[int, Tensor] = {}
        for dim, parts in self._dimensions.get(name, {}).items():
            index = torch.arange(tensor.shape[dim + batch_dims]).repeat(stacked or 1, 1)
            for axis, positions in parts:
                index[:, positions.flatten()] = positions[permutation[axis].cpu()].flatten(-2)
            indices[dim] = index.to(tensor.device)
        if stacked is None:
            for dim, index in indices.items():
                tensor = tensor.index_select(dim + batch_dims, index[0])
            return tensor
        if not batch_dims:
            tensor = tensor.expand(stacked, *tensor.shape)
        return gather_stacked(tensor, indices) if indices else tensor


def _read_dimension(entry: Entry) -> Dimension:
    if entry.value is None:
        return None
    if isinstance(entry.value, str):
        return entry.value
    slices, covered = [], 0
    for part in entry.entries():
        axis, start, stop, block = part.entries(length=4)
        with reading(part.file, field=part.field, expected="a slice of an axis", remedy=part.remedy):
            name = None if axis.value is None else axis.text()
            slices.append(AxisSlice(name, start.whole(), stop.whole(), block.whole()))
        covered += slices[-1].size
        if max(covered, slices[-1].stop) > MAX_ENTRIES:
            part.fail(f"at most {MAX_ENTRIES} positions", got=covered)
    return tuple(slices)


def _read_part(entry: Entry) -> Part:
    name, size, within, moves = entry.entries(length=4)
    names = tuple(other.text() for other in within.entries())
    return Part(name.text(), size.whole(at_least=1, at_most=MAX_ENTRIES), names, moves.flag())


def _read_key(found: Entry, dim: str) -> int:
    if not (dim.isascii() and dim.isdigit() and len(dim) <= 3):
        found.fail("numbers of dimensions as keys", got=dim)
    return int(dim)


def gather_stacked(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Reorder dimensions of a stacked tensor, differently for each model, in one copy.

    Args:
        tensor: `[M, *shape]`.
        indices: For dimensions of `shape`, counted from 0: `[M, size]` int64, the entry for each position.

    Returns:
        `[M, *shape]`.
    """
    num_indexed = max(indices) + 1  # later dimensions are copied as contiguous slices
    full = [torch.arange(len(tensor), device=tensor.device).view(-1, *(1 for _ in range(num_indexed)))]
    for dim in range(num_indexed):
        index = indices.get(dim, torch.arange(tensor.shape[dim + 1], device=tensor.device).unsqueeze(0))
        full.append(index.view(len(index), *(-1 if other == dim else 1 for other in range(num_indexed))))
    return tensor[tuple(full)]
