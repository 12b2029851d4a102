import copy

import pytest
import torch
from torch import nn
from traced_networks import NAMES, PRETRAINED, ZOO, network, traced

from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry.tracing import _graph as graph
from hf_sane.symmetry.tracing._functions import Inputs, exportable, run_in_double
from hf_sane.symmetry.tracing._trace import trace_permutations

# Permutations each architecture has, counted by hand: residual streams, hidden layers, heads, and the inside of each
# head.
HAND_COUNT = {
    "mlp": 3,
    "cnn_s": 4,
    "cnn_l": 4,
    "resnet_20": 1 + 9 + 2,  # the stem, the inside of nine blocks, the channels that two shortcuts pad
    "resnet_20_projection": 1 + 9 + 2,  # two projections start streams of their own
    "resnet_32": 1 + 15 + 2,
    "resnet_44": 1 + 21 + 2,
    "resnet_56": 1 + 27 + 2,
    "resnet_18": 1 + 8 + 3,
    "resnet_50": 1 + 2 * 16 + 4,
    "resnet_50_identity": 1 + 2 * 16 + 4,
    "vgg": 2 + 1,
    "dense": 1 + 4 + 2,  # the stem, four layers, two transitions
    "mobile": 1 + 1 + 1 + 6,  # stream, expanded, squeezed; the two maps made of each of six channels
    # Groups, channels that enter them (alike in all, see the docstring), that leave each; groups of the last norm, in
    # each.
    "grouped": 1 + 1 + 3 + 1 + 2,
    "convnext": 2 + 3,  # streams, hidden layers
    "vit": 1 + 2 * (1 + 1 + 4 + 4),  # stream; per layer: hidden, heads, queries and values of each head
    "bert": 1 + 2 * (1 + 1 + 4 + 4) + 1,  # and the pooler
    "gpt2": 1 + 2 * (1 + 1 + 4 + 4),
    "llama": 1
    + 2 * (1 + 1 + 2 + 2),  # per layer: hidden, groups, the two heads of each group, the values of each group
    "mixtral": 1 + 2 * (1 + 1 + 2 + 2),  # the same; hidden units of all experts alike, experts stay
    # One stream, because the embedding is tied to both. Biases tie the heads of all layers of a stack.
    "t5": 1 + (1 + 2 * (1 + 3 + 3)) + (1 + 2 * (1 + 3 + 3 + 1 + 3 + 3)),
}
EVERY = pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("resnet_32", "resnet_44", "resnet_56")]
)


def outputs(model, inputs, dtype):
    model = exportable(copy.deepcopy(model).to(dtype))
    if dtype == torch.float64:
        return run_in_double(model, Inputs.of(inputs))
    with torch.no_grad():
        found = model(**inputs)
    return [found if isinstance(found, torch.Tensor) else found.logits]


def permuted(model, spec, permutation):
    model = copy.deepcopy(model)
    model.load_state_dict(spec.apply(model.state_dict(), permutation))
    return model


def relative_error(model, other, inputs, dtype):
    before, after = outputs(model, inputs, dtype), outputs(other, inputs, dtype)
    return max(((b - a).abs().max() / b.abs().max()).item() for a, b in zip(after, before, strict=True))


def canonical(spec):
    """A spec without names: for every axis, the positions of each entry, entries in any order."""
    return {
        frozenset(
            frozenset((place.tensor, place.dim, tuple(place.positions[i].tolist())) for place in places)
            for i in range(spec.sizes[axis])
        )
        for axis, places in spec.occurrences.items()
    }


@EVERY
def test_random_permutations_leave_the_outputs(name):
    (model, inputs), spec = network(name), traced(name)
    for seed in range(2):
        permutation = spec.random(generator=torch.Generator().manual_seed(seed))
        other = permuted(model, spec, permutation)
        changed = [n for n, t in other.state_dict().items() if not torch.equal(t, model.state_dict()[n])]
        assert len(changed) >= len(spec.sizes)
        assert relative_error(model, other, inputs, torch.float32) < 1e-5
        assert relative_error(model, other, inputs, torch.float64) < 1e-10


@EVERY
def test_any_free_reordering_in_one_place_alone_changes_the_outputs(name):
    """Uncoupled: one occurrence of one generator moves and the others do not."""
    (model, inputs), spec = network(name), traced(name)
    before = outputs(model, inputs, torch.float64)
    places = [place for found in spec.generator_occurrences.values() for place in found]
    generators = [free for name, free in spec.generators.items() for _ in spec.generator_occurrences[name]]
    keys_of_attention = ("k_proj.bias", "key.bias")  # adds the same to all scores of a query: softmax does not see it
    checked = 0
    for place, free in list(zip(places, generators, strict=True))[:: max(1, len(places) // 12)]:
        if free.size == 1 or place.tensor.endswith(keys_of_attention):
            continue
        other = exportable(copy.deepcopy(model).double())
        tensor = other.state_dict()[place.tensor]
        index = torch.arange(tensor.shape[place.dim])
        index[place.positions.flatten()] = place.positions.roll(1, 0).flatten()
        tensor.copy_(tensor.index_select(place.dim, index))
        after = run_in_double(other, Inputs.of(inputs))
        assert max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)) > 1e-9, place
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("name", NAMES)
def test_as_many_permutations_are_free_as_a_hand_count_says(name):
    assert sum(free.size > 1 for free in traced(name).generators.values()) == HAND_COUNT[name]


@pytest.mark.parametrize("name", ZOO)
def test_the_traced_spec_is_that_of_the_house(name):
    spec, house = traced(name), permutation_spec(ZOO[name])
    assert canonical(spec) == canonical(house)
    assert not spec.parts
    assert list(spec.axes) == list(house.axes)
    assert spec.unmatched == house.unmatched


@EVERY
def test_every_dimension_that_stays_has_a_reason(name):
    (model, _), spec = network(name), traced(name)
    for tensor, dimensions in spec.axes.items():
        for dim, dimension in enumerate(dimensions):
            if dimension is None and model.state_dict()[tensor].shape[dim] > 1:
                assert spec.fixed[tensor][dim], (tensor, dim)
    assert "outputs of the network" in spec.explain_fixed() or "rows are selected by index" in spec.explain_fixed()


@pytest.mark.parametrize("name", ["vgg", "dense", "mobile", "grouped", *PRETRAINED])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_matching_finds_a_planted_permutation(name, noise):
    """Of channels, of heads and of what lies inside each head; also when the copy is disturbed."""
    spec, model = traced(name), network(name)[0]
    generator = torch.Generator().manual_seed(0)
    tied: dict[int, torch.Tensor] = {}

    def draw():
        tied.clear()
        return {
            n: tied.setdefault(t.data_ptr(), torch.randn(t.shape, generator=generator, dtype=torch.float64))
            for n, t in model.state_dict().items()
        }

    reference, disturbance = draw(), draw()
    planted = spec.random(generator=generator)
    moved = spec.apply({n: t + noise * disturbance[n] for n, t in reference.items()}, planted)
    found, expected = match_weights(spec, reference, moved), spec.inverse(planted)
    assert all(torch.equal(found[axis], index) for axis, index in expected.items())


def test_tied_tensors_stay_tied_and_channels_of_a_group_keep_together():
    spec = traced("gpt2")
    assert spec.axes["transformer.wte.weight"] == spec.axes["lm_head.weight"] == (None, spec.axes["lm_head.weight"][1])
    grouped = traced("grouped")
    axis = grouped.axes["stem.bias"][0]
    assert [part.size for part in grouped.parts[axis]] == [3, 4]


def test_rotary_dimensions_stay_and_values_do_not():
    spec = traced("llama")
    (query,) = spec.axes["model.layers.0.self_attn.q_proj.weight"][0]
    assert [part.size for part in spec.parts[query.axis]] == [2, 2]  # groups, and heads in a group
    assert query.block == 4
    value = spec.parts[spec.axes["model.layers.0.self_attn.v_proj.weight"][0]]
    assert [(part.size, part.moves) for part in value] == [(2, True), (4, True)]
    assert "model.layers.0.self_attn.q_proj.weight" in spec.fixed


def test_the_model_stays_as_it_is():
    model, inputs = copy.deepcopy(network("gpt2")[0]).train(), network("gpt2")[1]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = trace_permutations(model, (inputs["input_ids"],))
    assert model.training
    assert model.config.use_cache
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert canonical(spec) == canonical(traced("gpt2"))


class Strange(nn.Module):
    """A hidden layer that goes through an operation nobody has described, and one that does not."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.unused, self.operation = nn.Parameter(torch.zeros(3)), operation

    def forward(self, inputs):
        return self.third(self.operation(self.second(self.first(inputs).relu())))


def test_what_is_not_understood_stays_and_is_reported():
    spec = trace_permutations(Strange(lambda values: torch.cumsum(values.flip(-1), -1)), torch.randn(4, 5))
    assert list(spec.sizes) == ["first"]
    assert spec.fixed["second.weight"] == {0: "the order matters in flip"}
    assert spec.fixed["unused"] == {0: "not used for the outputs"}
    spec = trace_permutations(Strange(lambda values: torch.special.bessel_j0(values)), torch.randn(4, 5))
    assert list(spec.sizes) == ["first"]
    assert spec.fixed["second.bias"] == {0: "used in an unsupported way (special_bessel_j0)"}
    assert "used in an unsupported way (special_bessel_j0): second.weight[0]" in spec.explain_fixed()


def test_a_wrong_spec_is_refused(monkeypatch):
    monkeypatch.setitem(graph.HANDLERS, "cumsum", lambda call: call.type("self"))
    with pytest.raises(ValueError, match="spec of Strange failed verification: the permutation changes"):
        trace_permutations(Strange(lambda values: values.cumsum(-1)), torch.randn(4, 5))


def test_a_model_without_symmetries_and_wrong_arguments_raise():
    with pytest.raises(ValueError, match=r"Linear has no permutation symmetry that could be proven \(outputs of the"):
        trace_permutations(nn.Linear(3, 2), torch.randn(4, 3))
    with pytest.raises(TypeError, match="expected example_inputs as a tensor, a tuple of arguments or a mapping"):
        trace_permutations(nn.Linear(3, 2), [torch.randn(4, 3)])
    with pytest.raises(
        TypeError, match="expected a model that returns tensors, or an output with logits, got .*Tensor"
    ):
        trace_permutations(Counting(), torch.randn(4, 3))


class Branching(nn.Linear):
    """Looks at values to decide what to compute."""

    def forward(self, inputs):
        return super().forward(inputs) if inputs.sum() > 0 else inputs


def test_what_cannot_be_exported_is_refused():
    message = "cannot be exported with these inputs .*; expected a model that torch.export supports, without branches"
    with pytest.raises(ValueError, match=f"Branching {message}"):
        trace_permutations(Branching(3, 3), torch.randn(4, 3))
    with pytest.raises(ValueError, match=f"Linear {message}"):
        trace_permutations(nn.Linear(3, 2), torch.randn(4, 5))


class Counting(nn.Module):
    """Returns integers only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, inputs):
        return (inputs @ self.weight.T).argmax(-1)


class Writing(nn.Module):
    """Writes hidden values into a part of a tensor of zeros, through a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, inputs):
        values = torch.zeros(len(inputs), 2, 6, dtype=inputs.dtype)
        values[:, 0] = self.first(inputs).relu()
        values[:, 1].add_(self.second(inputs).relu())
        return self.last(values.mean(1))


def test_writing_through_a_view_couples_what_is_written():
    spec = trace_permutations(Writing(), torch.randn(4, 5))
    assert spec.sizes == {"first": 6}
    assert spec.axes["second.weight"] == ("first", None)
