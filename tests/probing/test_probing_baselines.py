import numpy as np
import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.probing._baselines import STATISTICS_LEVELS, flattened_weights, layer_statistics

SHAPES = {"a.weight": (4, 2, 3, 3), "a.bias": (4,), "b.weight": (3, 5), "b.bias": (3,), "scale": ()}


def networks(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{n: torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(count)]


def layers(network: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """All weights of each layer, weight and bias together."""
    groups = [("a.weight", "a.bias"), ("b.weight", "b.bias"), ("scale",)]
    return [np.concatenate([network[name].double().numpy().reshape(-1) for name in group]) for group in groups]


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("token_dim", [1, 4, 7, 50])
def test_statistics_of_real_weights(token_layout, token_dim):
    found = networks(5)
    layout = Layout.from_state_dict(found[0], token_dim=token_dim, token_layout=token_layout, order="given")
    tokens = torch.stack([layout.tokens(network) for network in found])
    expected = [
        np.concatenate([[w.mean(), w.var(), *np.quantile(w, STATISTICS_LEVELS)] for w in layers(network)])
        for network in found
    ]
    statistics = layer_statistics(tokens, layout)
    assert statistics.shape == (5, 21)
    np.testing.assert_allclose(statistics.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("token_layout", ["rowwise", "dense"])
@pytest.mark.parametrize("token_dim", [1, 4, 50])
def test_flattened_weights_are_all_weights_once(token_layout, token_dim):
    found = networks(3)
    layout = Layout.from_state_dict(found[0], token_dim=token_dim, token_layout=token_layout, order="given")
    tokens = torch.stack([layout.tokens(network) for network in found])
    flat = flattened_weights(tokens, layout)
    assert flat.shape == (3, layout.num_weights)
    for row, network in zip(flat, found, strict=True):
        assert row.sort().values.tolist() == torch.cat([t.flatten() for t in network.values()]).sort().values.tolist()


def test_padding_does_not_count():
    found = networks(1)
    statistics = []
    for token_dim in (19, 60):  # no row longer than 19
        layout = Layout.from_state_dict(found[0], token_dim=token_dim, order="given")
        statistics.append(layer_statistics(layout.tokens(found[0])[None], layout))
    torch.testing.assert_close(*statistics)


def test_order_of_channels_matters_to_weights_only():
    found = networks(1)
    layout = Layout.from_state_dict(found[0], token_dim=19, order="given")
    tokens = layout.tokens(found[0])[None]
    moved = tokens[:, [3, 1, 2, 0, *range(4, layout.num_tokens)]]
    torch.testing.assert_close(layer_statistics(moved, layout), layer_statistics(tokens, layout))
    assert not torch.allclose(flattened_weights(moved, layout), flattened_weights(tokens, layout))


@pytest.mark.parametrize("function", [flattened_weights, layer_statistics])
@pytest.mark.parametrize("shape", [(8, 7), (2, 8, 6), (2, 7, 7)])
def test_foreign_tokens(function, shape):
    layout = Layout.from_state_dict(networks(1)[0], token_dim=20, order="given")
    with pytest.raises(ValueError, match=r"expected tokens \[M, 8, 20\] of this layout, got"):
        function(torch.zeros(shape), layout)
