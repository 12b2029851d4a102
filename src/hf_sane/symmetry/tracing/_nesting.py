"""Find atoms that may be reordered differently inside each entry of another atom, and atoms that are twins."""

from collections.abc import Iterable, Sequence

from hf_sane.symmetry.tracing._axes import Atom, Axis, Product, resolve

Resolved = list[Axis]


def orders_within(tensors: Sequence[Resolved], values: Sequence[Resolved]) -> dict[Atom, list[Atom]]:
    """For every free atom that is multiplied with others in a tensor, the atoms on which its order may depend.

    The dimensions of a head may be permuted in every head differently if, wherever they occur, the head is known: it
    is indexed by another dimension of the same value, or by the same one. In tensors of the state dict it must be the
    same dimension, since dimensions are permuted one by one. If two atoms could depend on each other, only the later
    one does.

    Args:
        tensors: Resolved types of the state dict.
        values: Resolved types of all intermediate values.
    """
    products = list(dict.fromkeys(product for types in tensors for axis in types for product in axis))
    within: dict[Atom, list[Atom]] = {}
    for product in products:
        for place, atom in enumerate(product):
            if atom.reason is None and len(product) > 1:
                others = [other for i, other in enumerate(product) if other.reason is None or i < place]
                within[atom] = [o for o in within.get(atom, others) if o in others and o is not atom]
    for product in products:
        if len(product) == 1 and product[0] in within:
            within[product[0]] = []
    for types in values:
        for atom, known in _known_beside(types, within):
            within[atom] = [other for other in within[atom] if other in known]
    for product in products:
        for place, atom in enumerate(product):
            if atom in within:
                later = product[place + 1 :]
                within[atom] = [o for o in within[atom] if not (o in later and atom in within.get(o, ()))]
    return within


def _known_beside(types: Resolved, wanted: Iterable[Atom]) -> Iterable[tuple[Atom, set[Atom]]]:
    """For the wanted atoms of a value, the atoms whose entry is known at each of its positions."""
    held = [{atom for product in axis for atom in product} for axis in types]
    for atom in wanted:
        dims = [dim for dim, found in enumerate(held) if atom in found]
        if not dims:
            continue
        if len(dims) > 1:
            yield atom, set()  # a Gram matrix: which of the two entries of the other atom is meant?
            continue
        elsewhere = [a for dim, axis in enumerate(types) if dim != dims[0] and len(axis) == 1 for a in axis[0]]
        beside = [set(product) for product in types[dims[0]] if atom in product]
        once = {a for a in elsewhere if elsewhere.count(a) == 1 and a not in held[dims[0]]}
        yield atom, once | set.intersection(*beside)


def twins(tensors: Sequence[Resolved], values: Sequence[Resolved]) -> list[list[Atom]]:
    """Groups of free atoms that always occur together, such as the channels padded before and after a residual stream.

    They are concatenated in the same dimensions of the same values, so every operation treats their entries alike, and
    these may be exchanged across the atoms too.

    Args:
        tensors: Resolved types of the state dict.
        values: Resolved types of all intermediate values.
    """
    candidates = {
        product[0]
        for types in tensors
        for axis in types
        if len(axis) > 1
        for product in axis
        if product and product[0].reason is None and all(atom.reason is not None for atom in product[1:])
    }
    seen: dict[Atom, list[tuple[int, int, tuple[Product, Product]]]] = {}
    for number, types in enumerate([*tensors, *values]):
        for dim, axis in enumerate(types):
            for product in axis:
                for place, atom in enumerate(product):
                    if atom in candidates:
                        seen.setdefault(atom, []).append((number, dim, (product[:place], product[place + 1 :])))
    groups: dict[tuple[tuple[int, int, tuple[Product, Product]], ...], list[Atom]] = {}
    for atom, places in seen.items():
        if all(not before and all(a.reason is not None for a in after) for _, _, (before, after) in places):
            groups.setdefault(tuple(places), []).append(atom)
    return [group for group in groups.values() if len(group) > 1]


def resolved(types: Iterable[list[Axis]]) -> list[Resolved]:
    """Types in terms of atoms that are not refined."""
    return [[resolve(axis) for axis in found] for found in types]
