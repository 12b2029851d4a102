import pytest
import torch

from hf_sane.symmetry._permutation import AxisSlice, PermutationSpec, gather_stacked


def composite_spec():
    """A stream of 3 in the middle of 7 (the other 4 on both sides), pixel blocks of 2, a fixed axis, a counter."""
    stream = (AxisSlice("new", 0, 1), AxisSlice("old", 0, 3), AxisSlice("new", 1, 4))
    return PermutationSpec(
        axes={
            "first.weight": ("old", None, None),
            "first.bias": ("old",),
            "second.weight": (stream, "old"),
            "third.weight": (None, stream),
            "flat.weight": ("out", (AxisSlice("old", 0, 3, block=2),)),
            "counter": (),
        },
        sizes={"old": 3, "new": 4, "out": 5},
    )


SHAPES = {
    "first.weight": (3, 2, 2),
    "first.bias": (3,),
    "second.weight": (7, 3),
    "third.weight": (2, 7),
    "flat.weight": (5, 6),
    "counter": (),
}


def tensors(dtype=torch.float32, num_models=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lead = () if num_models is None else (num_models,)
    drawn = {n: torch.randint(-99, 99, (*lead, *shape), generator=generator) for n, shape in SHAPES.items()}
    return {name: tensor.to(dtype) for name, tensor in drawn.items()}


def naive_apply(tensors, permutation):
    """Entry by entry, written out for `composite_spec`."""
    old, new, out = (permutation[axis].tolist() for axis in ("old", "new", "out"))
    where_new = [0, 4, 5, 6]
    stream = [where_new[new[0]], *(1 + i for i in old), *(where_new[i] for i in new[1:])]
    blocks = [2 * i + k for i in old for k in range(2)]
    result = {name: tensor.clone() for name, tensor in tensors.items()}
    for i in range(3):
        result["first.weight"][i] = tensors["first.weight"][old[i]]
        result["first.bias"][i] = tensors["first.bias"][old[i]]
    for i in range(7):
        for j in range(3):
            result["second.weight"][i, j] = tensors["second.weight"][stream[i], old[j]]
        result["third.weight"][:, i] = tensors["third.weight"][:, stream[i]]
    for i in range(5):
        for j in range(6):
            result["flat.weight"][i, j] = tensors["flat.weight"][out[i], blocks[j]]
    return result


def assert_equal(left, right):
    assert list(left) == list(right)
    assert left
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("seed", range(5))
def test_apply_equals_the_naive_loop(dtype, seed):
    spec = composite_spec()
    permutation = spec.random(generator=torch.Generator().manual_seed(seed))
    assert_equal(spec.apply(tensors(dtype), permutation), naive_apply(tensors(dtype), permutation))


@pytest.mark.parametrize("seed", range(5))
def test_inverse_undoes_and_compose_chains(seed):
    spec, generator = composite_spec(), torch.Generator().manual_seed(seed)
    first, second = spec.random(generator=generator), spec.random(generator=generator)
    state = tensors()
    once = spec.apply(state, first)
    assert any(not torch.equal(once[name], state[name]) for name in state)
    assert_equal(spec.apply(once, spec.inverse(first)), state)
    assert_equal(spec.apply(once, second), spec.apply(state, spec.compose(first, second)))
    assert_equal(spec.apply(state, spec.identity()), state)
    assert all(
        torch.equal(index, torch.arange(len(index))) for index in spec.compose(first, spec.inverse(first)).values()
    )


@pytest.mark.parametrize("num_models", [1, 2, 6])
def test_stacks_equal_loops(num_models):
    spec, state, stack = composite_spec(), tensors(), tensors(num_models=num_models)
    permutations = spec.random(num_models, generator=torch.Generator().manual_seed(0))
    single = [{axis: index[i] for axis, index in permutations.items()} for i in range(num_models)]
    models = [{name: tensor[i] for name, tensor in stack.items()} for i in range(num_models)]
    own = spec.apply(stack, permutations, batch_dims=1)
    shared = spec.apply(stack, single[0], batch_dims=1)
    several = spec.apply(state, permutations)
    chained = spec.apply(own, spec.inverse(permutations), batch_dims=1)
    assert_equal(chained, stack)
    for i in range(num_models):
        assert_equal({n: t[i] for n, t in own.items()}, spec.apply(models[i], single[i]))
        assert_equal({n: t[i] for n, t in shared.items()}, spec.apply(models[i], single[0]))
        assert_equal({n: t[i] for n, t in several.items()}, spec.apply(state, single[i]))


def test_inputs_stay_and_order_is_that_of_the_input():
    spec, state = composite_spec(), tensors()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    subset = {name: state[name] for name in ("flat.weight", "first.bias")}
    assert list(spec.apply(subset, spec.random())) == ["flat.weight", "first.bias"]
    spec.apply(state, spec.random(4))
    assert_equal(state, kept)


def test_random_permutations_are_uniform_and_repeatable():
    spec = PermutationSpec({"w": ("a",)}, {"a": 3})
    drawn = spec.random(6000, generator=torch.Generator().manual_seed(0))["a"]
    codes, counts = (drawn * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)
    assert len(codes) == 6
    assert counts.min() > 900
    assert torch.equal(drawn, spec.random(6000, generator=torch.Generator().manual_seed(0))["a"])
    assert not torch.equal(drawn, spec.random(6000, generator=torch.Generator().manual_seed(1))["a"])


def test_noncontiguous_tensors_and_gradients():
    spec = PermutationSpec({"w": ("a", "b")}, {"a": 3, "b": 4})
    weight = torch.randn(4, 3).T.requires_grad_()
    permutation = spec.random(generator=torch.Generator().manual_seed(1))
    moved = spec.apply({"w": weight}, permutation)["w"]
    assert torch.equal(moved, weight[permutation["a"]][:, permutation["b"]])
    (gradient,) = torch.autograd.grad((moved * torch.arange(12.0).view(3, 4)).sum(), weight)
    back = spec.apply({"w": torch.arange(12.0).view(3, 4)}, spec.inverse(permutation))["w"]
    assert torch.equal(gradient, back)


def test_gather_stacked_reorders_each_model_by_its_own_index():
    tensor = torch.arange(24).view(2, 3, 4)
    index = torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]])
    assert torch.equal(gather_stacked(tensor, {1: index}), torch.stack([tensor[0].flip(1), tensor[1]]))


def test_occurrences_list_every_place():
    places = composite_spec().occurrences["old"]
    assert [(place.tensor, place.dim) for place in places] == [
        ("first.weight", 0),
        ("first.bias", 0),
        ("second.weight", 0),
        ("second.weight", 1),
        ("third.weight", 1),
        ("flat.weight", 1),
    ]
    assert places[2].positions.tolist() == [[1], [2], [3]]
    assert places[5].positions.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("axes", "sizes", "message"),
    [
        ({"w": ("a",)}, {}, r"'w' uses axis 'a', which has no size; known: \[\]"),
        ({"w": ((AxisSlice("a", 0, 2),),)}, {"a": 3}, "must hold every entry of axis 'a' .size 3. at the same number"),
        ({"w": ((AxisSlice("a", 0, 2), AxisSlice("a", 1, 3)),)}, {"a": 3}, "must hold every entry of axis 'a'"),
        (
            {"w": ((AxisSlice("a", 0, 1, block=2), AxisSlice("a", 1, 3)),)},
            {"a": 3},
            "at the same number of positions",
        ),
        ({"w": ("a",)}, {"a": 3, "b": 2}, r"axes \['b'\] have a size but occur in no tensor"),
    ],
)
def test_specs_that_contradict_themselves_raise(axes, sizes, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec(axes, sizes)


@pytest.mark.parametrize("arguments", [("a", 2, 2), ("a", -1, 2), ("a", 0, 2, 0)])
def test_empty_slices_raise(arguments):
    with pytest.raises(ValueError, match="expected 0 <= start < stop and block >= 1"):
        AxisSlice(*arguments)


def test_wrong_permutations_raise():
    spec = composite_spec()
    good = spec.identity()
    with pytest.raises(KeyError, match=r"expected a permutation of axes .* missing or unknown: \['out'\]"):
        spec.apply(tensors(), {axis: good[axis] for axis in ("old", "new")})
    with pytest.raises(ValueError, match=r"permutation of axis 'old' must be \[3\] or \[models, 3\], got \[2\]"):
        spec.inverse(good | {"old": torch.arange(2)})
    with pytest.raises(ValueError, match=r"must be \[3\] or \[models, 3\], got \[1, 1, 3\]"):
        spec.inverse(good | {"old": torch.arange(3).view(1, 1, 3)})
    with pytest.raises(ValueError, match=r"index of axis 'old' is not a permutation of 0\.\.2"):
        spec.compose(good, good | {"old": torch.tensor([0, 0, 2])})


def test_wrong_tensors_raise():
    spec, state = composite_spec(), tensors()
    with pytest.raises(KeyError, match=r"tensors \['fc.weight'\] are not part of the permutation spec"):
        spec.apply(state | {"fc.weight": torch.zeros(2)}, spec.identity())
    with pytest.raises(ValueError, match=r"'first\.bias' must have 1 dimensions, got shape"):
        spec.apply(state | {"first.bias": torch.zeros(3, 1)}, spec.identity())
    with pytest.raises(ValueError, match=r"dimension 1 of 'flat\.weight' must have 6 entries, got shape"):
        spec.apply(state | {"flat.weight": torch.zeros(5, 3)}, spec.identity())
    with pytest.raises(ValueError, match="batch_dims must be 0 or 1, got 2"):
        spec.apply(state, spec.identity(), batch_dims=2)
    with pytest.raises(ValueError, match="expected the same number of models throughout"):
        spec.apply(tensors(num_models=3), spec.random(2), batch_dims=1)
    with pytest.raises(ValueError, match="expected the same number of models throughout"):
        spec.apply(state, spec.identity() | {"old": spec.identity(2)["old"]})
