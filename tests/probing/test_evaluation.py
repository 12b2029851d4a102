import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score

from hf_sane.probing._evaluation import probe_table
from hf_sane.probing._probes import RidgeProbe

COUNTS = {"train": 60, "validation": 30, "test": 40}


def zoo(seed: int = 0):
    """Two properties that one kind of features knows well, another a little, a third not at all."""
    generator = torch.Generator().manual_seed(seed)
    signal = {split: torch.randn(count, 2, generator=generator) for split, count in COUNTS.items()}

    def noisy(scale: float) -> dict[str, torch.Tensor]:
        return {split: s + scale * torch.randn(s.shape, generator=generator) for split, s in signal.items()}

    features = {
        "weights": noisy(30.0),
        "layer_statistics": noisy(1.0),
        "sane_mean": noisy(2.0),
        "sane_moments": noisy(0.1),
    }
    targets = {
        "test_accuracy": {split: s[:, 0].numpy() for split, s in signal.items()},
        "epoch": {split: (10 * s[:, 1]).numpy() for split, s in signal.items()},
    }
    return features, targets


def test_with_runs_penalty_and_best_features_are_chosen_by_leaving_runs_out():
    features, targets = zoo()
    runs = {split: [f"{split}-{index // 5}" for index in range(count)] for split, count in COUNTS.items()}
    table = probe_table(features, targets, runs=runs)
    names = np.concatenate([runs["train"], runs["validation"]])
    checked = 0
    for kind, parts in features.items():
        x = torch.cat([parts["train"], parts["validation"]])
        y = np.concatenate([targets["epoch"]["train"], targets["epoch"]["validation"]])
        probe = RidgeProbe.fit_runs(x, y, runs=names)
        assert table["epoch"][kind].validation_r2 == pytest.approx(probe.validation_r2[0])
        assert table["epoch"][kind].r2 == pytest.approx(probe.score(parts["test"], targets["epoch"]["test"])[0])
        checked += 1
    assert checked == 4
    assert table["epoch"]["sane_best"].features == "sane_moments"
    with pytest.raises(KeyError, match="'validation'"):
        probe_table(features, targets, runs={"train": runs["train"]})


def test_table_has_every_pair_and_the_scores_of_its_probe():
    features, targets = zoo()
    table = probe_table(features, targets)
    assert list(table) == ["test_accuracy", "epoch"]
    checked = 0
    for name, row in table.items():
        assert list(row) == [*features, "sane_best"]
        for kind in features:
            probe = RidgeProbe.fit(
                features[kind]["train"],
                targets[name]["train"],
                validation_features=features[kind]["validation"],
                validation_targets=targets[name]["validation"],
            )
            predicted, wanted = probe.predict(features[kind]["test"])[:, 0].numpy(), targets[name]["test"]
            result = row[kind]
            assert result.features == kind
            assert result.r2 == pytest.approx(r2_score(wanted, predicted))
            assert result.kendall_tau == pytest.approx(stats.kendalltau(predicted, wanted)[0])
            assert result.mae == pytest.approx(np.abs(predicted - wanted).mean())
            assert (result.penalty, result.num_features) == (probe.penalties[0], 2)
            assert result.validation_r2 == pytest.approx(probe.validation_r2[0])
            checked += 1
    assert checked == 8
    assert table["epoch"]["sane_moments"].r2 > 0.9 > table["epoch"]["sane_mean"].r2 > table["epoch"]["weights"].r2


@pytest.mark.parametrize("regressor", ["ridge", "logit_linear", "gradient_boosting"])
def test_intervals_are_as_wide_as_errors_on_validation_networks_say(regressor):
    features, targets = zoo()
    row = probe_table(features, targets, regressor=regressor)["epoch"]
    for result in row.values():
        assert 0.6 < result.coverage <= 1  # 40 test networks, at a level of .9
    assert row["sane_moments"].margin < 0.8 * row["weights"].margin
    assert row["sane_best"].margin == row[row["sane_best"].features].margin
    few = {name: {**parts, "validation": parts["validation"][:8]} for name, parts in features.items()}
    fewer = {name: {**parts, "validation": parts["validation"][:8]} for name, parts in targets.items()}
    short = probe_table(few, fewer, regressor=regressor)["epoch"]["weights"]
    assert (short.margin, short.coverage) == (None, None)


def test_intervals_are_those_of_the_chosen_probe():
    features, targets = zoo()
    result = probe_table(features, targets)["test_accuracy"]["layer_statistics"]
    parts, wanted = features["layer_statistics"], targets["test_accuracy"]
    probe = RidgeProbe.fit(
        parts["train"],
        wanted["train"],
        validation_features=parts["validation"],
        validation_targets=wanted["validation"],
    )
    errors = {s: np.abs(probe.predict(parts[s])[:, 0].numpy() - wanted[s]) for s in ("validation", "test")}
    assert result.margin == pytest.approx(sorted(errors["validation"])[27])  # the 28th of 30
    assert result.coverage == pytest.approx((errors["test"] <= result.margin).mean())


def test_best_is_chosen_by_validation_not_by_test():
    features, targets = zoo()
    good, bad = features["sane_moments"], features["weights"]
    features["sane_mean"] = {**good, "test": bad["test"]}  # perfect until the test
    features["sane_moments"] = {**features["layer_statistics"]}
    row = probe_table(features, targets)["test_accuracy"]
    assert row["sane_best"] == row["sane_mean"]
    assert row["sane_best"].r2 < row["sane_moments"].r2


def test_each_property_has_its_own_best():
    features, targets = zoo()
    swapped = {
        split: torch.stack([x[:, 0], torch.zeros(len(x))], dim=1) for split, x in features["sane_moments"].items()
    }
    features["sane_first"] = swapped
    features["sane_moments"] = {split: x[:, 1:] for split, x in features["sane_moments"].items()}
    table = probe_table(features, targets)
    assert table["test_accuracy"]["sane_best"].features == "sane_first"
    assert table["epoch"]["sane_best"].features == "sane_moments"


def test_no_row_of_the_best_without_candidates():
    features, targets = zoo()
    assert "sane_best" not in probe_table({"weights": features["weights"]}, targets)["epoch"]


def test_json():
    features, targets = zoo()
    result = probe_table(features, targets)["epoch"]["sane_best"].to_dict()
    assert json.loads(json.dumps(result))["features"] == "sane_moments"
    assert {"r2", "kendall_tau", "mae", "penalty", "num_features"} <= result.keys()


def test_features_that_say_nothing_have_no_tau():
    _, targets = zoo()
    constant = {split: torch.ones(count, 3) for split, count in COUNTS.items()}
    result = probe_table({"constant": constant}, targets)["epoch"]["constant"]
    assert math.isnan(result.kendall_tau)
    assert result.r2 < 0.05


def test_errors():
    features, targets = zoo()
    with pytest.raises(ValueError, match=r"expected at least one kind of features and one property, got \[\]"):
        probe_table({}, targets)
    with pytest.raises(ValueError, match=r"'sane_moments'\], \[\]"):
        probe_table(features, {})
    with pytest.raises(KeyError, match=r"'weights' lacks the splits \['test'\]"):
        probe_table({"weights": {s: features["weights"][s] for s in ("train", "validation")}}, targets)
    with pytest.raises(KeyError, match=r"'epoch' lacks the splits \['train'\]"):
        probe_table(features, {"epoch": {s: targets["epoch"][s] for s in ("validation", "test")}})
    short = {**features["weights"], "test": features["weights"]["test"][:5]}
    with pytest.raises(ValueError, match="'weights' has test features of 5 networks, but targets of 40"):
        probe_table({"weights": short}, targets)
    with pytest.raises(ValueError, match=r"expected one target per network, \[M\], got \[60, 1\]"):
        probe_table(features, {"epoch": {s: t[:, None] for s, t in targets["epoch"].items()}})
    with pytest.raises(ValueError, match="R2 requires references that vary, got 40"):
        probe_table(features, {"epoch": {**targets["epoch"], "test": np.ones(40)}})
