"""Linear structure that runs share: against scikit-learn's principal components, and where there is none."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from hf_sane.analysis._structure import shared_structure


def draw(count: int, seed: int, *, basis: torch.Tensor | None = None, noise: float = 1.0) -> dict[str, torch.Tensor]:
    """Networks of two tensors, around the subspace of `basis` `[r, 120]`."""
    generator = torch.Generator().manual_seed(seed)
    points = noise * torch.randn(count, 120, generator=generator)
    if basis is not None:
        points += torch.randn(count, len(basis), generator=generator) @ basis
    return {"weight": points[:, :100].reshape(count, 10, 10), "bias": points[:, 100:]}


@pytest.fixture
def basis():
    return torch.randn(3, 120, generator=torch.Generator().manual_seed(9))


def test_shares_are_those_of_principal_components(basis):
    training, held_out = draw(20, 0, basis=basis), draw(7, 1, basis=basis)
    found = shared_structure(training, held_out)
    assert list(found) == ["", "weight", "bias"]
    for name, names in {"": ("weight", "bias"), "weight": ("weight",), "bias": ("bias",)}.items():
        own, others = (
            np.concatenate([side[part].flatten(1).double().numpy() for part in names], axis=1)
            for side in (training, held_out)
        )
        fitted = PCA().fit(own)
        centred = others - fitted.mean_
        shares = ((centred @ fitted.components_.T) ** 2).sum(axis=0).cumsum() / (centred**2).sum()
        assert found[name].directions == (1, 2, 4, 8, 16, 19)
        np.testing.assert_allclose(found[name].explained, shares[[0, 1, 3, 7, 15, 18]], rtol=1e-9)


def test_a_common_subspace_is_found_and_independent_networks_share_nothing(basis):
    found = shared_structure(draw(20, 0, basis=basis, noise=0.0), draw(7, 1, basis=basis, noise=0.0))[""]
    assert found.is_shared
    assert found.explained[2] == pytest.approx(1.0)
    assert found.gains[2] == pytest.approx(1.0)
    assert found.chance[2] < 0.2
    nothing = shared_structure(draw(20, 0), draw(200, 1))[""]
    assert not nothing.is_shared
    assert nothing.explained[-1] == pytest.approx(19 / 120, abs=0.02)
    assert nothing.chance[-1] == pytest.approx(19 / 120, abs=0.02)


def test_scales_of_tensors_alone_are_no_shared_structure():
    def scaled(count: int, seed: int) -> dict[str, torch.Tensor]:
        networks = draw(count, seed)
        return {"weight": networks["weight"], "bias": 100 * networks["bias"]}

    found = shared_structure(scaled(20, 0), scaled(200, 1))[""]
    assert found.explained[-1] > 0.5  # far above 19 of 120 directions: nearly all variance is in 20 weights
    assert not found.is_shared


def test_intervals_hold_the_share_and_narrow_with_more_networks(basis):
    few, many = (shared_structure(draw(20, 0, basis=basis), draw(count, 1, basis=basis))[""] for count in (5, 80))
    for found in (few, many):
        for share, (low, high) in zip(found.explained, found.intervals, strict=True):
            assert low < share < high
    assert many.intervals[0][1] - many.intervals[0][0] < few.intervals[0][1] - few.intervals[0][0]


def test_tensors_that_do_not_vary_have_no_structure():
    training, held_out = ({**draw(count, seed), "fixed": torch.ones(count, 4)} for count, seed in ((5, 0), (4, 1)))
    assert list(shared_structure(training, held_out)) == ["", "weight", "bias"]
    with pytest.raises(ValueError, match="no weight differs between the networks; expected trained networks"):
        shared_structure({"fixed": training["fixed"]}, {"fixed": held_out["fixed"]})


@pytest.mark.parametrize(("own", "others"), [(2, 5), (5, 1)])
def test_too_few_networks_are_refused(own, others):
    message = f"expected at least 3 training and 2 held-out networks, got {own} and {others}; use a larger zoo"
    with pytest.raises(ValueError, match=message):
        shared_structure(draw(own, 0), draw(others, 1))


def test_networks_that_are_not_finite_are_refused():
    broken = draw(4, 0)
    broken["bias"][1, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite weights in bias; leave these networks out of the zoo"):
        shared_structure(broken, draw(4, 1))
