"""A token layout from outside the package: one rule, and everything that reads or writes tokens follows it."""

import pytest
import torch
from safetensors.torch import save_file

from hf_sane.core import _token_layouts as token_layouts
from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import register_token_layout
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._token_permutations import TokenPermutations
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream

SHAPES = {"a.weight": (6, 2, 3), "a.bias": (6,), "b.weight": (4, 6), "scale": ()}


@pytest.fixture
def pairs(monkeypatch):
    """A layout that cuts layers into rows of two channels, where they have an even number of them."""
    monkeypatch.setattr(token_layouts.TOKEN_LAYOUTS, "_entries", dict(token_layouts.TOKEN_LAYOUTS._entries))
    register_token_layout(
        "pairs", lambda layer: layer.channels // 2 if layer.channels % 2 == 0 else layer.channels, counts_rows=True
    )
    return "pairs"


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def test_tokens_hold_rows_as_the_rule_cuts_them(pairs, network):
    layout = Layout.from_state_dict(network, token_dim=5, token_layout=pairs, order="given")
    tokens = layout.tokens(network)
    assert [part.stop - part.start for part in layout.token_slices] == [3 * 3, 2 * 3, 1]
    first = torch.cat([network["a.weight"][:2].flatten(), network["a.bias"][:2]])
    assert torch.equal(tokens[:3].flatten()[:14], first)
    assert tokens[2, 4] == 0
    assert layout.positions[:, 2].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 1, 1, 1, 0]
    assert int(layout.weight_mask.sum()) == layout.num_weights
    back = layout.state_dict(tokens)
    assert all(torch.equal(back[name], network[name]) for name in SHAPES)


def test_gradients_batches_and_streams_follow_the_rule(pairs, network, tmp_path):
    layout = Layout.from_state_dict(network, token_dim=5, token_layout=pairs)
    recorded = {name: tensor.clone().requires_grad_() for name, tensor in network.items()}
    assert torch.equal(layout.tokens(recorded), layout.tokens(network))
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in network.items()}
    assert torch.equal(layout.tokens(stacked, batch_dims=1)[1], 2 * layout.tokens(network))
    save_file(network, tmp_path / "network.safetensors")
    extractor = SANEFeatureExtractor(token_dim=5, token_layout=pairs, normalization="none")
    sequence = extractor.encode(tmp_path / "network.safetensors")
    blocks = list(TokenStream(tmp_path / "network.safetensors", extractor, max_scalars=14))
    assert torch.equal(torch.cat([block.tokens for block in blocks]), sequence.tokens)
    assert torch.equal(torch.cat([block.positions for block in blocks]), sequence.positions)


@pytest.mark.parametrize("token_layout", ["rowwise", "dense", "pairs"])
def test_permutations_move_tokens_as_they_move_tensors(token_layout, pairs, network):
    axes = {"a.weight": ("n", None, None), "a.bias": ("n",), "b.weight": (None, "n"), "scale": ()}
    spec = PermutationSpec(axes=axes, sizes={"n": 6})
    layout = Layout.from_state_dict(network, token_dim=5, token_layout=token_layout)
    permutation = {"n": torch.tensor([[3, 0, 5, 1, 2, 4]])}
    moved = spec.apply(network, {"n": permutation["n"][0]})
    tokens, permutations = layout.tokens(network), TokenPermutations(spec, layout, permutation)
    assert not torch.equal(layout.tokens(moved), tokens)
    assert torch.equal(permutations.apply(tokens[None], torch.tensor([0]))[0], layout.tokens(moved))


def test_a_rule_must_cut_a_layer_into_equal_rows(pairs, network):
    register_token_layout("thirds", lambda layer: 4, counts_rows=True)
    with pytest.raises(ValueError, match="thirds: 4 rows do not divide the 1 channels of scale"):
        Layout.from_state_dict(network, token_dim=5, token_layout="thirds").tokens(network)


def test_names_are_taken_once(pairs):
    with pytest.raises(ValueError, match="there is a token layout 'pairs' already"):
        register_token_layout("pairs", lambda layer: 1, counts_rows=False)
