import pytest
import torch

from hf_sane.core._layout import Layout

LAYOUTS = ["rowwise", "dense"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def network(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"c.weight": (3, 2, 3, 3), "c.bias": (3,), "s": (), "e.weight": (5, 4), "n.weight": (3,), "n.bias": (3,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }


def naive_tokens(state_dict, token_dim, token_layout):
    """Straight from the definition: rows of [fan_in | bias], or [weight | bias] flat; pad, cut."""
    layers = [("c.weight", "c.bias"), ("s",), ("e.weight",), ("n.weight", "n.bias")]
    tokens = []
    for names in layers:
        weight = state_dict[names[0]]
        rows = weight.reshape(weight.shape[0] if weight.ndim else 1, -1).tolist()
        bias = state_dict[names[1]].tolist() if len(names) == 2 else None
        if token_layout == "rowwise":
            lines = [row + ([bias[i]] if bias else []) for i, row in enumerate(rows)]
        else:
            lines = [[w for row in rows for w in row] + (bias or [])]
        for line in lines:
            line = line + [0.0] * (-len(line) % token_dim)
            tokens += [line[i : i + token_dim] for i in range(0, len(line), token_dim)]
    return torch.tensor(tokens, dtype=torch.float64)


@pytest.mark.parametrize("token_layout", LAYOUTS)
@pytest.mark.parametrize("token_dim", [1, 2, 3, 7, 18, 19, 20, 100])
def test_against_the_definition(token_dim, token_layout):
    state_dict = network(torch.float64)
    layout = Layout.from_state_dict(state_dict, token_dim=token_dim, token_layout=token_layout, order="given")
    tokens = layout.tokens(state_dict)
    assert torch.equal(tokens, naive_tokens(state_dict, token_dim, token_layout))
    assert torch.equal(tokens == 0, ~layout.weight_mask)


@pytest.mark.parametrize("token_layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_exact(dtype, token_layout):
    state_dict = network(dtype)
    state_dict["c.bias"][0] = -0.0
    layout = Layout.from_state_dict(state_dict, token_dim=5, token_layout=token_layout, order="given")
    tokens = layout.tokens(state_dict)
    assert tokens.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    again = layout.tensors(tokens)
    assert list(again) == list(state_dict)
    for name, tensor in state_dict.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], tensor)
        assert torch.equal(again[name].signbit(), tensor.signbit())


@pytest.mark.parametrize("token_layout", LAYOUTS)
def test_mixed_dtypes_and_strides(token_layout):
    state_dict = network()
    state_dict["e.weight"] = torch.randn(4, 5).T.to(torch.bfloat16).T.contiguous().T
    state_dict["n.weight"] = torch.randn(6, dtype=torch.float64)[::2]
    assert not state_dict["e.weight"].is_contiguous()
    layout = Layout.from_state_dict(state_dict, token_dim=4, token_layout=token_layout, order="given")
    again = layout.tensors(layout.tokens(state_dict))
    assert all(torch.equal(again[name], tensor) for name, tensor in state_dict.items())
    assert all(again[name].dtype == tensor.dtype for name, tensor in state_dict.items())


@pytest.mark.parametrize("token_layout", LAYOUTS)
def test_stacks_are_the_single_networks(token_layout):
    networks = [network(), {name: tensor + 1 for name, tensor in network().items()}]
    layout = Layout.from_state_dict(networks[0], token_dim=6, token_layout=token_layout, order="given")
    stacked = {name: torch.stack([n[name] for n in networks]) for name in networks[0]}
    tokens = layout.tokens(stacked, batch_dims=1)
    assert torch.equal(tokens, torch.stack([layout.tokens(n) for n in networks]))
    again = layout.tensors(tokens)
    assert all(torch.equal(again[name], tensor) for name, tensor in stacked.items())
    assert torch.equal(layout.tensors(tokens[1])["c.weight"], networks[1]["c.weight"])


@pytest.mark.parametrize("token_layout", LAYOUTS)
def test_gradients_flow_both_ways(token_layout):
    state_dict = {name: tensor.double().requires_grad_() for name, tensor in network().items()}
    layout = Layout.from_state_dict(state_dict, token_dim=6, token_layout=token_layout, order="given")
    affine = [(0.5 + index, -1.0) for index in range(len(layout.layers))]
    tokens = layout.tokens(state_dict, affine=affine)
    with torch.no_grad():
        assert torch.equal(tokens, layout.tokens(state_dict, affine=affine))
    again = layout.tensors(tokens)
    for index, layer in enumerate(layout.layers):
        for spec in layer.tensors:
            (gradient,) = torch.autograd.grad(again[spec.name].sum(), state_dict[spec.name], retain_graph=True)
            assert torch.equal(gradient, torch.full_like(gradient, affine[index][0]))


def test_affine_is_applied_per_layer_and_inverted():
    state_dict = network()
    layout = Layout.from_state_dict(state_dict, token_dim=6, order="given")
    scales = [(2.0, 1.0), (0.5, 0.0), (3.0, -1.0), (1.0, 0.0)]
    tokens = layout.tokens(state_dict, affine=scales)
    again = layout.tensors(tokens)
    assert torch.allclose(again["c.weight"], 2 * state_dict["c.weight"] + 1)
    assert torch.equal(again["n.bias"], state_dict["n.bias"])
    assert (tokens[~layout.weight_mask] == 0).all()
    back = layout.tensors(tokens, affine=[(1 / a, -b / a) for a, b in scales])
    assert all(torch.allclose(back[name], tensor, atol=1e-6) for name, tensor in state_dict.items())


def test_decoded_tensors_are_fresh_memory():
    state_dict = network()
    layout = Layout.from_state_dict(state_dict, token_dim=6, order="given")
    tokens = layout.tokens(state_dict)
    before = tokens.clone()
    for tensor in layout.tensors(tokens).values():
        tensor.zero_()
    assert torch.equal(tokens, before)


def test_keeps_the_token_dtype_on_request():
    state_dict = network(torch.float16)
    layout = Layout.from_state_dict(state_dict, token_dim=6, order="given")
    tensors = layout.tensors(layout.tokens(state_dict), cast=False)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_missing_tensors_are_named():
    state_dict = network()
    layout = Layout.from_state_dict(state_dict, token_dim=6, order="given")
    del state_dict["n.bias"]
    with pytest.raises(KeyError, match=r"lacks tensors of the layout: \['n.bias'\]; was it made from another network"):
        layout.tokens(state_dict)


def test_wrong_shapes_are_refused():
    layout = Layout.from_state_dict(network(), token_dim=6, order="given")
    with pytest.raises(ValueError, match=r"e.weight: the layout expects \(5, 4\), got \(4, 5\)"):
        layout.tokens({**network(), "e.weight": torch.zeros(4, 5)})
    with pytest.raises(ValueError, match=r"expected tokens \[..., \d+, 6\], got \(3, 6\); decode with the layout"):
        layout.tensors(torch.zeros(3, 6))
