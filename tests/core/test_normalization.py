import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.core._normalization import LayerStatistics, layer_key


def zoo(num_models=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "a.weight": 3 * torch.randn(num_models, 4, 5, generator=generator) + 1,
        "a.bias": torch.randn(num_models, 4, generator=generator) - 2,
        "b.weight": 0.1 * torch.randn(num_models, 2, 4, generator=generator),
        "bn.running_mean": torch.randn(num_models, 4, generator=generator),
    }
    layout = Layout.from_state_dict({name: tensor[0] for name, tensor in tensors.items()}, token_dim=7)
    return tensors, layout, layout.tokens(tensors, batch_dims=1)


@pytest.mark.parametrize(("method", "centre"), [("standardize", torch.mean), ("robust", torch.median)])
def test_against_the_definition(method, centre):
    tensors, layout, tokens = zoo(7)
    statistics = LayerStatistics.fit([(layout, tokens)], method)
    joined = torch.cat([tensors["a.weight"].flatten(1), tensors["a.bias"]], dim=1).double()
    assert statistics.means["a:6"] == pytest.approx(centre(joined.mean(1)).item())
    assert statistics.stds["a:6"] == pytest.approx(centre(joined.var(1, unbiased=False)).sqrt().item())
    assert list(statistics.means) == [layer_key(layer) for layer in layout.layers]


def test_batches_count_like_one_batch():
    _, layout, tokens = zoo(6)
    whole = LayerStatistics.fit([(layout, tokens)])
    parts = LayerStatistics.fit([(layout, tokens[:1]), (layout, tokens[1]), (layout, tokens[2:])])
    assert whole.means == pytest.approx(dict(parts.means))
    assert whole.stds == pytest.approx(dict(parts.stds))


def test_apply_and_invert():
    tensors, layout, tokens = zoo()
    statistics = LayerStatistics.fit([(layout, tokens)])
    normal = statistics.apply(tokens, layout)
    assert (normal[:, ~layout.weight_mask] == 0).all()
    assert torch.allclose(statistics.invert(normal, layout), tokens, atol=1e-5)
    mean, std = statistics.means["a:6"], statistics.stds["a:6"]
    assert torch.allclose(normal[:, 0, :5], (tensors["a.weight"][:, 0] - mean) / std, atol=1e-5)
    affine = layout.tokens(tensors, batch_dims=1, affine=statistics.scales(layout))
    assert torch.allclose(affine, normal, atol=1e-6)


def test_invert_passes_gradients():
    _, layout, tokens = zoo()
    statistics = LayerStatistics.fit([(layout, tokens)])
    normal = statistics.apply(tokens, layout).requires_grad_()
    statistics.invert(normal, layout).sum().backward()
    assert torch.allclose(normal.grad[0, 0, 0], torch.tensor(statistics.stds["a:6"]))
    assert (normal.grad[:, ~layout.weight_mask] == 0).all()


def test_running_statistics_are_normalised_once():
    _, layout, tokens = zoo(40)
    statistics = LayerStatistics.fit([(layout, tokens)])
    normal = statistics.apply(tokens, layout)
    part = layout.token_slices[-1]
    running = normal[:, part][:, layout.weight_mask[part]]
    assert running.mean().abs() < 1e-4
    assert running.var(1, unbiased=False).mean() == pytest.approx(1, abs=1e-3)


def test_constant_layers_keep_their_scale():
    layout = Layout.from_state_dict({"n.weight": torch.ones(3)}, token_dim=2)
    statistics = LayerStatistics.fit([(layout, layout.tokens({"n.weight": torch.ones(3)}))])
    assert statistics.stds == {"n:1": 1.0}


def test_robust_statistics_ignore_a_diverged_network_and_plain_ones_do_not():
    _, layout, tokens = zoo(9)
    diverged = torch.cat([tokens, 1e9 * tokens[:1]])
    for method, moves in (("robust", False), ("standardize", True)):
        before = LayerStatistics.fit([(layout, tokens)], method).stds["a:6"]
        after = LayerStatistics.fit([(layout, diverged)], method).stds["a:6"]
        assert (after / before > 1e3) == moves
        assert moves or 0.5 < after / before < 2


def test_related_architectures_share_statistics_and_strangers_are_refused():
    state_dict = {"body.weight": torch.randn(4, 3), "head.weight": torch.randn(10, 4)}
    layout = Layout.from_state_dict(state_dict, token_dim=4)
    statistics = LayerStatistics.fit([(layout, layout.tokens(state_dict))])
    more_classes = Layout.from_state_dict({**state_dict, "head.weight": torch.randn(99, 4)}, token_dim=4)
    assert statistics.per_layer(more_classes) == statistics.per_layer(layout)
    stranger = Layout.from_state_dict({"body.weight": torch.randn(4, 5)}, token_dim=4)
    with pytest.raises(KeyError, match=r"fitted on another layout: no statistics for \['body:5'\]"):
        statistics.per_layer(stranger)


def test_nothing_to_fit_and_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="expected at least one network to fit on, got none"):
        LayerStatistics.fit([])
    _, layout, tokens = zoo()
    with pytest.raises(ValueError, match="expected at least one network to fit on, got none"):
        LayerStatistics.fit([(layout, tokens[:0])])
    with pytest.raises(ValueError, match="expected method 'standardize' or 'robust', got 'minmax'"):
        LayerStatistics.fit([(layout, tokens)], "minmax")


@pytest.mark.parametrize(("method", "centre"), [("standardize", torch.mean), ("robust", torch.median)])
def test_statistics_by_kind_serve_layers_that_were_not_fitted(method, centre):
    _, layout, tokens = zoo()
    statistics = LayerStatistics.fit([(layout, tokens)], method, by_kind=True)
    own = LayerStatistics.fit([(layout, tokens)], method)
    assert {key: value for key, value in statistics.means.items() if not key.startswith("*")} == own.means
    assert statistics.per_layer(layout) == own.per_layer(layout)
    linear = [tokens[:, :4][:, layout.weight_mask[:4]], tokens[:, 4:6][:, layout.weight_mask[4:6]]]
    assert statistics.means["*:linear"] == pytest.approx(
        centre(torch.cat([w.double().mean(1) for w in linear])).item()
    )

    others = {"x.weight": torch.zeros(3, 2), "y.running_var": torch.zeros(4), "z.weight": torch.zeros(2, 2, 1, 1)}
    strange = Layout.from_state_dict(others, token_dim=7)
    linear_layer, running, convolution = statistics.per_layer(strange)
    assert linear_layer == (statistics.means["*:linear"], statistics.stds["*:linear"])
    assert running == (statistics.means["*:running_statistics"], statistics.stds["*:running_statistics"])
    assert convolution == (statistics.means["*"], statistics.stds["*"])  # no convolution was fitted
    raw = torch.randn(2, strange.num_tokens, 7) * strange.weight_mask
    assert torch.allclose(statistics.invert(statistics.apply(raw, strange), strange), raw, atol=1e-5)
    with pytest.raises(
        KeyError,
        match=r"no statistics for \['x:2', .*extended\(\), hf-sane sample --prompt-statistics.* by kind",
    ):
        own.per_layer(strange)
