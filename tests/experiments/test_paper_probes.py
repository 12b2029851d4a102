"""The experiment on probes: intervals of differences in R2."""

import numpy as np
import pytest
from paper_probes import weighted_r2

from hf_sane.core._metrics import r2_score


def test_weights_count_networks_several_times():
    draw = np.random.default_rng(0)
    wanted, predicted = draw.normal(size=9), draw.normal(size=9)
    weights = np.array([[1] * 9, [0, 2, 1, 0, 3, 1, 0, 0, 2]])
    repeated = np.repeat(np.arange(9), weights[1])
    expected = [r2_score(predicted, wanted), r2_score(predicted[repeated], wanted[repeated])]
    assert weighted_r2(predicted, wanted, weights).tolist() == pytest.approx(expected)
