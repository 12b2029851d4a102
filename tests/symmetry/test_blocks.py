import itertools

import pytest
import torch

from hf_sane.symmetry._blocks import Blocks
from hf_sane.symmetry._matching import match_many, weight_similarity
from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import AxisSlice, PermutationSpec

HEADS, INNER, OTHER = Part("heads", 3), Part("inner", 2, ("heads",)), Part("other", 2, ("heads",))
# Queries and keys share the order inside a head, values have another one, and every head has one scale of its own.
AXES = {
    "query": ("qk", None),
    "key": ("qk", None),
    "value": ("v", None),
    "joined": (None, (AxisSlice("qk", 0, 6), AxisSlice("v", 0, 6))),
    "scale": ("each",),
}
SIZES = {"qk": 6, "v": 6, "each": 3}
PARTS = {"qk": (HEADS, INNER), "v": (HEADS, OTHER), "each": (HEADS,)}
SPEC = PermutationSpec(AXES, SIZES, parts=PARTS)
SHAPES = {"query": (6, 4), "key": (6, 4), "value": (6, 4), "joined": (3, 12), "scale": (3,)}


def draw(seed, *lead):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*lead, *shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }


def every_permutation():
    """All allowed permutations, written out from the definition of heads."""
    orders = [torch.tensor(order) for order in itertools.product([0, 1], repeat=3)]
    for heads in itertools.permutations(range(3)):
        for inner, other in itertools.product(orders, repeat=2):
            made = [
                torch.tensor([2 * head + (entry ^ int(flips[head])) for head in heads for entry in range(2)])
                for flips in (inner, other)
            ]
            yield {"qk": made[0], "v": made[1], "each": torch.tensor(heads)}


def test_heads_and_their_inside_are_solved_together_to_the_best_there_is():
    """All that moves is the heads, so one step must find the best of all 6 * 8 * 8 permutations."""
    reference, stack = draw(0), draw(1, 7)
    found = match_many(SPEC, reference, stack)
    aligned = weight_similarity(SPEC, reference, SPEC.apply(stack, found, batch_dims=1), batch_dims=1)
    every = list(every_permutation())
    assert len(every) == 384
    permutations = {axis: torch.stack([permutation[axis] for permutation in every]) for axis in SIZES}
    for i in range(7):
        state = {name: tensor[i] for name, tensor in stack.items()}
        each = weight_similarity(SPEC, reference, SPEC.apply(state, permutations), batch_dims=1)
        torch.testing.assert_close(aligned[i], each.max())


def test_blocks_are_found_with_what_lies_inside():
    blocks = Blocks.find(SPEC, "heads", SPEC.generator_occurrences)
    assert blocks is not None
    assert blocks.inside == [[f"{name}[{head}]" for head in range(3)] for name in ("inner", "other")]
    assert [(place.tensor, place.dim) for place in blocks.plain] == [("scale", 0)]
    assert Blocks.find(SPEC, "inner[0]", SPEC.generator_occurrences) is None


@pytest.mark.parametrize(
    ("axes", "sizes", "parts"),
    [
        # Groups of heads of two dimensions each: the order of heads and that of the dimensions depend on each other.
        (
            {"weight": ("a", None)},
            {"a": 12},
            {"a": (HEADS, INNER, Part("dims", 2, ("heads",)))},
        ),
        # The same heads in rows and columns: a quadratic problem.
        ({"weight": ("qk", "v")}, {"qk": 6, "v": 6}, {"qk": (HEADS, INNER), "v": (HEADS, OTHER)}),
        # One dimension, half of which cannot be reordered inside.
        (
            {"weight": (None, (AxisSlice("qk", 0, 6), AxisSlice("each", 0, 3)))},
            {"qk": 6, "each": 3},
            {"qk": (HEADS, INNER), "each": (HEADS,)},
        ),
        # Nothing moves inside.
        ({"weight": ("qk", None)}, {"qk": 6}, {"qk": (HEADS, Part("inner", 2, moves=False))}),
    ],
)
def test_what_cannot_be_solved_together_is_left_to_single_steps(axes, sizes, parts):
    """They never make it worse, and bring a permuted copy back most of the way."""
    spec = PermutationSpec(axes, sizes, parts=parts)
    assert Blocks.find(spec, "heads", spec.generator_occurrences) is None
    generator = torch.Generator().manual_seed(0)
    shape = [4 if d is None else sizes[d] if isinstance(d, str) else sum(s.size for s in d) for d in axes["weight"]]
    reference = {"weight": torch.randn(shape, generator=generator, dtype=torch.float64)}
    stack = {"weight": torch.randn(9, *shape, generator=generator, dtype=torch.float64)}
    before = weight_similarity(spec, reference, stack, batch_dims=1)
    aligned = spec.apply(stack, match_many(spec, reference, stack), batch_dims=1)
    after = weight_similarity(spec, reference, aligned, batch_dims=1)
    assert (after >= before).all()
    assert (after > before).any()
