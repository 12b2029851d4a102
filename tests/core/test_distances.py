"""Distances between points of many coordinates."""

import pytest
import torch

from hf_sane.core import _distances
from hf_sane.core._distances import square_distances


@pytest.mark.parametrize("chunk", [1, 7, 2**18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_loop(monkeypatch, chunk, dtype):
    """Also far from the origin, and for points that are equal or nearly equal."""
    monkeypatch.setattr(_distances, "FEATURE_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 20, generator=generator, dtype=dtype) + 1000 for n in (4, 6))
    second[2], second[4] = first[1], first[1]
    second[5] = first[3]
    second[5, 0] = first[3, 0] * (1 + 2**-20)
    expected = torch.stack([(point.double() - second.double()).square().sum(dim=1) for point in first])
    found = square_distances(first, second)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)
    assert (found[1, [2, 4]] == 0).all()
    assert 0 < found[3, 5] < 1e-5


def test_points_that_are_all_equal_or_not_finite():
    assert (square_distances(torch.full((3, 5), 0.1), torch.full((2, 5), 0.1)) == 0).all()
    assert square_distances(torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 2)).isnan().all()
