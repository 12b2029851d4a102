"""Power-law fits: against plain loops, on known tails, scale-free, with ties, zeros and nothing at all."""

import math

import numpy as np
import pytest
import torch

from hf_sane.core._power_law import SCREEN_FROM, bootstrap_alpha, fit_power_law


def naive_fit(values, min_tail=2):
    """Every tail in plain loops: alpha, start, distance, size."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    best = (math.inf, math.nan, math.nan, 0)
    for start in np.unique(x[x > 0]):
        tail = x[x >= start]
        if len(tail) < min_tail or np.log(tail / start).sum() == 0:
            continue
        alpha = 1 + len(tail) / np.log(tail / start).sum()
        distance = max(abs(1 - (v / start) ** (1 - alpha) - (tail < v).sum() / len(tail)) for v in tail)
        if distance < best[0]:
            best = (distance, alpha, start, len(tail))
    return best[1], best[2], best[0], best[3]


def pareto(count, alpha, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_tail", [2, 7])
def test_against_plain_loops(seed, min_tail):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(5, 60, generator=generator, dtype=torch.float64).square()
    values[1, :20] = values[1, 20:40]  # ties
    values[2, :5] = 0
    values[3] = values[3].round(decimals=1)
    fit = fit_power_law(values, min_tail=min_tail)
    for row, sample in enumerate(values):
        alpha, start, distance, size = naive_fit(sample, min_tail)
        assert fit.alpha[row].item() == pytest.approx(alpha, rel=1e-9)
        assert fit.xmin[row].item() == start
        assert fit.ks_distance[row].item() == pytest.approx(distance, abs=1e-12)
        assert fit.tail_size[row].item() == size


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [SCREEN_FROM, 300, 700])
def test_screening_finds_the_same_tail(seed, count):
    """A single sample is screened, a row of several is not."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()
    values[: count // 3] *= 5
    values[:10] = values[10:20]
    alone, together = fit_power_law(values[None]), fit_power_law(values.expand(2, -1))
    assert alone.xmin[0] == together.xmin[0]
    assert alone.alpha[0] == together.alpha[0]
    assert alone.ks_distance[0].item() == pytest.approx(together.ks_distance[0].item(), abs=1e-12)
    assert alone.tail_size[0] == together.tail_size[0]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.5])
def test_known_tails_come_back(alpha):
    samples = torch.stack([pareto(4000, alpha, seed) for seed in range(3)])
    found = fit_power_law(samples, max_starts=64)
    assert (found.alpha - alpha).abs().max() < 0.1
    body = torch.rand(4000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mixed = fit_power_law(torch.cat([body, pareto(4000, alpha)])[None])
    error = (mixed.alpha - 1) / mixed.tail_size.sqrt()
    assert abs(mixed.alpha.item() - alpha) < 0.1 + 3 * error.item()
    assert 0.8 < mixed.xmin.item() < 3


def test_scale_does_not_matter_but_shape_does():
    values = pareto(400, 2.5)[None]
    fit, scaled = fit_power_law(values), fit_power_law(1e-3 * values)
    assert scaled.alpha.item() == pytest.approx(fit.alpha.item(), rel=1e-9)
    assert scaled.xmin.item() == pytest.approx(1e-3 * fit.xmin.item())
    assert fit_power_law(values.sqrt()).alpha.item() == pytest.approx(2 * fit.alpha.item() - 1, rel=1e-9)
    shuffled = values[:, torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(fit_power_law(shuffled).alpha, fit.alpha)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [-1.0, -2.0, 0.0], [3.0], []])
def test_no_tail_is_nan(values):
    fit = fit_power_law(torch.tensor([values]))
    assert fit.alpha.isnan().all()
    assert fit.xmin.isnan().all()
    assert fit.tail_size.tolist() == [0]


def test_few_starts_are_a_choice_among_all():
    values = pareto(500, 2.0)[None]
    best, some = fit_power_law(values), fit_power_law(values, max_starts=16)
    assert some.ks_distance >= best.ks_distance - 1e-12
    assert abs(some.alpha.item() - best.alpha.item()) < 0.3


def test_what_is_no_sample_is_refused():
    with pytest.raises(ValueError, match=r"expected finite values \[B, n\], got shape \[3\]"):
        fit_power_law(torch.ones(3))
    with pytest.raises(ValueError, match="with NaN"):
        fit_power_law(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="expected min_tail >= 2 and max_starts >= 1, got 1 and None"):
        fit_power_law(torch.ones(1, 3), min_tail=1)
    with pytest.raises(ValueError, match="got 2 and 0"):
        fit_power_law(torch.ones(1, 3), max_starts=0)


def test_bootstrap_covers_and_repeats():
    """Nineteen of twenty intervals should hold the truth; here at least 14 of 20 do, and more data narrows them."""
    covered, widths = 0, []
    for seed in range(20):
        alphas = bootstrap_alpha(pareto(300, 2.5, seed), 60)
        low, high = np.quantile(alphas.numpy(), [0.025, 0.975])
        covered += low <= 2.5 <= high
        widths.append(high - low)
    assert covered >= 14
    wide = bootstrap_alpha(pareto(2000, 2.5), 60)
    assert wide.quantile(0.975) - wide.quantile(0.025) < np.mean(widths)
    assert torch.equal(bootstrap_alpha(pareto(50, 2.5), 20, seed=3), bootstrap_alpha(pareto(50, 2.5), 20, seed=3))
    assert not torch.equal(bootstrap_alpha(pareto(50, 2.5), 20, seed=3), bootstrap_alpha(pareto(50, 2.5), 20, seed=4))
    assert len(bootstrap_alpha(torch.ones(5), 7)) == 0
