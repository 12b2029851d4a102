"""The Marchenko-Pastur law: against numerical integration, random matrices, and matrices with planted spikes."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from hf_sane.core import _marchenko_pastur as mp
from hf_sane.core._spectra import gram_eigenvalues

SIDES = [(400, 100), (300, 299), (200, 200), (1000, 10)]


def gaussian(rows, columns, sigma=1.0, seed=0):
    return sigma * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), SIDES)
def test_density_cumulative_and_quantiles_belong_together(rows, columns):
    low, high = mp.edges(rows, columns, 0.3)
    for value in np.linspace(low, high, 7)[1:]:
        integral = quad(lambda x: mp.density(x, rows, columns, 0.3).item(), low, value, limit=400)[0]
        assert mp.cumulative(value, rows, columns, 0.3) == pytest.approx(integral, abs=1e-4)
    levels = np.linspace(0.01, 0.99, 33)
    assert mp.cumulative(mp.quantiles(levels, rows, columns), rows, columns) == pytest.approx(levels, abs=1e-5)
    assert mp.cumulative([0.0, low, high, 2 * high], rows, columns, 0.3) == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert mp.density([0.0, 1.1 * high, -1.0], rows, columns, 0.3).tolist() == [0, 0, 0]
    assert mp.edges(columns, rows) == pytest.approx(mp.edges(rows, columns))


@pytest.mark.parametrize(("rows", "columns"), [(1200, 300), (800, 800), (2000, 400)])
def test_edges_of_gaussian_matrices_within_one_percent(rows, columns):
    eigenvalues = gram_eigenvalues(gaussian(rows, columns, 0.05)).numpy()
    fit = mp.fit_bulk(eigenvalues, rows, columns)
    low, high = mp.edges(rows, columns, 0.05)
    assert fit.sigma == pytest.approx(0.05, rel=0.005)
    assert fit.upper_edge == pytest.approx(high, rel=0.01)
    if rows > columns:
        assert fit.lower_edge == pytest.approx(low, rel=0.01)
    assert fit.upper_edge == pytest.approx(eigenvalues.max(), rel=0.02)
    assert fit.num_spikes == 0
    assert fit.ks_distance < 0.02


def test_uniform_entries_have_the_same_law():
    weight = torch.rand(300, 600, generator=torch.Generator().manual_seed(0)) - 0.5
    fit = mp.fit_bulk(gram_eigenvalues(weight).numpy(), 600, 300)
    assert fit.sigma == pytest.approx(12**-0.5, rel=0.01)
    assert fit.num_spikes == 0


@pytest.mark.parametrize("spikes", [1, 5, 20])
def test_planted_spikes_are_counted_and_leave_the_bulk_alone(spikes):
    rows, columns = 500, 250
    left = torch.linalg.qr(gaussian(rows, spikes, seed=1))[0]
    right = torch.linalg.qr(gaussian(columns, spikes, seed=2))[0]
    weight = gaussian(rows, columns) + 80 * left @ right.T
    fit = mp.fit_bulk(gram_eigenvalues(weight).numpy(), rows, columns)
    assert fit.num_spikes == spikes
    assert fit.sigma == pytest.approx(1, rel=0.01)
    assert fit.ks_distance < 0.02


def test_threshold_is_exceeded_as_often_as_it_says():
    """By the Tracy-Widom law, of one matrix and of the largest of four."""
    largest = torch.stack(
        [
            gram_eigenvalues(torch.randn(4, 60, 40, generator=torch.Generator().manual_seed(s)))[:, 0]
            for s in range(300)
        ]
    )
    for level in (0.9, 0.99):
        below = (largest.flatten() < mp.spike_threshold(60, 40, 1.0, level=level)).double().mean().item()
        assert below == pytest.approx(level, abs=0.03)
        all_below = (largest.amax(1) < mp.spike_threshold(60, 40, 1.0, level=level, num_matrices=4)).double().mean()
        assert all_below.item() == pytest.approx(level, abs=0.05)
    assert mp.spike_threshold(60, 40, 1.0, level=0.01) == mp.edges(60, 40)[1]


def test_a_matrix_without_bulk_keeps_half_of_its_eigenvalues():
    eigenvalues = np.geomspace(1e-6, 1e6, 100)
    fit = mp.fit_bulk(eigenvalues, 200, 100)
    assert fit.num_spikes == 50
    assert fit.ks_distance > 0.2


@pytest.mark.parametrize("spikes", [0, 4])
def test_sigma_from_the_energy_agrees_with_the_whole_spectrum(spikes):
    rows, columns = 500, 250
    weight = gaussian(rows, columns, 0.2)
    if spikes:
        left = torch.linalg.qr(gaussian(rows, spikes, seed=1))[0]
        weight = weight + 20 * left @ torch.linalg.qr(gaussian(columns, spikes, seed=2))[0].T
    eigenvalues = gram_eigenvalues(weight).numpy()
    part = mp.fit_energy(eigenvalues[:30], rows, columns, float(eigenvalues.sum()))
    whole = mp.fit_bulk(eigenvalues, rows, columns)
    assert part.num_spikes == whole.num_spikes == spikes
    assert part.sigma == pytest.approx(whole.sigma, rel=0.01)
    assert np.isnan(part.ks_distance)


def test_one_eigenvalue_has_no_bulk():
    with pytest.raises(ValueError, match="expected at least two positive eigenvalues to fit a bulk, got 1"):
        mp.fit_bulk(np.ones(1), 3, 1)
