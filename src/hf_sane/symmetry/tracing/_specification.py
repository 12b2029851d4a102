"""From axis types to a permutation spec: names of free axes, all dimensions, and reasons for fixed ones."""

from collections.abc import Iterable, Iterator, Mapping

from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import AxisSlice, Dimension, PermutationSpec
from hf_sane.symmetry.tracing._axes import Atom, Axis, Product, freeze, product_size
from hf_sane.symmetry.tracing._graph import TypedModel
from hf_sane.symmetry.tracing._nesting import orders_within, resolved, twins

Key = tuple[Atom, ...]  # of a product, everything up to its last free atom


def specification(typed: TypedModel, unmatched: Iterable[str]) -> PermutationSpec:
    """Turn the types of a model into its permutation spec.

    A product of one free atom (times fixed entries, such as the pixels of a channel) is an axis; a product of several
    atoms is an axis with parts. An axis is named after the first layer whose outputs it represents.

    Args:
        typed: Types of the model.
        unmatched: Tensors that are permuted, but not compared in weight matching.
    """
    types = dict(zip(typed.tensors, resolved(typed.tensors.values()), strict=True))
    for product in {product for dimensions in types.values() for axis in dimensions for product in axis}:
        if len(set(product)) < len(product):
            freeze((product,), "multiplied with itself and flattened")
    values = resolved(typed.values)
    tensors = list({id(typed.tensors[name]): found for name, found in types.items()}.values())
    within = orders_within(tensors, values)
    groups = {atom: group for group in twins(tensors, values) for atom in group}
    names = _names(types, groups)
    sizes, parts = _axes(names, within, groups)
    axes = {
        name: tuple(_dimension(axis, names, groups, sizes) for axis in dimensions)
        for name, dimensions in types.items()
    }
    fixed = {name: reasons for name, dimensions in types.items() if (reasons := _reasons(dimensions))}
    return PermutationSpec(axes, sizes, frozenset(unmatched), parts, fixed)


def _key(product: Product) -> Key:
    free = [place for place, atom in enumerate(product) if atom.reason is None]
    return product[: free[-1] + 1] if free else ()


def _names(types: Mapping[str, list[Axis]], groups: Mapping[Atom, list[Atom]]) -> dict[Key, str]:
    """Name every axis after the first tensor whose first dimension it is, or the first one that holds it."""
    found: dict[Key, list[str]] = {}  # candidates, the best first
    for rows in (True, False):
        for tensor, dimensions in types.items():
            for dim, axis in enumerate(dimensions):
                if (dim == 0) != rows:
                    continue
                stem = tensor.removesuffix(".weight").removesuffix(".bias")
                for key in dict.fromkeys(_key(product) for product in axis):
                    if key:
                        found.setdefault(key, []).append(stem if rows else f"{stem}.inputs")
    names: dict[Key, str] = {}
    taken: set[str] = set()
    for key, candidates in found.items():
        if key[0] in groups and groups[key[0]][0] is not key[0]:
            continue  # a twin, which shares the name of the first
        name, count = candidates[0], 1
        while name in taken:
            count += 1
            name = f"{candidates[0]}.{count}"
        names[key] = name
        taken.add(name)
    for atom, group in groups.items():
        names[(atom,)] = names[(group[0],)]
    return _in_order(names, types)


def _in_order(names: dict[Key, str], types: Mapping[str, list[Axis]]) -> dict[Key, str]:
    """The names in the order in which their axes appear."""
    met = (_key(product) for dimensions in types.values() for axis in dimensions for product in axis)
    return {key: names[key] for key in dict.fromkeys(met) if key}


def _axes(
    names: Mapping[Key, str], within: Mapping[Atom, list[Atom]], groups: Mapping[Atom, list[Atom]]
) -> tuple[dict[str, int], dict[str, tuple[Part, ...]]]:
    """Sizes of the axes, and the parts of those that have some."""
    sizes = {
        name: sum(atom.size for atom in groups[key[0]]) if key[0] in groups else product_size(key)
        for key, name in names.items()
    }
    composite = {key: name for key, name in names.items() if len(key) > 1}
    shared = {atom for key in composite for atom in key}
    # A free axis whose entries are blocks elsewhere (heads that also have a bias each) is a part by itself.
    composite |= {key: name for key, name in names.items() if len(key) == 1 and key[0] in shared}
    called: dict[Atom, str] = {}
    for key, name in names.items():
        if key in composite:
            for place, atom in enumerate(key):
                called.setdefault(atom, f"{name}/{place}")
    parts = {
        name: tuple(
            Part(
                called[atom],
                atom.size,
                tuple(called[other] for other in within.get(atom, ()) if atom.reason is None),
                atom.reason is None,
            )
            for atom in key
        )
        for key, name in composite.items()
    }
    return sizes, parts


def _dimension(
    axis: Axis, names: Mapping[Key, str], groups: Mapping[Atom, list[Atom]], sizes: Mapping[str, int]
) -> Dimension:
    """Content of a dimension."""
    slices = list(_slices(axis, names, groups))
    if all(part.axis is None for part in slices):
        return None
    if len(slices) == 1 and slices[0] == AxisSlice(slices[0].axis, 0, sizes[slices[0].axis or ""]):
        return slices[0].axis
    return tuple(slices)


def _slices(axis: Axis, names: Mapping[Key, str], groups: Mapping[Atom, list[Atom]]) -> Iterator[AxisSlice]:
    for product in axis:
        key = _key(product)
        if not key:
            yield AxisSlice(None, 0, product_size(product))
            continue
        start = 0
        for atom in groups.get(key[0], [key[0]]):
            if atom is key[0]:
                break
            start += atom.size
        yield AxisSlice(names[key], start, start + product_size(key), product_size(product[len(key) :]))


def _reasons(dimensions: list[Axis]) -> dict[int, str]:
    """Why entries of some dimensions are fixed."""
    found = {
        dim: "; ".join(dict.fromkeys(atom.reason for product in axis for atom in product if atom.reason is not None))
        for dim, axis in enumerate(dimensions)
    }
    return {dim: reason for dim, reason in found.items() if reason}
