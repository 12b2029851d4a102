import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_sane.symmetry import _matching as matching
from hf_sane.symmetry._matching import match_many, match_weights, weight_similarity
from hf_sane.symmetry._parts import Part
from hf_sane.symmetry._permutation import AxisSlice, PermutationSpec

SIZES = {"a": 6, "b": 5, "c": 4}
SPEC = PermutationSpec(
    {
        "conv.weight": ("a", None, None),
        "conv.bias": ("a",),
        "conv.running_var": ("a",),
        "flat.weight": ("b", (AxisSlice("a", 0, 6, block=3),)),
        "flat.bias": ("b",),
        "mixed.weight": ((AxisSlice("c", 0, 1), AxisSlice("b", 0, 5), AxisSlice("c", 1, 4)), None),
        "head.weight": (None, "c"),
        "step": (),
    },
    SIZES,
    unmatched=frozenset({"conv.running_var", "step"}),
)
SHAPES = {
    "conv.weight": (6, 2, 3),
    "conv.bias": (6,),
    "conv.running_var": (6,),
    "flat.weight": (5, 18),
    "flat.bias": (5,),
    "mixed.weight": (9, 4),
    "head.weight": (3, 4),
    "step": (),
}


def draw(seed, num_models=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    lead = () if num_models is None else (num_models,)
    return {name: torch.randn((*lead, *shape), generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def model(stack, i):
    return {name: tensor[i] for name, tensor in stack.items()}


def assert_same(left, right):
    assert left.keys() == right.keys() == SIZES.keys()
    for axis in left:
        assert torch.equal(left[axis], right[axis]), axis


def assert_tensors_are(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def naive_matching(reference, state, order=("a", "b", "c")):
    """Algorithm 1 of git re-basin for `SPEC`, with the current permutation applied entry by entry each time."""
    permutation = {axis: np.arange(n) for axis, n in SIZES.items()}
    names = [name for name in SHAPES if name not in SPEC.unmatched]

    def permuted(without):
        torch_permutation = {axis: torch.from_numpy(index) for axis, index in permutation.items()}
        return SPEC.apply(state, torch_permutation | {without: torch.arange(SIZES[without])})

    improved = True
    while improved:
        improved = False
        for axis in order:
            moved, costs = permuted(axis), np.zeros((SIZES[axis], SIZES[axis]))
            for place in SPEC.occurrences[axis]:
                if place.tensor not in names:
                    continue
                for i, j in itertools.product(range(SIZES[axis]), repeat=2):
                    left = reference[place.tensor].double().movedim(place.dim, 0)[place.positions[i]]
                    right = moved[place.tensor].double().movedim(place.dim, 0)[place.positions[j]]
                    costs[i, j] += float((left * right).sum())
            best = linear_sum_assignment(costs, maximize=True)[1]
            gain = costs[np.arange(len(best)), best].sum() - costs[np.arange(len(best)), permutation[axis]].sum()
            if gain > 1e-9:
                permutation[axis], improved = best, True
    return {axis: torch.from_numpy(index) for axis, index in permutation.items()}


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_the_naive_algorithm(seed):
    reference, state = draw(seed), draw(seed + 100)
    assert_same(match_weights(SPEC, reference, state), naive_matching(reference, state))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_planted_permutation_is_recovered(seed, noise):
    reference = draw(seed)
    planted = SPEC.random(generator=torch.Generator().manual_seed(seed))
    state = SPEC.apply(reference, planted)
    state = {name: tensor + noise * draw(seed + 1)[name] for name, tensor in state.items()}
    found = match_weights(SPEC, reference, state)
    assert_same(found, SPEC.inverse(planted))
    assert any(not torch.equal(index, torch.arange(len(index))) for index in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_stack_equals_a_loop_and_inputs_stay(dtype):
    reference = draw(0, dtype=torch.float64)
    stack = {name: tensor.to(dtype) for name, tensor in draw(1, 23, torch.float64).items()}
    kept = {name: tensor.clone() for name, tensor in stack.items()}
    found = match_many(SPEC, reference, stack)
    for i in range(23):
        assert_same({axis: index[i] for axis, index in found.items()}, match_weights(SPEC, reference, model(stack, i)))
    assert all(torch.equal(stack[name], kept[name]) for name in kept)


def test_chunks_change_nothing(monkeypatch):
    reference, stack = draw(0), draw(1, 11)
    whole = match_many(SPEC, reference, stack)
    monkeypatch.setattr(matching, "CHUNK_BYTES", 3 * 8 * sum(torch.Size(shape).numel() for shape in SHAPES.values()))
    assert_same(match_many(SPEC, reference, stack), whole)


@pytest.mark.parametrize("random_order", [False, True])
def test_the_objective_never_decreases(random_order):
    reference, stack = draw(0), draw(1, 40)
    previous = weight_similarity(SPEC, reference, stack, batch_dims=1)
    start, gains = previous, []
    for iterations in range(1, 8):
        generator = torch.Generator().manual_seed(5) if random_order else None
        found = match_many(SPEC, reference, stack, max_iterations=iterations, generator=generator)
        value = weight_similarity(SPEC, reference, SPEC.apply(stack, found, batch_dims=1), batch_dims=1)
        assert (value >= previous - 1e-9).all()
        gains.append((value - previous).max().item())
        previous = value
    assert (previous > start).all()
    assert gains[0] > 0
    assert gains[-1] == pytest.approx(0.0, abs=1e-9)


def test_closer_in_similarity_is_closer_in_distance():
    reference, state = draw(0), draw(1)
    aligned = SPEC.apply(state, match_weights(SPEC, reference, state))
    names = [name for name in SHAPES if name not in SPEC.unmatched]
    before, after = (sum((reference[n] - s[n]).double().square().sum() for n in names) for s in (state, aligned))
    gain = weight_similarity(SPEC, reference, aligned) - weight_similarity(SPEC, reference, state)
    assert (before - after).item() == pytest.approx(2 * gain.item(), rel=1e-5)


def test_one_axis_is_matched_as_well_as_by_trying_all():
    spec = PermutationSpec({"w": ("a", None), "v": (None, "a")}, {"a": 5})
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        pair = [
            {"w": torch.randn(5, 3, generator=generator), "v": torch.randn(2, 5, generator=generator)} for _ in "AB"
        ]
        best = max(
            weight_similarity(spec, pair[0], spec.apply(pair[1], {"a": torch.tensor(index)})).item()
            for index in itertools.permutations(range(5))
        )
        found = spec.apply(pair[1], match_weights(spec, *pair))
        assert weight_similarity(spec, pair[0], found).item() == pytest.approx(best)


def test_running_statistics_move_along_but_do_not_count():
    reference = draw(0)
    state = SPEC.apply(reference, SPEC.random(generator=torch.Generator().manual_seed(0)))
    loud = state | {"conv.running_var": 1e6 * torch.rand(6), "step": torch.tensor(float("nan"))}
    assert_same(match_weights(SPEC, reference, loud), match_weights(SPEC, reference, state))
    without = {name: tensor for name, tensor in state.items() if name not in SPEC.unmatched}
    assert_same(match_weights(SPEC, reference, without), match_weights(SPEC, reference, state))
    counted = PermutationSpec(SPEC.axes, SPEC.sizes, frozenset({"step"}))
    found = match_weights(counted, reference, loud)
    assert not torch.equal(found["a"], match_weights(SPEC, reference, state)["a"])


def test_ties_are_left_alone():
    same = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    assert_same(match_weights(SPEC, same, same), SPEC.identity())


def test_no_networks_give_no_permutations():
    found = match_many(SPEC, draw(0), draw(1, 0))
    assert {axis: tuple(index.shape) for axis, index in found.items()} == {"a": (0, 6), "b": (0, 5), "c": (0, 4)}


def test_networks_without_symmetries_stay():
    spec = PermutationSpec({"weight": (None, None)}, {})
    assert match_many(spec, {"weight": torch.ones(2, 3)}, {"weight": torch.ones(4, 2, 3)}) == {}
    unmatched = PermutationSpec({"weight": ("a", None)}, {"a": 2}, unmatched=frozenset({"weight"}))
    found = match_many(unmatched, {"weight": torch.randn(2, 3)}, {"weight": torch.randn(4, 2, 3)})
    assert torch.equal(found["a"], torch.arange(2).expand(4, 2))


def test_random_order_is_repeatable():
    reference, stack = draw(0), draw(1, 10)
    runs = [match_many(SPEC, reference, stack, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    assert_same(*runs)


def test_bad_input_raises():
    reference, stack = draw(0), draw(1, 4)
    with pytest.raises(ValueError, match="max_iterations must be at least 1, got 0"):
        match_many(SPEC, reference, stack, max_iterations=0)
    with pytest.raises(KeyError, match=r"tensors \['conv.bias'\] of the permutation spec are missing"):
        match_many(SPEC, reference, {name: t for name, t in stack.items() if name != "conv.bias"})
    with pytest.raises(KeyError, match=r"tensors \['other'\] are not part of the permutation spec"):
        match_many(SPEC, reference, stack | {"other": torch.zeros(4, 1)})
    with pytest.raises(ValueError, match=r"'head.weight' is \[3, 4\] in the reference and \[2, 4\] in the networks"):
        match_many(SPEC, reference, stack | {"head.weight": torch.zeros(4, 2, 4)})
    broken = {name: tensor.clone() for name, tensor in stack.items()}
    broken["flat.bias"][2, 0] = float("inf")
    with pytest.raises(ValueError, match=r"weights of 'flat.bias' are not finite in networks \[2\]; leave them out"):
        match_many(SPEC, reference, broken)
    with pytest.raises(ValueError, match=r"the reference has weights that are not finite in \['flat.bias'\]"):
        match_many(SPEC, model(broken, 2), stack)


def test_broken_networks_are_named_by_their_place_in_the_whole_stack(monkeypatch):
    monkeypatch.setattr(matching, "CHUNK_BYTES", 1)
    stack = draw(1, 4)
    stack["flat.bias"][3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite in networks \[3\]"):
        match_many(SPEC, draw(0), stack)


@pytest.mark.parametrize("seed", range(4))
def test_a_square_matrix_on_one_axis_is_matched_without_ever_losing(seed):
    """Its assignment problem is quadratic: a residual block `x + W x` holds the stream in both dimensions."""
    generator = torch.Generator().manual_seed(seed)
    spec = PermutationSpec({"in": ("a", None), "square": ("a", "a"), "out": (None, "a")}, {"a": 6})
    shapes = {"in": (6, 4), "square": (6, 6), "out": (3, 6)}
    reference = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moved = spec.apply(reference, spec.random(generator=generator))
    assert_tensors_are(spec.apply(moved, match_weights(spec, reference, moved)), reference)
    for part in ({"square": reference["square"]}, reference):  # alone the square matrix gives no first hint
        few = PermutationSpec({name: spec.axes[name] for name in part}, spec.sizes)
        others = {name: torch.randn(7, *tensor.shape, generator=generator) for name, tensor in part.items()}
        aligned = few.apply(others, match_many(few, part, others), batch_dims=1)
        after = weight_similarity(few, part, aligned, batch_dims=1)
        assert (after >= weight_similarity(few, part, others, batch_dims=1) - 1e-6).all()
        assert (after > weight_similarity(few, part, others, batch_dims=1) + 1e-6).any()


@pytest.mark.parametrize("seed", range(4))
def test_heads_and_their_dimensions_are_matched(seed):
    """Each head has an order of its own inside, and queries and values share the order of the heads only."""
    generator = torch.Generator().manual_seed(seed)
    heads = Part("heads", 3)
    parts = {
        "qk": (heads, Part("qk/1", 4, ("heads",))),
        "v": (heads, Part("v/1", 2, ("heads",))),
    }
    axes = {"q": ("qk", "s"), "k": ("qk", "s"), "v": ("v", "s"), "o": ("s", "v")}
    spec = PermutationSpec(axes, {"qk": 12, "v": 6, "s": 5}, parts=parts)
    shapes = {"q": (12, 5), "k": (12, 5), "v": (6, 5), "o": (5, 6)}
    reference = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    others = {name: torch.randn(6, *shape, generator=generator) for name, shape in shapes.items()}
    found = match_many(spec, reference, others)
    aligned = spec.apply(others, found, batch_dims=1)  # refuses what tears heads apart
    before, after = (weight_similarity(spec, reference, t, batch_dims=1) for t in (others, aligned))
    assert (after > before).all()
    # A fixed point: matching the aligned networks again moves nothing.
    again = match_many(spec, reference, aligned)
    assert all(torch.equal(again[axis], index) for axis, index in spec.identity(6).items())
    # From inside a head it finds its way back exactly.
    inner = spec.identity()
    order = torch.tensor([2, 0, 3, 1])
    inner["qk"] = torch.cat([order, 4 + order.flip(0), torch.arange(8, 12)])
    moved = spec.apply(reference, inner)
    assert_tensors_are(spec.apply(moved, match_weights(spec, reference, moved)), reference)
