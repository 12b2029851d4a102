"""Phases at both sides of every threshold."""

import math

import pytest

from hf_sane.analysis._phases import suggest_phase
from hf_sane.core._marchenko_pastur import MarchenkoPasturFit


def bulk(distance=0.02, spikes=0):
    return MarchenkoPasturFit(1.0, 0.0, 4.0, 4.2, spikes, distance)


def tail(alpha=3.0, distance=0.05):
    return {"alpha": alpha, "tail_distance": distance}


@pytest.mark.parametrize(
    ("expected", "fit", "power", "positive", "partial"),
    [
        ("random-like", bulk(), tail(), 100, False),
        ("random-like", bulk(0.1), tail(), 90, False),
        ("rank-collapse", bulk(), tail(), 89, False),
        ("rank-collapse", None, None, 20, False),
        (None, None, None, 95, False),
        ("bulk+spikes", bulk(spikes=1), tail(), 100, False),
        ("bulk+spikes", bulk(spikes=10), tail(), 100, False),
        ("heavy-tailed", bulk(spikes=11), tail(), 100, False),
        ("heavy-tailed", bulk(0.11), tail(6.0, 0.15), 100, False),
        ("undecided", bulk(0.11), tail(6.1), 100, False),
        ("undecided", bulk(0.11), tail(3.0, 0.16), 100, False),
        ("undecided", bulk(0.11), {"tail_size": 0}, 100, False),
        ("undecided", bulk(math.nan), tail(), 20, True),
        (None, None, None, 20, True),
    ],
)
def test_thresholds(expected, fit, power, positive, partial):
    phase, evidence = suggest_phase(fit, power, positive, 100, is_partial=partial)
    assert phase == expected
    assert evidence
