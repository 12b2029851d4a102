"""The spectral baseline follows its equations, is invariant where it should be, and bounded on collapse."""

import numpy as np
import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.probing._spectra import MAX_ALPHA, MIN_LOG_NORM, spectral_features

FEATURES_PER_MATRIX = 7  # see the docstring of `spectral_features`
SHAPES = {"a.weight": (6, 3, 3, 3), "a.bias": (6,), "b.weight": (8, 9), "b.bias": (8,), "c.weight": (1, 8)}


def networks(num_models=3):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(num_models, *shape, generator=generator) for name, shape in SHAPES.items()}
    layout = Layout.from_state_dict({name: tensor[0] for name, tensor in tensors.items()}, token_dim=7)
    return tensors, layout


def features(tensors, layout):
    return spectral_features(layout.tokens(tensors, batch_dims=1), layout)


def alpha_by_definition(eigenvalues, min_tail):
    """Every tail tried, in plain loops."""
    x = np.sort(eigenvalues)
    best = (np.inf, np.nan)
    for start in range(len(x) - min_tail + 1):
        tail = x[start:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        distance = max(abs(1 - (v / tail[0]) ** (1 - alpha) - i / len(tail)) for i, v in enumerate(tail))
        best = min(best, (distance, alpha))
    return best[1]


def test_against_the_definition():
    tensors, layout = networks()
    found = features(tensors, layout)
    assert found.shape == (3, 2 * FEATURES_PER_MATRIX)
    kernels = tensors["a.weight"][2].double().flatten(2).numpy()
    eigenvalues = np.linalg.svd(tensors["a.weight"][2].double().flatten(1).numpy())[1] ** 2
    alpha = min(alpha_by_definition(eigenvalues, 3), MAX_ALPHA)
    cosines = [
        abs(kernels[i, z] @ kernels[j, z]) / np.linalg.norm(kernels[i, z]) / np.linalg.norm(kernels[j, z])
        for z in range(3)
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    expected = [
        np.log10(eigenvalues.sum()),
        np.log10(eigenvalues[0]),
        eigenvalues.sum() / eigenvalues[0],
        alpha,
        alpha * np.log10(eigenvalues[0]),
        np.log10((eigenvalues**alpha).sum()),
        np.mean(cosines),
    ]
    np.testing.assert_allclose(found[2, :FEATURES_PER_MATRIX].numpy(), expected, rtol=1e-4)


def test_channels_may_be_permuted_and_biases_changed_but_not_weights():
    tensors, layout = networks()
    found = features(tensors, layout)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted = tensors | {"a.weight": tensors["a.weight"][:, order], "a.bias": tensors["a.bias"] + 1}
    assert torch.allclose(features(permuted, layout), found, atol=1e-4)
    scaled = tensors | {"b.weight": 2 * tensors["b.weight"]}
    changed = features(scaled, layout) - found
    assert torch.allclose(changed[:, FEATURES_PER_MATRIX], torch.full((3,), 2 * np.log10(2)).float(), atol=1e-5)
    assert changed[:, :FEATURES_PER_MATRIX].abs().max() < 1e-5


@pytest.mark.parametrize("collapse", ["zero", "constant", "one row", "orthogonal"])
def test_collapsed_layers_stay_finite(collapse):
    tensors, layout = networks()
    weight = tensors["b.weight"]
    if collapse == "zero":
        weight.zero_()
    elif collapse == "constant":
        weight.fill_(0.5)
    elif collapse == "one row":
        weight[:, 1:] = 0
    else:
        weight.copy_(torch.eye(8, 9).expand(3, 8, 9))
    found = features(tensors, layout)
    assert found.isfinite().all()
    assert (found[:, FEATURES_PER_MATRIX + 3] == MAX_ALPHA).all()


def test_a_network_that_decayed_to_nothing_stays_bounded():
    """Shape is kept, norms have a floor: one such network would otherwise decide every probe."""
    tensors, layout = networks()
    found = features(tensors, layout)
    decayed = features({name: 1e-12 * tensor for name, tensor in tensors.items()}, layout)
    norms, shapes = [0, 1], [2, 3, 6]
    assert (decayed[:, norms] == MIN_LOG_NORM).all()
    assert torch.allclose(decayed[:, shapes], found[:, shapes], rtol=1e-3)
    assert decayed.abs().max() <= 2 * MAX_ALPHA + 2


def test_networks_without_matrices_are_refused():
    layout = Layout.from_state_dict({"scale": torch.ones(4)}, token_dim=4)
    with pytest.raises(ValueError, match="no weight matrix; expected a layer with at least two rows"):
        spectral_features(torch.ones(2, 4, 4), layout)


def test_fused_experts_have_one_spectrum_each():
    stack = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    fused = {"mlp.experts.up_proj": stack}
    apart = {f"mlp.experts.{index}.up_proj.weight": matrix for index, matrix in enumerate(stack)}
    found = []
    for state_dict in (fused, apart):
        layout = Layout.from_state_dict(state_dict, token_dim=4)
        found.append(spectral_features(layout.tokens(state_dict)[None], layout))
    assert found[0].shape == (1, 3 * FEATURES_PER_MATRIX)
    torch.testing.assert_close(*found)
