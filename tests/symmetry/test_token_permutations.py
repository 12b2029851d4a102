"""Permutations in token space against permutations of the tensors, and networks run before and after."""

import pytest
import torch
from traced_networks import network as network_to_trace
from traced_networks import traced

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, mlp, resnet
from hf_sane.core._layout import Layout
from hf_sane.symmetry import _token_permutations as token_permutations
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._token_permutations import TokenPermutations

CONFIGS = {
    "cnn": cnn_digits(),
    "mlp": mlp(image_size=4, hidden_sizes=(5, 3)),
    "option_a": cifar_resnet(20, width=2),
    "projection": resnet(18, width=2),
    "bottleneck": resnet(50, width=1),
}


def token_permutation_indices(spec, layout, permutations):
    """Gather indices `[P, N * D]` of whole networks."""
    found = TokenPermutations(spec, layout, permutations)
    every = torch.arange(found.num_permutations)
    return found.index(every, torch.zeros_like(every), layout.num_tokens).flatten(1)


def network(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.1 if tensor.is_floating_point() else tensor
        for name, tensor in build_model(config).state_dict().items()
    }


@pytest.mark.parametrize("token_dim", [1, 7, 73, 289])
@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_move_as_the_tensors_do(config, token_layout, token_dim):
    state = network(config)
    layout = Layout.from_state_dict(state, token_dim=token_dim, token_layout=token_layout)
    spec = permutation_spec(config)
    permutations = spec.random(3, generator=torch.Generator().manual_seed(1))
    index = token_permutation_indices(spec, layout, permutations)
    assert index.shape == (3, layout.num_tokens * token_dim)
    assert torch.equal(index.sort(dim=1).values, torch.arange(index.shape[1]).expand(3, -1)), "a permutation, too"
    tokens = layout.tokens(state)
    for p in range(3):
        moved = spec.apply(state, {axis: permutation[p] for axis, permutation in permutations.items()})
        assert torch.equal(tokens.flatten()[index[p]].view_as(tokens), layout.tokens(moved))
        assert not torch.equal(tokens.flatten()[index[p]].view_as(tokens), tokens)


def test_permuted_tokens_are_a_network_of_the_same_function():
    config = cnn_digits()
    model = build_model(config).eval()
    layout = Layout.from_state_dict(model.state_dict(), token_dim=73)
    spec = permutation_spec(config)
    found = TokenPermutations(spec, layout, spec.random(4, generator=torch.Generator().manual_seed(0)))
    tokens = layout.tokens(model.state_dict())
    images = torch.randn(5, 1, 8, 8)
    expected = model(images).logits
    for moved in found.apply(tokens.expand(4, -1, -1), torch.arange(4)):
        assert not torch.equal(moved, tokens)
        model.load_state_dict(layout.tensors(moved))
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)
    foreign = found.apply(tokens[None], torch.tensor([0])).roll(1, dims=1)  # and the check can fail
    model.load_state_dict(layout.tensors(foreign[0]))
    assert not torch.allclose(model(images).logits, expected, atol=1e-2)


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("keeps_table", [True, False])
def test_windows_are_parts_of_the_whole(monkeypatch, keeps_table, token_layout):
    if not keeps_table:
        monkeypatch.setattr(token_permutations, "TABLE_ENTRIES", 0)
    config = cnn_digits()
    state = network(config)
    layout = Layout.from_state_dict(state, token_dim=9, token_layout=token_layout)
    spec = permutation_spec(config)
    found = TokenPermutations(spec, layout, spec.random(5, generator=torch.Generator().manual_seed(0)))
    whole = found.index(torch.arange(5), torch.zeros(5, dtype=torch.int64), layout.num_tokens)
    checked = 0
    for length in (1, 4, layout.num_tokens - 1):
        starts = torch.arange(0, layout.num_tokens - length + 1, 3)
        chosen = starts % 5
        windows = found.index(chosen, starts, length)
        for window, start, p in zip(windows, starts.tolist(), chosen.tolist(), strict=True):
            assert torch.equal(window, whole[p, start : start + length])
            checked += 1
    assert checked > 20


def test_the_identity_moves_nothing():
    config = cifar_resnet(20, width=2)
    layout = Layout.from_state_dict(network(config), token_dim=13)
    index = token_permutation_indices(permutation_spec(config), layout, permutation_spec(config).identity(2))
    assert torch.equal(index, torch.arange(index.shape[1]).expand(2, -1))


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("name", ["vit", "gpt2", "t5", "grouped"])
def test_any_traced_spec_moves_tokens_as_it_moves_tensors(name, token_layout):
    """Position tables move in their last dimension, and biases of transposed weights differently from the rows."""
    (model, _), spec = network_to_trace(name), traced(name)
    state = model.state_dict()
    layout = Layout.from_state_dict(state, token_dim=7, token_layout=token_layout)
    permutations = spec.random(3, generator=torch.Generator().manual_seed(0))
    found = TokenPermutations(spec, layout, permutations)
    tokens = layout.tokens(state)
    moved = found.apply(tokens.expand(3, *tokens.shape), torch.arange(3))
    for i in range(3):
        expected = spec.apply(state, {axis: index[i] for axis, index in permutations.items()})
        assert torch.equal(moved[i], layout.tokens(expected))
        assert not torch.equal(moved[i], tokens)


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
def test_networks_without_symmetries_stay_under_any_number(token_layout):
    tensors = {"weight": torch.randn(2, 3)}
    layout = Layout.from_state_dict(tensors, token_dim=4, token_layout=token_layout)
    found = TokenPermutations(PermutationSpec({"weight": (None, None)}, {}), layout, {})
    tokens = layout.tokens(tensors).expand(3, -1, -1)
    assert torch.equal(found.apply(tokens, torch.tensor([0, 7, 199])), tokens)
    assert found.index(torch.tensor([5]), torch.tensor([1]), 1).flatten().tolist() == [4, 5, 6, 7]


def test_specs_that_do_not_fit_are_refused():
    layout = Layout.from_state_dict({"a.weight": torch.ones(4, 3, 2), "a.bias": torch.ones(4)}, token_dim=5)
    other = PermutationSpec({"b.weight": ("x",)}, {"x": 4})
    with pytest.raises(KeyError, match="the permutation spec lacks .'a.bias', 'a.weight'."):
        token_permutation_indices(other, layout, other.identity(1))
