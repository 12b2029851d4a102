"""Permutation symmetries of the tensors in files, from those of the model."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby

from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import AxisSlice, Dimension, PermutationSpec
from hf_sane.symmetry._saved_forms import SavedForm


@dataclass(frozen=True, slots=True)
class Place:
    """Content of one position of a dimension.

    Attributes:
        axis: Name of the axis; `None` for a fixed position.
        entry: Entry of the axis.
        kind: How often the entry occurs before, and the position in its block.
    """

    axis: str | None
    entry: int = 0
    kind: tuple[int, int] = (0, 0)


def places_of(dimension: Dimension, size: int) -> list[Place]:
    """Contents of all positions of a dimension."""
    slices = (AxisSlice(dimension, 0, size),) if isinstance(dimension, str) or dimension is None else dimension
    found: list[Place] = []
    copies: dict[tuple[str | None, int], int] = {}
    for part in slices:
        for entry in range(part.start, part.stop):
            copy = copies[part.axis, entry] = copies.get((part.axis, entry), -1) + 1
            found += [Place(part.axis, entry, (copy, offset)) for offset in range(part.block)]
    return found


def _is_whole(places: Sequence[Place], axis: str, size: int) -> bool:
    """Whether every entry of an axis is held alike: as often, and in blocks of the same order."""
    held: dict[int, list[tuple[int, int]]] = {entry: [] for entry in range(size)}
    for place in places:
        if place.axis == axis:
            held[place.entry].append(place.kind)
    return all(kinds == held[0] for kinds in held.values())


def _dimension(places: Sequence[Place], sizes: Mapping[str, int]) -> Dimension:
    """The content of a dimension from what is at each position; axes without a size are fixed."""
    slices: list[AxisSlice] = []
    for (axis, entry), run in groupby(places, key=lambda x: (x.axis, x.entry) if x.axis in sizes else (None, 0)):
        length = sum(1 for _ in run)
        last = slices[-1] if slices else None
        if last is not None and (axis, entry, length) == (last.axis, last.stop, last.block) and axis is not None:
            slices[-1] = AxisSlice(axis, last.start, entry + 1, length)
        else:
            slices.append(
                AxisSlice(axis, entry, entry + (length if axis is None else 1), 1 if axis is None else length)
            )
    if all(part.axis is None for part in slices):
        return None
    whole = slices[0].axis
    return whole if whole is not None and slices == [AxisSlice(whole, 0, sizes[whole])] else tuple(slices)


Contents = Mapping[str, Sequence[Sequence[Place]]]  # of each dimension of each tensor


def held_by(spec: PermutationSpec, form: SavedForm) -> list[list[Place]]:
    """Contents of all positions of the dimensions of a tensor in a file."""
    found: list[list[Place]] = []
    for pair in form.dims:
        if pair is None:
            found.append([Place(None)])
        else:
            places = places_of(spec.axes[form.source][pair[0]], 1 + max(pair[1]))
            found.append([places[position] for position in pair[1]])
    return found


def with_reasons(found: PermutationSpec, spec: PermutationSpec, forms: Mapping[str, SavedForm]) -> PermutationSpec:
    """The spec of files, with the reasons for fixed dimensions from that of the model."""
    fixed = {
        name: {
            dim: spec.fixed[form.source][pair[0]]
            for dim, pair in enumerate(form.dims)
            if pair is not None and pair[0] in spec.fixed.get(form.source, {})
        }
        for name, form in forms.items()
    }
    return replace(found, fixed={name: reasons for name, reasons in fixed.items() if reasons})


def spec_of(
    contents: Contents, sizes: Mapping[str, int], parts: Mapping[str, tuple[Part, ...]], unmatched: Set[str]
) -> PermutationSpec:
    """A spec from what is at each position of each tensor.

    Axes of which some tensor holds only a part of the entries, or not all of them alike, are fixed, with all axes that
    share parts with them.

    Args:
        contents: Tensors.
        sizes: Sizes of the axes, in their order; others are fixed.
        parts: Parts of axes.
        unmatched: Tensors that are not compared.
    """
    held: set[str] = set()
    broken: set[str] = set()
    for places in (places for found in contents.values() for places in found):
        here = {place.axis for place in places if place.axis in sizes}
        held |= {axis for axis in here if axis is not None}
        broken |= {axis for axis in here if axis is not None and not _is_whole(places, axis, sizes[axis])}
    for _ in parts:  # as often as it may spread
        names = {part.name for axis in broken for part in parts.get(axis, ()) if part.moves}
        broken |= {axis for axis, made_of in parts.items() if any(part.name in names for part in made_of)}
    kept = {axis: size for axis, size in sizes.items() if axis in held and axis not in broken}
    axes = {name: tuple(_dimension(places, kept) for places in found) for name, found in contents.items()}
    return PermutationSpec(
        axes,
        kept,
        frozenset(name for name in axes if name in unmatched),
        {axis: made_of for axis, made_of in parts.items() if axis in kept},
    )
