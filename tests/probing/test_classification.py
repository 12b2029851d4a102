"""Nested left-out probes against loops of refits, and against data with and without anything to find."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hf_sane.probing._classification import (
    PENALTIES,
    classify_left_out,
    predict_left_out,
    regress_left_out,
)
from hf_sane.probing._probes import RidgeProbe

GROUPS = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(num_features=5, strength=3.0, copies=6):
    """Three labels, each group of three networks has one of each; the first features know them."""
    labels = ["a", "b", "c"] * copies
    groups = [index // 3 for index in range(len(labels))]
    x = draw(len(labels), num_features)
    for index, label in enumerate(labels):
        x[index, "abc".index(label)] += strength
    return x, labels, groups


@pytest.mark.parametrize("num_features", [3, 40])
def test_predictions_are_those_of_refits_without_the_group(num_features):
    x, y = draw(14, num_features), draw(14, 2, seed=1)
    found = predict_left_out({"x": x}, y, groups=GROUPS)
    names = np.array(GROUPS)
    for group in range(8):
        train = torch.from_numpy(names != group)
        probe = RidgeProbe.fit_runs(x[train], y[train], runs=names[names != group], penalties=PENALTIES)
        torch.testing.assert_close(found.values["x"][~train], probe.predict(x[~train]))
    assert list(found.values) == ["x"]
    assert found.chosen == ["x"] * 8


def test_targets_of_the_group_that_is_predicted_do_not_count():
    x, y = draw(14, 3), draw(14, 1, seed=1)
    changed = y.clone()
    changed[3:6] += 100
    before, after = (predict_left_out({"x": x}, part, groups=GROUPS).values["x"] for part in (y, changed))
    torch.testing.assert_close(before[3:6], after[3:6], rtol=0, atol=0)
    assert not torch.allclose(before[:3], after[:3])


def test_problems_side_by_side_are_problems_alone():
    x, rival = draw(14, 3), draw(14, 4, seed=2)
    y = draw(14, 3, 2, seed=1)
    together = predict_left_out({"x": x, "rival": rival}, y, groups=GROUPS)
    for problem in range(3):
        alone = predict_left_out({"x": x, "rival": rival}, y[:, problem], groups=GROUPS)
        for name in ("x", "rival", "best"):
            torch.testing.assert_close(together.values[name][:, problem], alone.values[name])
    assert set(together.chosen) <= {"x", "rival"}


def test_the_best_candidate_is_chosen_without_the_group():
    y = draw(14, 1, seed=1)
    good, bad = y + 0.01 * draw(14, 1, seed=2), draw(14, 3)
    found = predict_left_out({"bad": bad, "good": good}, y, groups=GROUPS)
    assert found.chosen == ["good"] * 8
    assert found.counts("best") == {"good": 8}
    assert found.counts("good") == {}
    torch.testing.assert_close(found.values["best"], found.values["good"])
    spoiled = y.clone()
    spoiled[0:2] += 50  # on the first group alone the good candidate fails; that may not tell
    again = predict_left_out({"bad": bad, "good": good}, spoiled, groups=GROUPS)
    assert again.chosen[0] == "good"


def test_each_network_is_predicted_from_its_own_view():
    y, views = draw(14, 1), [draw(14, 3, seed=1), draw(14, 3, seed=2)]
    view_of = [index % 2 for index in range(14)]
    mixed = predict_left_out({"x": views}, y, groups=GROUPS, view_of=view_of).values["x"]
    for view, matrix in enumerate(views):
        alone = predict_left_out({"x": matrix}, y, groups=GROUPS).values["x"]
        mine = torch.tensor(view_of) == view
        torch.testing.assert_close(mixed[mine], alone[mine])
        assert not torch.allclose(mixed[~mine], alone[~mine])


def test_what_is_missing_counts_as_the_mean_of_the_others():
    x, y = draw(14, 3), draw(14, 1, seed=1)
    holes = x.clone()
    holes[2:5, 1] = torch.nan
    holes[:, 2] = torch.nan
    holes[7, 2] = 4.0  # known of one network: useless without it
    found = predict_left_out({"x": holes}, y, groups=GROUPS).values["x"]
    names = np.array(GROUPS)
    for group in range(8):
        train = torch.from_numpy(names != group)
        filled = torch.where(holes.isnan(), holes[train].nanmean(dim=0), holes)
        filled = filled[:, : 3 if train[7] else 2]
        expected = predict_left_out({"x": filled}, y, groups=GROUPS).values["x"]
        torch.testing.assert_close(found[~train], expected[~train])


def test_labels_that_features_know_are_found():
    x, labels, groups = labelled(strength=8.0)
    found = classify_left_out({"x": x}, labels, groups=groups, num_permutations=40, strata=groups)["x"]
    assert found.accuracy == 1
    assert found.confusion == {label: {label: 6} for label in "abc"}
    low, high = stats.binomtest(18, 18).proportion_ci(method="wilson")
    assert found.interval == (low, high)
    assert found.p_value == pytest.approx(1 / 41)
    assert found.permuted_mean < 0.6 < found.accuracy
    assert found.to_dict()["chosen"] == {}


def test_labels_that_features_do_not_know_are_not_found():
    _, labels, groups = labelled()
    found = classify_left_out({"x": draw(18, 4, seed=9)}, labels, groups=groups, num_permutations=60, strata=groups)
    assert found["x"].p_value > 0.05
    assert found["x"].permuted_mean == pytest.approx(1 / 3, abs=0.12)
    assert found["x"].accuracy < 0.7


def test_leaving_single_networks_out_of_equal_counts_puts_chance_at_zero():
    x, labels, groups = labelled(copies=3)
    alone = classify_left_out({"x": x}, labels, groups=range(9))["x"]
    assert alone.chance == 0  # the label that is left out is the rarest of the others
    assert classify_left_out({"x": x}, labels, groups=groups)["x"].chance == pytest.approx(1 / 3)
    assert alone.p_value is alone.permuted_mean is alone.permuted_high is None


def test_several_candidates_and_the_best_of_them():
    x, labels, groups = labelled(strength=8.0)
    found = classify_left_out({"noise": draw(18, 4, seed=9), "x": x}, labels, groups=groups)
    assert list(found) == ["noise", "x", "best"]
    assert found["best"].chosen == {"x": 6}
    assert found["best"].accuracy == found["x"].accuracy > found["noise"].accuracy


def test_permuted_labels_stay_in_strata_and_units_stay_whole():
    """Labels that are their stratum's, or that fill a unit, leave little or nothing to permute."""
    x, _, groups = labelled()
    strata = [index % 3 for index in range(18)]
    labels = [f"l{stratum}" for stratum in strata]
    fixed = classify_left_out({"x": x}, labels, groups=groups, strata=strata, num_permutations=5)["x"]
    assert fixed.p_value == 1
    assert fixed.permuted_mean == fixed.accuracy
    units = [index // 3 for index in range(18)]
    by_unit = ["a" if unit % 2 else "b" for unit in units]
    found = classify_left_out({"x": x}, by_unit, groups=groups, units=units, num_permutations=200)["x"]
    # 20 ways to give three of six units a label: some permutation is the labels themselves
    assert found.p_value > 1 / 201


def test_permutations_that_leave_a_label_to_one_group_are_passed_over():
    labels = ["a", "a", "b", "b", "b", "b"]
    units = groups = [0, 1, 2, 2, 3, 3]
    found = classify_left_out({"x": draw(6, 2)}, labels, groups=groups, units=units, num_permutations=30)["x"]
    assert 0 < found.p_value <= 1


def test_numbers_that_features_know_are_found():
    y = torch.arange(14.0)
    found = regress_left_out({"x": y[:, None] + 0.01 * draw(14, 1)}, y, groups=GROUPS, num_permutations=40)["x"]
    assert found.r2 > 0.99
    assert found.kendall_tau == pytest.approx(1)
    assert found.p_value == pytest.approx(1 / 41)
    assert found.permuted_high < 0.9
    both = regress_left_out({"x": y[:, None], "y": draw(14, 1)}, y, groups=GROUPS)
    assert both["best"].chosen == {"x": 8}
    assert both["best"].to_dict()["permuted_mean"] is None


def test_a_probe_that_knows_nothing_is_below_zero():
    found = regress_left_out({"x": torch.zeros(14, 1)}, torch.arange(14.0), groups=range(14))["x"]
    assert found.r2 < 0
    assert found.kendall_tau < 0
    equal = torch.tensor([0.0, 1.0]).repeat(3)  # the mean of the other groups is the same for all
    assert math.isnan(regress_left_out({"x": torch.zeros(6, 1)}, equal, groups=[0, 0, 1, 1, 2, 2])["x"].kendall_tau)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": {}}, "expected candidates, targets"),
        ({"groups": [0] * 7 + [1] * 7}, "names of 2 groups"),
        ({"groups": [0, 1, 2]}, "got \\['x'\\], \\[14, 1\\], 14 views and 3 names of 3 groups|3 names of 3 groups"),
        ({"targets": torch.zeros(14)}, "expected candidates, targets"),
        ({"view_of": [0]}, "1 views"),
        ({"view_of": [1] * 14}, "'x': expected at least 2 matrices \\[14, F\\], got \\[\\[14, 3\\]\\]"),
        ({"candidates": {"x": torch.zeros(3, 3)}}, "'x': expected at least 1 matrices"),
        ({"candidates": {"best": torch.zeros(14, 3)}}, "by other names than 'best'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    settings = {"candidates": {"x": draw(14, 3)}, "targets": draw(14, 1), "groups": GROUPS, **change}
    with pytest.raises(ValueError, match=message):
        predict_left_out(settings.pop("candidates"), settings.pop("targets"), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"] * 6}, "at least two labels, got \\['a'\\]"),
        ({"labels": ["a", "a", "b", "b", "b", "b"], "groups": [0, 0, 1, 2, 3, 4]}, "'a' occurs in one group only"),
        ({"groups": [0, 1]}, "one group name for each of 6 networks, got 2"),
        ({"units": [0, 0, 1, 1, 2, 2], "num_permutations": 1}, "have the same label and stratum"),
        ({"strata": [0, 1], "num_permutations": 1}, "one unit and stratum for each of 6 networks, got 6 and 2"),
    ],
)
def test_labels_that_cannot_be_judged_are_refused(change, message):
    settings = {"labels": ["a", "b"] * 3, "groups": range(6), **change}
    with pytest.raises(ValueError, match=message):
        classify_left_out({"x": draw(6, 2)}, settings.pop("labels"), **settings)


def test_numbers_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match="numbers \\[M\\] that are not all equal, got shape \\[6\\]"):
        regress_left_out({"x": draw(6, 2)}, torch.ones(6), groups=range(6))
