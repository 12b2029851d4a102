"""Axes made of parts, such as heads x dimensions of a head: permutations that keep the parts together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One factor of an axis whose entries are numbered like digits: entry `i * size + j` is entry `j` of block `i`.

    Parts with the same name are reordered alike wherever they occur, such as the heads of queries, keys and values.

    Attributes:
        name: Name of the part.
        size: Entries, >= 1.
        within: Names of parts on which the order depends: the dimensions of a head may be reordered in each head
            differently, `within=("heads",)`. These must belong to the same axis.
        moves: `False` for a part that only serves for numbering.
    """

    name: str
    size: int
    within: tuple[str, ...] = ()
    moves: bool = True


@dataclass(frozen=True, slots=True)
class Generator:
    """One free reordering of `size` items, and where each of them occurs.

    Attributes:
        name: Name of the axis or part, with `[i, j]` for the entries of the parts that contain it.
        size: Number of items to reorder, `n`.
        entries: For each axis, the entries that belong to each item, `[n, copies]` int64.
    """

    name: str
    size: int
    entries: Mapping[str, Tensor]


def generators(sizes: Mapping[str, int], parts: Mapping[str, tuple[Part, ...]]) -> dict[str, Generator]:
    """All free reorderings of a set of axes, from whole blocks to their insides.

    Every allowed permutation is a product of one permutation of each. An axis without parts is a single generator.

    Args:
        sizes: Entries of each axis.
        parts: Parts of axes, if any.

    Raises:
        ValueError: If parts contradict each other or the size of their axis.
    """
    check_parts(sizes, parts)
    found: dict[str, Generator] = {}
    for axis, size in sizes.items():
        if axis not in parts:
            found[axis] = Generator(axis, size, {axis: torch.arange(size).unsqueeze(1)})
            continue
        for part in sorted((part for part in parts[axis] if part.moves), key=lambda part: len(part.within)):
            for name, entries in _slots(part, parts[axis]):
                known = found.setdefault(name, Generator(name, part.size, {}))
                found[name] = Generator(name, part.size, {**known.entries, axis: entries})
    # Blocks before their insides, even if they occur on different axes.
    depth = {_slot_name(part, None): len(part.within) for made_of in parts.values() for part in made_of}
    return dict(sorted(found.items(), key=lambda item: depth.get(item[0].split("[")[0], 0)))


def _slot_name(part: Part, slot: tuple[int, ...] | None) -> str:
    return part.name if not slot else f"{part.name}[{', '.join(map(str, slot))}]"


def _slots(part: Part, made_of: tuple[Part, ...]) -> Iterator[tuple[str, Tensor]]:
    """Name and entries `[n, copies]` of every place where `part` may be reordered independently."""
    names = [other.name for other in made_of]
    table = torch.arange(prod(other.size for other in made_of)).view([other.size for other in made_of])
    front = [names.index(name) for name in part.within]
    table = table.movedim([*front, names.index(part.name)], list(range(len(front) + 1)))
    for slot in product(*(range(table.shape[dim]) for dim in range(len(front)))):
        yield _slot_name(part, slot), table[slot].reshape(part.size, -1)


def check_parts(sizes: Mapping[str, int], parts: Mapping[str, tuple[Part, ...]]) -> None:
    """Raise an error for parts that contradict each other or the size of their axis, see [`generators`]."""
    seen: dict[str, Part] = {}
    for axis, made_of in parts.items():
        names = [part.name for part in made_of]
        if any(part.size < 1 for part in made_of):
            raise ValueError(f"parts of axis {axis!r} must have at least one entry, got {made_of}")
        if axis not in sizes or prod(part.size for part in made_of) != sizes[axis] or len(set(names)) != len(names):
            raise ValueError(
                f"axis {axis!r} (size {sizes.get(axis)}) must be the product of differently named parts, got {made_of}"
            )
        for part in made_of:
            if seen.setdefault(part.name, part) != part or part.name in sizes or "[" in part.name:
                raise ValueError(
                    f"part {part.name!r} must be the same everywhere, and its name must not be that of an axis or "
                    f"contain '[', got "
                    f"{part} and {seen[part.name]}"
                )
            if part.name in part.within or len(set(part.within)) != len(part.within):
                raise ValueError(f"part {part.name!r} lies within other parts, each named once, got {part.within}")
            if outside := set(part.within) - set(names):
                raise ValueError(
                    f"part {part.name!r} lies within {sorted(outside)}, which axis {axis!r} does not have"
                )


def reorder(index: Tensor, entries: Tensor, order: Tensor) -> None:
    """Reorder an index in place: `index` `[..., size]`, `entries` `[n, copies]`, `order` `[..., n]`."""
    index[..., entries.flatten()] = index.take_along_dim(entries[order].flatten(-2), dim=-1)


def keeps_parts_together(found: Mapping[str, Generator], permutation: Mapping[str, Tensor]) -> bool:
    """Whether a permutation is a product of the generators: blocks remain intact, in the same way on all axes.

    Args:
        found: From [`generators`], whole blocks first.
        permutation: `[..., n]` int64 per axis, each of them a permutation.
    """
    rest = {axis: index.to("cpu", copy=True) for axis, index in permutation.items()}
    for generator in found.values():
        orders = []
        for axis, entries in generator.entries.items():
            owner = torch.full((rest[axis].shape[-1],), -1)
            owner[entries] = torch.arange(generator.size).unsqueeze(1)
            here = owner[rest[axis]][..., entries]  # [..., n, copies]: the block that moved to each place
            orders.append(here[..., 0])
            if (here < 0).any() or (here != orders[0].unsqueeze(-1)).any():
                return False
        for axis, entries in generator.entries.items():
            reorder(rest[axis], entries, orders[0].argsort(dim=-1))  # undo it, and check the insides
    return all(bool((index == torch.arange(index.shape[-1])).all()) for index in rest.values())
