"""Adapters as points: what they do counts, not how it is stored."""

import pytest
import torch

from hf_sane.analysis._adapter_regions import adapter_points, points_from_gram, product_gram


@pytest.fixture
def adapters():
    """Three adapters of ranks 1, 2 and 4; a linear map and a convolution are shared, `own` is not."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, rank in (("one", 1), ("two", 2), ("four", 4)):
        found[name] = {
            "linear": (torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator)),
            "conv": (
                torch.randn(rank, 3, 2, 2, generator=generator),
                torch.randn(4, rank, 1, 1, generator=generator),
            ),
        }
    found["two"]["own"] = (torch.ones(1, 2), torch.ones(2, 1))
    return found


def products(adapters):
    """`[M, P]`: the changes of all shared weights, formed."""
    return torch.stack(
        [
            torch.cat([(f[m][1].flatten(1) @ f[m][0].flatten(1)).flatten() for m in ("linear", "conv")]).double()
            for f in adapters.values()
        ]
    )


def test_distances_are_those_of_the_products(adapters):
    formed = products(adapters)
    points = adapter_points(adapters)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(formed, formed), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(points @ points.mT, formed @ formed.mT, rtol=1e-5, atol=1e-5)


def test_the_gauge_of_the_factors_does_not_matter_but_the_product_does(adapters):
    before = adapter_points(adapters)
    first, second = adapters["four"]["linear"]
    gauge = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(4)
    adapters["four"]["linear"] = (gauge @ first, second @ gauge.inverse())
    after = adapter_points(adapters)
    torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), rtol=1e-4, atol=1e-4)
    adapters["four"]["linear"] = (gauge @ first, second)
    assert not torch.allclose(
        torch.cdist(adapter_points(adapters), adapter_points(adapters)), torch.cdist(before, before)
    )


def test_points_keep_scalar_products():
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    points = points_from_gram(vectors @ vectors.mT)
    torch.testing.assert_close(points @ points.mT, vectors @ vectors.mT)


def test_adapters_that_cannot_be_compared(adapters):
    with pytest.raises(ValueError, match=r"expected at least two adapters to compare, got \['one'\]"):
        adapter_points({"one": adapters["one"]})
    with pytest.raises(ValueError, match="have no target module in common; pass adapters that share one"):
        adapter_points({"one": adapters["one"], "own": {"own": adapters["two"]["own"]}})
    other = {"linear": (torch.zeros(1, 7), torch.zeros(5, 1))}
    with pytest.raises(
        ValueError, match="adapters change 'linear' with different shapes, .*; pass adapters of one base"
    ):
        adapter_points({"one": adapters["one"], "other": other})
    with pytest.raises(ValueError, match="expected changes of the same shape, got"):
        product_gram({"one": adapters["one"]["linear"], "other": other["linear"]})
    broken = {"linear": (torch.full((1, 6), torch.nan), torch.zeros(5, 1))}
    with pytest.raises(ValueError, match=r"broken is not finite \(NaN or infinite weights\); leave it out"):
        adapter_points({"one": adapters["one"], "broken": broken})
