import itertools

import pytest
import torch

from hf_sane.symmetry._parts import Part, generators, keeps_parts_together
from hf_sane.symmetry._permutation import AxisSlice, PermutationSpec

HEADS = Part("heads", 3)
SHARED = Part("shared", 2, ("heads",))  # query heads that share a key
WITHIN = Part("within", 2, ("heads",))
PARTS = {"q": (HEADS, SHARED, WITHIN), "k": (HEADS, WITHIN)}
SIZES = {"stream": 4, "q": 12, "k": 6, "heads_only": 3}
ALL_PARTS = {**PARTS, "heads_only": (HEADS,)}
AXES = {
    "q.weight": ("q", "stream"),
    "k.weight": ("k", "stream"),
    "bias": ("heads_only",),
    "fused": ((AxisSlice("k", 0, 6), AxisSlice(None, 0, 2), AxisSlice("k", 0, 6)), None),
}
SPEC = PermutationSpec(AXES, SIZES, parts=ALL_PARTS)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in {"q.weight": (12, 4), "k.weight": (6, 4), "bias": (3,), "fused": (14, 2)}.items()
    }


def naive_group():
    """All allowed permutations of `q` and `k`, written out: heads, then the order inside each of them."""
    pairs = list(itertools.permutations(range(2)))
    for heads in itertools.permutations(range(3)):
        for shared in itertools.product(pairs, repeat=3):
            for within in itertools.product(pairs, repeat=3):
                q = [
                    (heads[h] * 2 + shared[h][s]) * 2 + within[h][w]
                    for h, s, w in itertools.product(range(3), range(2), range(2))
                ]
                k = [heads[h] * 2 + within[h][w] for h, w in itertools.product(range(3), range(2))]
                yield tuple(q), tuple(k), heads


def test_there_is_one_generator_for_the_heads_and_one_inside_each():
    found = generators(SIZES, ALL_PARTS)
    inside = [f"{part}[{head}]" for part in ("shared", "within") for head in range(3)]
    assert sorted(found) == sorted(["stream", "heads", *inside])
    assert list(found).index("heads") < list(found).index("shared[0]")  # whole blocks first
    assert {axis: entries.tolist() for axis, entries in found["heads"].entries.items()} == {
        "q": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        "k": [[0, 1], [2, 3], [4, 5]],
        "heads_only": [[0], [1], [2]],
    }
    assert {axis: e.tolist() for axis, e in found["within[1]"].entries.items()} == {
        "q": [[4, 6], [5, 7]],
        "k": [[2], [3]],
    }
    assert found["shared[2]"].entries["q"].tolist() == [[8, 9], [10, 11]]


def test_random_draws_exactly_the_group():
    permutations = SPEC.random(20_000, generator=torch.Generator().manual_seed(0))
    drawn = {
        (tuple(q), tuple(k), tuple(h))
        for q, k, h in zip(*(permutations[axis].tolist() for axis in ("q", "k", "heads_only")), strict=True)
    }
    assert drawn == set(naive_group())
    assert len(drawn) == 6 * 8 * 8


def test_membership_is_decided_as_by_writing_all_out():
    group = set(naive_group())
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(300):
        q, k, heads = (list(part) for part in list(group)[int(torch.randint(len(group), (), generator=generator))])
        which = int(torch.randint(4, (), generator=generator))
        broken = (q, k, heads, None)[which]
        if broken is not None:
            i, j = torch.randint(len(broken), (2,), generator=generator).tolist()
            broken[i], broken[j] = broken[j], broken[i]
        made = {name: free for name, free in SPEC.generators.items() if name not in SIZES}
        together = keeps_parts_together(
            made, {"q": torch.tensor(q), "k": torch.tensor(k), "heads_only": torch.tensor(heads)}
        )
        assert together == ((tuple(q), tuple(k), tuple(heads)) in group)
        inside += together
    assert 0 < inside < 300


@pytest.mark.parametrize("num_models", [None, 3])
def test_inverse_and_compose_stay_in_the_group(num_models):
    generator = torch.Generator().manual_seed(0)
    first, second = (SPEC.random(num_models, generator=generator) for _ in range(2))
    state = tensors()
    once = SPEC.apply(state, first)
    stacked = 0 if num_models is None else 1
    assert any(not torch.equal(once[name], state[name].expand_as(once[name])) for name in state)
    back = SPEC.apply(once, SPEC.inverse(first), batch_dims=stacked)
    twice, composed = SPEC.apply(once, second, batch_dims=stacked), SPEC.apply(state, SPEC.compose(first, second))
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor.expand_as(back[name]))
        assert torch.equal(twice[name], composed[name])


def test_both_copies_of_an_axis_move_and_what_is_between_stays():
    permutation = SPEC.random(generator=torch.Generator().manual_seed(1))
    fused, moved = tensors()["fused"], SPEC.apply(tensors(), permutation)["fused"]
    index = permutation["k"]
    assert not torch.equal(index, torch.arange(6))
    assert torch.equal(moved, torch.cat([fused[:6][index], fused[6:8], fused[8:][index]]))
    (place,) = [place for place in SPEC.occurrences["k"] if place.tensor == "fused"]
    assert place.positions.tolist() == [[i, 8 + i] for i in range(6)]


def test_what_tears_heads_apart_is_refused():
    for axis in ("q", "k"):
        permutation = SPEC.identity()
        permutation[axis] = permutation[axis].flip(0).roll(1)
        with pytest.raises(ValueError, match=r"separates parts of the axes \['heads_only', 'k', 'q'\]"):
            SPEC.apply(tensors(), permutation)
    alone = SPEC.identity() | {"heads_only": torch.tensor([1, 0, 2])}
    with pytest.raises(ValueError, match="expected a permutation from random, match, inverse or compose of this spec"):
        SPEC.inverse(alone)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"q": (HEADS,)}, "axis 'q' .size 12. must be the product of differently named parts"),
        ({"other": (HEADS,)}, "axis 'other' .size None. must be the product"),
        ({"q": (HEADS, Part("heads", 4))}, "must be the product of differently named parts"),
        ({"q": (HEADS, Part("within", 4)), "k": (HEADS, WITHIN)}, "part 'within' must be the same everywhere"),
        (
            {"heads_only": (Part("stream", 3),)},
            "part 'stream' must be the same everywhere, and its name must not be that of an axis",
        ),
        ({"heads_only": (Part("a[0]", 3),)}, r"contain '\['"),
        ({"k": (Part("blocks", 3), WITHIN)}, r"part 'within' lies within \['heads'\], which axis 'k' does not have"),
    ],
)
def test_contradicting_parts_raise(parts, message):
    with pytest.raises(ValueError, match=message):
        PermutationSpec(AXES, SIZES, parts=parts)


def test_what_is_fixed_is_explained():
    spec = PermutationSpec(
        {"w": (None, "a"), "b": (None,)}, {"a": 2}, fixed={"w": {0: "outputs"}, "b": {0: "outputs"}}
    )
    assert spec.explain_fixed() == "outputs: w[0], b[0]"
