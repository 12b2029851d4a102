"""Solving equations between axes, against entries that are written out."""

import itertools

import pytest

from hf_sane.symmetry.tracing._axes import (
    Atom,
    atoms,
    axis_size,
    concatenate,
    equal_axis,
    freeze,
    is_equal,
    multiply,
    new_axis,
    refine,
    reshape,
    resolve,
    split,
    unify,
)


def free(axis):
    return [atom for atom in atoms(axis) if atom.reason is None]


def shape(axis):
    """Sizes of the atoms, per product."""
    return [[atom.size for atom in product] for product in resolve(axis)]


def test_unified_axes_are_one():
    left, right, third = (new_axis(6) for _ in range(3))
    unify(left, right)
    unify(third, right)
    assert resolve(left) == resolve(right) == resolve(third)
    assert len(free(left)) == 1


def test_freezing_reaches_everything_that_was_unified_and_keeps_the_first_reason():
    left, right = new_axis(6), new_axis(6)
    unify(left, right)
    freeze(left, "first")
    freeze(right, "second")
    later = new_axis(6)
    unify(later, left)
    assert [atom.reason for axis in (left, right, later) for atom in atoms(axis)] == ["first"] * 3


@pytest.mark.parametrize("cuts", [(1, 5), (2, 4), (2, 2, 2), (3, 0, 3)])
def test_split_and_concatenate_are_inverse(cuts):
    whole = new_axis(6)
    pieces = split(whole, cuts)
    assert [axis_size(piece) for piece in pieces] == list(cuts)
    assert concatenate(pieces) == resolve(whole)


def test_cutting_twice_gives_the_common_refinement():
    whole = new_axis(12)
    split(whole, [4, 8])
    split(whole, [6, 6])
    assert shape(whole) == [[4], [2], [6]]


def test_blocks_can_be_cut_between_but_not_through():
    blocks = multiply([new_axis(4), new_axis(3)])
    first, second = split(blocks, [3, 9])
    assert (shape(first), shape(second)) == ([[3]], [[3, 3]])  # an axis of one entry is no atom
    split(blocks, [4, 8])
    assert all(atom.reason == "split in different places" for atom in atoms(blocks))


@pytest.mark.parametrize("sizes", list(itertools.permutations([2, 3, 4])))
def test_reshaping_there_and_back_gives_the_same_axes(sizes):
    axes = [new_axis(size) for size in sizes]
    (flat,) = reshape(axes, [24])
    assert shape(flat) == [list(sizes)]
    assert [resolve(axis) for axis in reshape([flat], sizes)] == [resolve(axis) for axis in axes]
    assert len(free(flat)) == 3


def test_reshaping_refines_an_axis_into_heads():
    whole = new_axis(12)
    batch, heads, dims = reshape([new_axis(5, "batch"), whole], [5, 3, 4])
    assert shape(whole) == [[3, 4]]
    assert [axis_size(axis) for axis in (batch, heads, dims)] == [5, 3, 4]
    assert resolve(whole) == ((heads[0][0], dims[0][0]),)


def test_axes_of_size_one_come_and_go():
    axis = new_axis(6)
    found = reshape([new_axis(1), axis, new_axis(1)], [1, 1, 6, 1])
    assert [axis_size(a) for a in found] == [1, 1, 6, 1]
    assert resolve(found[2]) == resolve(axis)
    assert [axis_size(a) for a in reshape([], [1, 1])] == [1, 1]
    assert reshape([new_axis(1)], []) == []


def test_a_flattened_concatenation_is_a_sum_of_products():
    a, b, places = new_axis(2), new_axis(3), new_axis(4, "places")
    (flat,) = reshape([concatenate([a, b]), places], [20])
    assert shape(flat) == [[2, 4], [3, 4]]
    back = reshape([flat], [5, 4])
    assert [resolve(axis) for axis in back] == [concatenate([a, b]), resolve(places)]
    weight = new_axis(20)
    unify(weight, flat)
    assert resolve(weight) == resolve(flat)
    assert len(free(weight)) == 2


def test_a_concatenation_inside_blocks_is_fixed():
    a, b = new_axis(2), new_axis(3)
    flat = multiply([new_axis(4), concatenate([a, b])])
    assert shape(flat) == [[4, 5]]
    assert [atom.reason for atom in atoms(a)] == ["concatenated inside the blocks of a reshaped axis"]
    assert len(free(flat)) == 1  # the blocks


def test_a_concatenation_that_ends_differently_is_fixed_when_reshaped():
    flat = concatenate([new_axis(3), new_axis(5)])
    rows, columns = reshape([flat], [2, 4])
    assert not free(flat)
    assert [axis_size(axis) for axis in (rows, columns)] == [2, 4]
    assert not free(rows) + free(columns)


@pytest.mark.parametrize(("left", "right"), [([2, 3], [3, 2]), ([4, 3], [3, 4])])
def test_shapes_that_do_not_fit_together_are_fixed(left, right):
    one, other = (multiply([new_axis(size) for size in sizes]) for sizes in (left, right))
    unify(one, other)
    assert not free(one)
    assert not free(other)
    assert {atom.reason for atom in atoms(one)} == {"reshaped in incompatible ways"}


def test_axes_of_different_sizes_are_fixed():
    left, right = new_axis(2), new_axis(3)
    unify(left, right)
    assert not free(left) + free(right)


def test_finer_products_win():
    coarse, fine = multiply([new_axis(2), new_axis(6)]), multiply([new_axis(4), new_axis(3)])
    unify(coarse, fine)
    assert shape(coarse) == [[2, 2, 3]]
    assert resolve(coarse) == resolve(fine)
    assert len(free(coarse)) == 3


def test_equal_entries_are_known_until_something_is_known_about_them():
    axis = equal_axis(4)
    assert is_equal(axis)
    assert is_equal(new_axis(1))
    assert not is_equal(new_axis(4))
    unify(axis, new_axis(4))
    freeze(other := equal_axis(3), "reason")
    assert not is_equal(other)


def test_long_chains_stay_short():
    start = axis = new_axis(5)
    for _ in range(3000):
        following = new_axis(5)
        unify(following, axis)
        axis = following
    assert resolve(start) == resolve(axis)
    atom = Atom(6)
    refine(atom, new_axis(6))
    assert len(resolve(((atom,),))[0]) == 1
