import itertools
import math

import evaluate
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_sane.core import RegressionMetrics, _metrics
from hf_sane.core._metrics import (
    kendall_tau,
    mean_absolute_error,
    r2_of_errors,
    r2_score,
    regression_scores,
)


@pytest.fixture(autouse=True)
def offline_cache(monkeypatch, tmp_path_factory):
    """No network, and nothing left in the user's cache."""
    folder = str(tmp_path_factory.getbasetemp() / "evaluate_cache")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", folder)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)


def values(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    references = generator.normal(size=count)
    return references + generator.normal(size=count), references


def naive_tau(predictions: np.ndarray, references: np.ndarray) -> float:
    concordant = discordant = tied_first = tied_second = 0
    for i, j in itertools.combinations(range(len(predictions)), 2):
        a, b = np.sign(predictions[i] - predictions[j]), np.sign(references[i] - references[j])
        concordant += a * b > 0
        discordant += a * b < 0
        tied_first += a == 0 and b != 0
        tied_second += b == 0 and a != 0
    pairs = concordant + discordant
    return (concordant - discordant) / np.sqrt((pairs + tied_first) * (pairs + tied_second))


@pytest.mark.parametrize("count", [2, 3, 10, 60])
@pytest.mark.parametrize("digits", [0, 8])  # with and without ties
def test_against_references(count, digits):
    predictions, references = (np.round(v, digits) for v in values(count, seed=3))
    assert np.ptp(predictions) > 0
    assert np.ptp(references) > 0
    assert kendall_tau(predictions, references) == pytest.approx(naive_tau(predictions, references))
    assert kendall_tau(predictions, references) == pytest.approx(stats.kendalltau(predictions, references)[0])
    assert r2_score(predictions, references) == pytest.approx(sklearn_metrics.r2_score(references, predictions))
    expected = sklearn_metrics.mean_absolute_error(references, predictions)
    assert mean_absolute_error(predictions, references) == pytest.approx(expected)


def test_perfect_and_useless_predictions():
    _, references = values(20)
    assert r2_score(references, references) == 1
    assert r2_score(np.full(20, references.mean()), references) == pytest.approx(0)
    assert kendall_tau(references, references) == pytest.approx(1)
    assert kendall_tau(-references, references) == pytest.approx(-1)
    assert mean_absolute_error(references + 0.25, references) == pytest.approx(0.25)


def test_all_scores_at_once():
    predictions, references = values(30)
    expected = {
        "r2": r2_score(predictions, references),
        "kendall_tau": kendall_tau(predictions, references),
        "mae": mean_absolute_error(predictions, references),
    }
    assert regression_scores(predictions, references) == expected
    ordered = regression_scores(predictions, references, ordered_by=-references)
    assert ordered == expected | {"kendall_tau": -expected["kendall_tau"]}


def test_r2_of_many_predictions():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    predictions = references + torch.randn(4, 20, 3, generator=generator, dtype=torch.float64)
    found = r2_of_errors(predictions - references, references)
    for problem, column in itertools.product(range(4), range(3)):
        expected = r2_score(predictions[problem, :, column].numpy(), references[:, column].numpy())
        assert found[problem, column].item() == pytest.approx(expected)


@pytest.mark.parametrize("load", [RegressionMetrics, lambda: evaluate.load(_metrics.__file__)])
def test_the_module_of_evaluate_agrees_with_the_functions(load):
    predictions, references = values(30)
    expected = pytest.approx(regression_scores(predictions, references))
    metric = load()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=predictions, references=references) == expected
    for part in (slice(0, 10), slice(10, 30)):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == expected


def test_values_without_spread():
    with pytest.raises(ValueError, match="R2 requires references that vary, got 3 without variance"):
        r2_score([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="R2 requires references that vary, got 0"):
        r2_score([], [])
    for predictions, references in [([1.0, 2.0], [1.0, 1.0]), ([], [])]:
        with pytest.raises(ValueError, match="Kendall's tau requires values that vary"):
            kendall_tau(predictions, references)
    assert math.isnan(kendall_tau([1.0, 1.0], [1.0, 2.0]))
    assert kendall_tau([1.0, 1.0], [1.0, 2.0], without_order=0.0) == 0
    with pytest.raises(ValueError, match="the mean absolute error requires at least one pair, got none"):
        mean_absolute_error([], [])
