"""Statistics of tensors: those of NumPy where all is read, and an honest error where it is not."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis
from torch import nn

from hf_sane.screening._initialization import initialization_of
from hf_sane.screening._plan import plan_reads
from hf_sane.screening._statistics import Moments, TensorStatistics, decode, tensor_statistics
from hf_sane.tokenization._safetensors_header import DTYPES, TensorEntry


def sampled(tensor: torch.Tensor, budget: int, seed: int = 0) -> TensorStatistics:
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    entry = TensorEntry(tensor.to("meta"), 0, len(content))
    (plan,) = plan_reads({"x": entry}, budget, seed=seed).values()
    moments = Moments()
    for start, stop in plan.blocks:
        moments.add(decode(content[start:stop], tensor.dtype), content[start:stop])
    return moments.statistics("x", tensor)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_moments_are_those_of_numpy(scale, shift):
    tensor = scale * (torch.randn(300, 500, dtype=torch.float64).exp() + shift)
    found, values = tensor_statistics("x", tensor), tensor.numpy().ravel()
    assert found.mean == pytest.approx(values.mean(), rel=1e-9)
    assert found.std == pytest.approx(values.std(), rel=1e-9)
    assert found.kurtosis == pytest.approx(kurtosis(values, fisher=False), rel=1e-6)
    assert (found.low, found.high, found.std_error) == (values.min(), values.max(), 0.0)
    assert found.is_whole


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_nearly_equal_have_the_moments_of_numpy(spread, dtype):
    noise = torch.randn(3, 2**20 // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tensor = (1 + spread * noise).to(dtype)
    found, values = tensor_statistics("x", tensor), tensor.double().numpy().ravel() - 1  # exact
    assert found.std == pytest.approx(values.std(), rel=1e-9)
    assert found.kurtosis == pytest.approx(kurtosis(values, fisher=False), rel=1e-6)
    assert found.mean == pytest.approx(1 + values.mean(), abs=1e-15)
    assert abs(found.kurtosis - 3) < 0.1 or spread < 1e-6  # that of a normal distribution, unless rounding shows


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e160, 1e300])
def test_huge_and_tiny_values_have_moments_without_warnings(scale):
    plain = torch.randn(2, 2**20 + 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = tensor_statistics("x", plain * scale), tensor_statistics("x", plain)
    assert found.mean / scale == pytest.approx(expected.mean, rel=1e-9)
    assert found.std / scale == pytest.approx(expected.std, rel=1e-9)
    assert found.kurtosis == pytest.approx(expected.kurtosis, rel=1e-9)
    estimate = sampled(plain * scale, 2**20)
    assert estimate.std_error / scale == pytest.approx(sampled(plain, 2**20).std_error, rel=1e-6)
    limit = torch.finfo(torch.float64).max
    opposite = tensor_statistics("x", torch.tensor([limit, -limit], dtype=torch.float64))
    assert (opposite.mean, opposite.std, opposite.kurtosis) == (0, limit, 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_of_the_format_is_counted(dtype):
    tensor = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1]).to(dtype)
    found = tensor_statistics("x", tensor)
    parts = 2 if dtype.is_complex else 1
    assert found.num_read == found.num_values == 8 * parts
    if dtype != getattr(torch, "float8_e8m0fnu", None):  # which has no zero
        assert found.zeros == (2 + (8 if dtype.is_complex else 0))
        assert found.high == 1


def test_what_is_not_finite_is_counted_and_left_out():
    tensor = torch.tensor([1.0, 3.0, math.nan, math.inf, -math.inf, 0.0])
    found = tensor_statistics("x", tensor)
    assert (found.nan, found.infinite, found.zeros) == (1, 2, 1)
    assert found.mean == pytest.approx(4 / 3)
    assert (found.low, found.high) == (0, 3)


@pytest.mark.parametrize("tensor", [torch.empty(0, 3), torch.tensor([math.nan])])
def test_without_a_finite_value_nothing_is_known(tensor):
    found = tensor_statistics("x", tensor)
    assert all(math.isnan(x) for x in (found.mean, found.std, found.kurtosis, found.low))
    assert found.row()["mean"] is None


def test_a_constant_has_no_spread_and_no_kurtosis():
    found = tensor_statistics("x", torch.full((1000,), 0.1))
    assert found.std == 0
    assert math.isnan(found.kurtosis)


def test_the_error_of_a_sample_is_what_it_says():
    """Rows of different scales, as trained layers have them: neighbours resemble each other."""
    rows = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    tensor = (torch.randn(4000, 500, generator=torch.Generator().manual_seed(1)) * rows).half()
    true = tensor_statistics("x", tensor).std
    found = [sampled(tensor, 2**20, seed) for seed in range(60)]
    errors = np.array([(x.std - true) / x.std_error for x in found])
    assert all(0.1 < x.num_read / x.num_values < 0.5 for x in found)
    assert np.abs(errors).mean() < 1.2
    assert (np.abs(errors) < 3).mean() > 0.95
    assert np.std([x.std for x in found]) > 0  # or there would be nothing to estimate


def test_equal_tensors_have_equal_digests_and_others_do_not():
    tensor = torch.ones(2000, 2000).cumsum(0)
    other = tensor.clone()
    other += 1e-3
    assert sampled(tensor, 2**20).digest == sampled(tensor.clone(), 2**20).digest
    assert sampled(tensor, 2**20).digest != sampled(other, 2**20).digest


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(300, 200), "uniform"),
        (lambda: nn.Conv2d(20, 30, 3), "uniform"),
        (lambda: nn.Embedding(500, 64), "normal with std 1"),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_fresh_layers_are_recognised(make, expected):
    torch.manual_seed(0)
    assert initialization_of(tensor_statistics("x", make().weight)) == expected


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda w: nn.init.normal_(w, std=0.02), "normal with std 0.02"),
        (nn.init.kaiming_normal_, "normal with std 0.0707"),
        (nn.init.xavier_uniform_, "uniform"),
        (lambda w: nn.init.trunc_normal_(w, std=0.5, a=-1, b=1), "truncated normal"),
        (lambda w: nn.init.normal_(w, std=0.033), None),  # of no library
        (lambda w: w.copy_(torch.distributions.StudentT(5.0).sample(w.shape) * 0.02), None),
    ],
)
def test_initialisations_are_told_from_other_distributions(draw, expected):
    torch.manual_seed(0)
    weight = torch.empty(600, 400)
    with torch.no_grad():
        draw(weight)
    assert initialization_of(tensor_statistics("x", weight)) == expected
    if expected is not None:  # a little training is enough
        moved = weight + 0.3 * weight.std() * torch.outer(torch.randn(600), torch.randn(400))
        assert initialization_of(tensor_statistics("x", moved)) is None


def test_of_few_values_nothing_is_said():
    assert initialization_of(tensor_statistics("x", nn.Linear(10, 10).weight)) is None
