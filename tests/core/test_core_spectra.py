"""Singular values and weight correlation: against NumPy and plain loops; approximate methods by their error."""

import math

import numpy as np
import pytest
import torch

from hf_sane.core import _spectra as spectra
from hf_sane.core._spectra import (
    channel_rows,
    gram_eigenvalues,
    rank_tolerance,
    row_correlation,
    singular_values,
    top_singular_values,
    weight_correlation,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(rows, columns):
    """Singular values `1, 2^-0.8, 3^-0.8, ...`."""
    left, right = (torch.linalg.qr(random(side, min(rows, columns), seed=side))[0] for side in (rows, columns))
    return left * torch.arange(1, min(rows, columns) + 1).pow(-0.8) @ right.T


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (3, 2, 7, 4), (6, 6)])
def test_against_numpy(shape, monkeypatch):
    matrices = random(*shape)
    expected = np.linalg.svd(matrices.double().numpy())[1]
    assert singular_values(matrices).numpy() == pytest.approx(expected, abs=1e-12)
    assert gram_eigenvalues(matrices).numpy() == pytest.approx(expected**2, abs=1e-12)
    monkeypatch.setattr(spectra, "BLOCK_SCALARS", 4)  # many blocks give the same
    assert gram_eigenvalues(matrices).numpy() == pytest.approx(expected**2, abs=1e-12)


def test_half_precision_is_converted_exactly():
    matrix = random(20, 30).to(torch.bfloat16)
    assert torch.equal(gram_eigenvalues(matrix), gram_eigenvalues(matrix.float()))


@pytest.mark.parametrize("make", [lambda: heavy_tailed(220, 300), lambda: random(300, 220)])
@pytest.mark.parametrize(("method", "error"), [("lanczos", 1e-9), ("randomized", 0.02)])
def test_error_of_approximate_methods(make, method, error):
    matrix = make()
    exact = singular_values(matrix)[:24]
    found = top_singular_values(matrix, 24, method=method, seed=1)
    assert found.dtype == torch.float64
    assert ((found - exact).abs() / exact).max() < error
    assert (found <= exact * (1 + 1e-9)).all()
    assert torch.equal(found, found.sort(descending=True).values)


def test_randomized_values_repeat_and_leave_the_global_stream_alone():
    matrix = random(80, 60)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = top_singular_values(matrix, 5, method="randomized", seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(top_singular_values(matrix, 5, method="randomized", seed=2), first)


@pytest.mark.parametrize("count", [0, 4, 5])
def test_only_some_values_can_be_had(count):
    with pytest.raises(
        ValueError, match=f"expected one matrix and 1 <= count < 4, got shape .* and {count}; decompose"
    ):
        top_singular_values(random(4, 9), count)


def test_other_methods_and_stacks_are_refused():
    with pytest.raises(ValueError, match="expected method 'lanczos' or 'randomized', got 'power'"):
        top_singular_values(random(4, 9), 2, method="power")
    with pytest.raises(ValueError, match="expected one matrix"):
        top_singular_values(random(2, 4, 9), 2)


def test_rank_as_numpy_counts_it():
    for dtype in (torch.float32, torch.float64):
        matrix = random(30, 7).to(dtype) @ random(7, 50).to(dtype)
        values = singular_values(matrix)
        tolerance = rank_tolerance(values[0].item(), (50, 30), dtype)
        assert (values > tolerance).sum().item() == np.linalg.matrix_rank(matrix.numpy()) == 7
    assert rank_tolerance(1.0, (10, 5), torch.bfloat16) == rank_tolerance(1.0, (10, 5), torch.float32)


def cosine(a, b):
    return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_correlation_of_dense_layers_by_definition():
    weight = random(6, 9)
    rows = weight.double().numpy()
    expected = np.mean([cosine(rows[i], rows[j]) for i in range(6) for j in range(6) if i != j])
    assert weight_correlation(weight) == pytest.approx(expected, rel=1e-5)
    assert weight_correlation(weight.view(6, 9, 1, 1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", [(3, 3), (4,), (2, 1, 3)])
def test_correlation_of_convolutions_by_definition(kernel, monkeypatch):
    weight = random(5, 4, *kernel)
    kernels = weight.double().flatten(2).numpy()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([cosine(kernels[i, z], kernels[j, z]) for z in range(4) for i, j in pairs])
    assert weight_correlation(weight) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(spectra, "BLOCK_SCALARS", 30)
    assert weight_correlation(weight) == pytest.approx(expected, rel=1e-5)
    batched = row_correlation(channel_rows(torch.stack([weight, 2 * weight]), batch_dims=1)).mean(1)
    assert batched.tolist() == pytest.approx([expected, expected], rel=1e-5)


def test_correlation_ignores_scales_signs_and_order_but_not_direction():
    weight = random(8, 20)
    found = weight_correlation(weight)
    changed = weight[torch.randperm(8)] * random(8, 1, seed=3)
    assert weight_correlation(changed) == pytest.approx(found, rel=1e-5)
    assert weight_correlation(weight.abs()) > 2 * found
    assert weight_correlation(torch.ones(4, 5)) == pytest.approx(1, rel=1e-5)
    assert weight_correlation(torch.eye(4, 5)) == 0


def test_correlation_of_zero_and_single_channels():
    weight = random(3, 5)
    weight[0] = 0
    rows = weight.double().numpy()
    assert weight_correlation(weight) == pytest.approx(cosine(rows[1], rows[2]) / 3, rel=1e-5)
    assert math.isnan(weight_correlation(random(1, 5)))


def test_correlation_of_many_channels_is_estimated():
    weight = random(400, 30).abs()
    assert weight_correlation(weight, max_channels=100) == pytest.approx(weight_correlation(weight), rel=0.05)
    assert weight_correlation(weight, max_channels=100, seed=1) != weight_correlation(weight, max_channels=100, seed=2)
