"""Types of tensor axes: sums (concatenation) of products (reshaping) of atoms, and solving equations between them.

An atom is a set of entries of which only the number is known. It remains free, and is then a permutation symmetry,
unless something fixes it. Two axes that must be reordered together are unified; an axis that is cut or reshaped is
refined.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod


class Atom:
    """`size` entries: free, fixed for a `reason`, or `refined` into an axis; `equal` entries fit any order."""

    __slots__ = ("equal", "reason", "refined", "size")

    def __init__(self, size: int, reason: str | None = None, *, equal: bool = False) -> None:
        self.size = size
        self.reason = reason
        self.equal = equal
        self.refined: Axis | None = None


Product = tuple[Atom, ...]  # entries counted like digits, the last atom fastest; () has one entry
Axis = tuple[Product, ...]  # products one after the other


def new_axis(size: int, reason: str | None = None) -> Axis:
    """An axis of unknown entries, fixed if a reason is given."""
    return ((),) if size == 1 else ((Atom(size, reason),),)


def equal_axis(size: int) -> Axis:
    """An axis along which all entries of a value are the same."""
    return ((),) if size == 1 else ((Atom(size, equal=True),),)


def is_equal(axis: Axis) -> bool:
    """Whether all entries along the axis are known to be equal (there may be only one)."""
    whole = resolve(axis)
    return len(whole) == 1 and all(atom.equal and atom.reason is None for atom in whole[0])


def product_size(product: Iterable[Atom]) -> int:
    """Number of entries of a product."""
    return prod(atom.size for atom in product)


def axis_size(axis: Axis) -> int:
    """Number of entries of an axis."""
    return sum(product_size(product) for product in axis)


def resolve(axis: Axis) -> Axis:
    """The axis in terms of atoms that are not refined."""
    return tuple(found for product in axis for found in _resolve_product(product))


def _resolve_product(product: Product) -> Axis:
    result: Axis = ((),)
    for position, atom in enumerate(product):
        if atom.size == 1:
            continue
        factor: Axis = ((atom,),)
        if atom.refined is not None:
            factor = atom.refined = resolve(atom.refined)  # keeps chains of refinements short
        if len(factor) > 1 and product_size(product[:position]) > 1:
            # A concatenation inside blocks is not a sum of products; its order remains unknown.
            freeze(factor, "concatenated inside the blocks of a reshaped axis")
            factor = ((Atom(axis_size(factor), "concatenated inside the blocks of a reshaped axis"),),)
        if len(factor) > 1:
            result = factor  # (A + B) x C = A x C + B x C
        elif len(result) > 1:
            result = tuple((*left, *factor[0]) for left in result)
        else:
            result = ((*result[0], *factor[0]),)
    return result


def atoms(axis: Axis) -> Iterator[Atom]:
    """All unrefined atoms of an axis."""
    for product in resolve(axis):
        yield from product


def freeze(axis: Axis, reason: str) -> None:
    """Fix all entries; the first reason is kept."""
    for atom in atoms(axis):
        if atom.reason is None:
            atom.reason = reason


def refine(atom: Atom, axis: Axis) -> None:
    """Define the parts of an atom."""
    assert atom.refined is None
    assert axis_size(axis) == atom.size
    if atom.reason is not None:
        freeze(axis, atom.reason)
    atom.refined = axis


def unify(left: Axis, right: Axis) -> None:
    """Require that both axes are reordered alike; parts that cannot be unified are fixed."""
    while _unify_step(resolve(left), resolve(right)):  # every step refines an atom
        pass


def _unify_step(left: Axis, right: Axis) -> bool:
    """Make the first difference disappear; `False` if there is none, or none that can."""
    if axis_size(left) != axis_size(right):
        _freeze_both(left, right, "combined with an axis of another size")
        return False
    i = j = 0
    while i < len(left) and j < len(right):
        size, other = product_size(left[i]), product_size(right[j])
        if size == other:
            if _unify_products(left[i], right[j]):
                return True
            i, j = i + 1, j + 1
        elif _cut(*((left[i], other) if size > other else (right[j], size))):
            return True
        else:
            _freeze_both(left, right, "split in different places")
            return False
    return False


def _freeze_both(left: Axis, right: Axis, reason: str) -> None:
    freeze(left, reason)
    freeze(right, reason)


def _cut(product: Product, size: int) -> bool:
    """Refine a product so that its first `size` entries are separate; `False` if blocks would be cut."""
    rest = product_size(product[1:])
    if not product or size % rest or size // rest >= product[0].size:
        return False
    first = size // rest
    refine(product[0], (*new_axis(first), *new_axis(product[0].size - first)))
    return True


def _unify_products(left: Product, right: Product) -> bool:
    """Unify the first pair of atoms that differ; `False` if there is none."""
    for one, other in zip(left, right, strict=False):
        if one is other:
            continue
        large, small = (one, other) if one.size >= other.size else (other, one)
        if large.size == small.size:
            refine(large, ((small,),))
        elif large.size % small.size == 0:
            refine(large, ((small, Atom(large.size // small.size)),))
        else:
            _freeze_both((left,), (right,), "reshaped in incompatible ways")
            return False
        return True
    return False


def concatenate(axes: Sequence[Axis]) -> Axis:
    """Concatenate axes."""
    return tuple(product for axis in axes for product in resolve(axis))


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Split an axis into consecutive pieces, refining it if needed."""
    pieces = [new_axis(size) for size in sizes if size]
    unify(concatenate(pieces), axis)
    found = iter(pieces)
    return [resolve(next(found)) if size else () for size in sizes]


def multiply(axes: Sequence[Axis]) -> Axis:
    """Flatten several axes into one, the last one fastest."""
    joined: list[Atom] = []
    for axis in axes:
        whole = resolve(axis)
        if len(whole) == 1:
            joined.extend(whole[0])
        else:
            atom = Atom(axis_size(whole))
            refine(atom, whole)
            joined.append(atom)
    return resolve((tuple(joined),))


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Types of the axes after `view(shape)` (without -1), refined if needed.

    Axes are grouped into the smallest runs with the same number of entries before and after.
    """
    result: list[Axis] = []
    start = 0
    for group in _groups([axis_size(resolve(axis)) for axis in axes], list(shape)):
        inner, sizes = axes[start : start + group[0]], shape[len(result) : len(result) + group[1]]
        start += group[0]
        if [size for size in sizes if size > 1] == [n for axis in inner if (n := axis_size(resolve(axis))) > 1]:
            kept = iter([axis for axis in inner if axis_size(resolve(axis)) > 1])
            result += [next(kept) if size > 1 else new_axis(1) for size in sizes]
        else:
            result += _factor(multiply(inner), sizes)
    return result


def _groups(before: list[int], after: list[int]) -> Iterator[tuple[int, int]]:
    """Runs `(axes before, axes after)` with equal products."""
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        left = right = 1
        if i < len(before):
            left, i = left * before[i], i + 1
        if j < len(after):
            right, j = right * after[j], j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        if j == len(after):
            i = len(before)  # trailing axes of size 1
        elif i == len(before):
            j = len(after)
        yield i - first, j - second


def _factor(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Split the digits of one axis among several axes."""
    if sum(size > 1 for size in sizes) <= 1:
        return [axis if size > 1 else new_axis(1) for size in sizes]
    if len(axis) > 1:
        pieces = _factor_sum(axis, sizes)
        if pieces is not None:
            return pieces
        freeze(axis, "a concatenation that was reshaped")
        return [new_axis(size, "a concatenation that was reshaped") for size in sizes]
    digits = [new_axis(size) for size in sizes]
    unify((tuple(atom for digit in digits for atom in digit[0]),), axis)
    return [resolve(digit) for digit in digits]


def _factor_sum(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """`A x C + B x C` becomes `A + B` and `C`; `None` if the products do not end alike."""
    rest = prod(sizes[1:])
    if any(product_size(product) % rest for product in axis):
        return None
    tail = [new_axis(size) for size in sizes[1:]]
    ends = tuple(atom for digit in tail for atom in digit[0])
    heads = tuple(new_axis(product_size(product) // rest)[0] for product in axis)
    unify(tuple((*head, *ends) for head in heads), axis)
    return [resolve(heads), *(resolve(digit) for digit in tail)]
