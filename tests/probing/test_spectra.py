import numpy as np
import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.probing._spectra import MAX_KURTOSIS, layer_distribution, layer_spectrum, weight_profile


def zoo(num_models=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (2, 5)}
    tensors = {name: torch.randn(num_models, *shape, generator=generator) for name, shape in shapes.items()}
    layout = Layout.from_state_dict({name: tensor[0] for name, tensor in tensors.items()}, token_dim=5)
    return tensors, layout, layout.tokens(tensors, batch_dims=1)


def test_spectrum_is_that_of_each_layers_matrix():
    tensors, layout, tokens = zoo()
    found = layer_spectrum(tokens, layout)
    first = np.linalg.svd(torch.cat([tensors["a.weight"][1], tensors["a.bias"][1, :, None]], 1).numpy())[1]
    assert found.shape == (3, 5 + 2)
    assert found[1, :4].tolist() == pytest.approx(first.tolist(), rel=1e-5)
    assert found[1, 4] == pytest.approx(0, abs=1e-6)  # padding adds nothing


def test_spectrum_ignores_channel_order_and_rotations_but_not_scale():
    _, layout, tokens = zoo()
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    moved = tokens.clone()
    moved[:, :5] = moved[:, [3, 1, 0, 4, 2]]
    spectrum = layer_spectrum(tokens, layout)
    assert torch.allclose(layer_spectrum(moved @ rotation, layout), spectrum, atol=1e-5)
    assert not torch.allclose(layer_spectrum(2 * tokens, layout), spectrum, atol=0.1)
    across = tokens.clone()
    across[:, [0, 5]] = across[:, [5, 0]]  # a token of another layer is no permutation within one
    assert not torch.allclose(layer_spectrum(across, layout), spectrum, atol=0.1)


def test_distribution_against_numpy():
    tensors, layout, tokens = zoo()
    found = layer_distribution(tokens, layout)
    weights = torch.cat([tensors["a.weight"][2].flatten(), tensors["a.bias"][2]]).double().numpy()
    centred = weights - weights.mean()
    expected = [
        weights.mean(),
        weights.std(),
        weights.var(),
        np.abs(weights).mean(),
        (centred**4).mean() / weights.var() ** 2,
        *np.quantile(weights, [0, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99, 1]),
    ]
    assert found.shape == (3, 36)
    assert found[2, :18].tolist() == pytest.approx(expected, rel=1e-4)


def test_profile_is_both_and_their_logarithms_of_real_weights_only():
    _, layout, tokens = zoo()
    values = torch.cat([layer_distribution(tokens, layout), layer_spectrum(tokens, layout)], 1).numpy()
    expected = np.concatenate([values, np.log(np.maximum(np.abs(values), 0.03))], 1)
    noisy = torch.where(layout.weight_mask, tokens, torch.randn(tokens.shape))  # a decoder fills padding with anything
    assert weight_profile(noisy, layout).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    moved = tokens.clone()
    moved[:, :5] = moved[:, [3, 1, 0, 4, 2]]
    assert torch.allclose(weight_profile(moved, layout), weight_profile(tokens, layout), atol=1e-4)
    assert not torch.allclose(weight_profile(2 * tokens, layout), weight_profile(tokens, layout), atol=0.1)


def test_a_collapsed_layer_stays_bounded():
    tensors, layout, _ = zoo()
    tensors["b.weight"][:] = 1.0
    tensors["b.weight"][:, 0, 0] = 1.0 + 1e-7
    found = layer_distribution(layout.tokens(tensors, batch_dims=1), layout)
    assert found.isfinite().all()
    assert found[:, 22].max() <= MAX_KURTOSIS
