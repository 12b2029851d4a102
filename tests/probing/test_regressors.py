"""Regressors behind the interface of the ridge probe: what each can learn that a line cannot, and what it refuses."""

import builtins

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from hf_sane.probing._evaluation import probe_table
from hf_sane.probing._probes import RidgeProbe
from hf_sane.probing._regressors import MARGIN, BoostedTrees, LogitLinearProbe
from hf_sane.probing._runs import fold_of_runs
from hf_sane.probing._transfer import transfer_table


def split_up(features, targets):
    """Training, validation and test thirds."""
    thirds = np.array_split(np.arange(len(features)), 3)
    return [(features[part], targets[part]) for part in thirds]


def fit(kind, train, valid, **settings):
    return kind.fit(*train, validation_features=valid[0], validation_targets=valid[1], **settings)


def r2(probe, test):
    guess = probe.predict(test[0])[:, 0].numpy()
    return 1 - np.square(guess - test[1]).sum() / np.square(test[1] - test[1].mean()).sum()


@pytest.fixture
def saturated():
    """Targets that are a sigmoid of a line, as accuracies between chance and perfect."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 4))
    return split_up(features, 0.1 + 0.85 * expit(3 * features @ np.array([1.0, -1.0, 0.5, 0.0])))


@pytest.fixture
def stepped():
    """Targets that jump with an interaction of two features, which no line sees."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(600, 3))
    return split_up(features, (features[:, 0] * features[:, 1] > 0).astype(float))


def test_a_logit_linear_probe_bends_where_targets_do(saturated):
    train, valid, test = saturated
    bent, straight = fit(LogitLinearProbe, train, valid), fit(RidgeProbe, train, valid)
    assert r2(bent, test) > 0.97 > 0.9 > r2(straight, test)
    assert bent.predict(1000 * test[0]).min() >= train[1].min() - 1e-9
    assert bent.predict(1000 * test[0]).max() <= train[1].max() + 1e-9


def test_a_logit_linear_probe_is_the_ridge_of_the_logits(saturated):
    train, valid, test = saturated
    probe = fit(LogitLinearProbe, train, valid, penalties=[0.1])
    low, high = train[1].min(), train[1].max()
    logits = [logit(np.clip((part[1] - low) / (high - low), MARGIN, 1 - MARGIN)) for part in (train, valid)]
    ridge = fit(RidgeProbe, (train[0], logits[0]), (valid[0], logits[1]), penalties=[0.1])
    expected = low + (high - low) * expit(ridge.predict(test[0]).numpy())
    np.testing.assert_allclose(probe.predict(test[0]).numpy(), expected, rtol=1e-12)


def test_each_property_gets_the_penalty_that_is_best_after_the_sigmoid(saturated):
    train, valid, _ = saturated
    noise = np.random.default_rng(2).normal(size=len(train[1]))
    both = [(part[0], np.stack([part[1], noise[: len(part[1])]], axis=1)) for part in (train, valid)]
    probe = fit(LogitLinearProbe, *both, penalties=[1e-4, 1.0, 100.0])
    alone = [
        fit(LogitLinearProbe, *((x, y[:, column]) for x, y in both), penalties=[1e-4, 1.0, 100.0]) for column in (0, 1)
    ]
    for column, single in enumerate(alone):
        assert probe.settings[column] == single.settings[0]
        assert probe.validation_r2[column] == pytest.approx(single.validation_r2[0])
        torch.testing.assert_close(probe.predict(both[1][0])[:, column], single.predict(both[1][0])[:, 0])
    assert probe.settings[1]["penalty"] == 100.0  # nothing to learn


def test_boosted_trees_see_interactions(stepped):
    train, valid, test = stepped
    trees = fit(BoostedTrees, train, valid)
    assert r2(trees, test) > 0.6 > 0.2 > r2(fit(RidgeProbe, train, valid), test)
    assert trees.settings[0].keys() == {"leaves", "learning_rate", "rounds"}
    assert torch.equal(trees.predict(test[0]), fit(BoostedTrees, train, valid).predict(test[0]))


def test_boosted_trees_choose_on_validation_networks(stepped):
    train, valid, _ = stepped
    grid = [(2, 0.01, 1), (31, 0.1, 100)]
    scores = [fit(BoostedTrees, train, valid, grid=[candidate]).validation_r2[0] for candidate in grid]
    chosen = fit(BoostedTrees, train, valid, grid=grid)
    assert scores[1] > scores[0]
    assert chosen.validation_r2[0] == scores[1]
    assert chosen.settings[0]["rounds"] == 100


def test_boosted_trees_of_runs_choose_on_some_runs_and_use_the_columns_that_correlate(stepped):
    (x, y), _, test = stepped
    runs = np.arange(len(y)) // 4
    noise = np.random.default_rng(3).normal(size=(len(y), 5))
    trees = BoostedTrees.fit_runs(x, y, runs=runs, grid=[(7, 0.1)], max_rounds=50)
    assert r2(trees, test) > 0.5
    assert 0.4 < trees.validation_r2[0] < 1
    held = fold_of_runs(runs, 4) == 0
    part = BoostedTrees.fit_runs(x[~held], y[~held], runs=runs[~held], grid=[(7, 0.1)], max_rounds=50)
    assert not torch.equal(part.predict(test[0]), trees.predict(test[0]))  # all networks are fitted in the end
    targets = np.stack([x[:, 0] + 1e-3 * y, x[:, 2] - 1e-3 * y], axis=1)
    wide = BoostedTrees.fit_runs(
        np.hstack([noise, x]), targets, runs=runs, grid=[(7, 0.1)], max_rounds=50, max_columns=1
    )
    assert [columns.tolist() for columns in wide.columns] == [[5], [7]]
    known = wide.predict(np.hstack([noise, x])).numpy()
    assert (1 - np.square(known - targets).mean(axis=0) / targets.var(axis=0) > 0.9).all()
    with pytest.raises(ValueError, match="expected at least 4 training runs"):
        BoostedTrees.fit_runs(x, y, runs=np.zeros(len(y)))


@pytest.mark.parametrize("regressor", ["ridge", "logit_linear", "gradient_boosting"])
def test_tables_take_any_regressor(saturated, regressor):
    features = {"sane_mean": dict(zip(("train", "validation", "test"), (part[0] for part in saturated), strict=True))}
    targets = {"accuracy": dict(zip(("train", "validation", "test"), (part[1] for part in saturated), strict=True))}
    row = probe_table(features, targets, regressor=regressor)["accuracy"]
    assert row["sane_mean"].r2 > 0.7
    assert (row["sane_mean"].penalty is None) == (regressor == "gradient_boosting")
    with pytest.raises(
        ValueError, match="expected a regressor, one of ridge, logit_linear, gradient_boosting, got 'oracle'"
    ):
        probe_table(features, targets, regressor="oracle")


def test_transfer_sees_order_where_level_differs(saturated):
    """Zoo `easier` has the same law with higher accuracies: ranks carry over, values do not."""
    splits = ("train", "validation", "test")
    features = {
        zoo: {"sane_mean": dict(zip(splits, (part[0] for part in saturated), strict=True))} for zoo in ("a", "easier")
    }
    targets = {
        "a": dict(zip(splits, (0.2 * part[1] for part in saturated), strict=True)),
        "easier": dict(zip(splits, (0.7 + 0.3 * part[1] for part in saturated), strict=True)),
    }
    table = transfer_table(features, targets, regressor="logit_linear")["sane_mean"]
    assert table["a"]["a"].r2 > 0.97
    assert table["easier"]["easier"].r2 > 0.97
    assert table["a"]["easier"].r2 < 0
    assert table["a"]["easier"].kendall_tau > 0.95
    assert table["a"]["easier"].mae > 0.5
    ranks = transfer_table(features, targets, ranks=True)["sane_mean"]
    assert ranks["a"]["easier"].r2 > 0.9  # scores within a zoo know nothing of its level
    assert ranks["a"]["easier"].kendall_tau > 0.95
    few = [(7, 0.1, 2)]
    trees = transfer_table(features, targets, regressor="gradient_boosting", grid=few)["sane_mean"]["a"]["a"]
    assert 0 < trees.r2 < 0.6  # two rounds cannot do more
    assert table["a"]["easier"].to_dict().keys() == {"r2", "kendall_tau", "mae"}


def test_errors(saturated, monkeypatch):
    train, valid, test = saturated
    with pytest.raises(ValueError, match="requires training targets that vary"):
        fit(LogitLinearProbe, (train[0], np.ones(len(train[0]))), valid)
    trees = fit(BoostedTrees, train, valid, grid=[(7, 0.1, 5)])
    with pytest.raises(ValueError, match=r"the probe was fitted on 4 features, got \[200, 3\]; use the same pooling"):
        trees.predict(test[0][:, :3])
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinite values; leave those"):
        trees.predict(test[0] * np.nan)
    with pytest.raises(ValueError, match="R2 requires references that vary"):
        fit(BoostedTrees, train, (valid[0], np.ones(len(valid[0]))), grid=[(7, 0.1, 5)])
    with pytest.raises(ValueError, match="expected at least one candidate"):
        fit(BoostedTrees, train, valid, grid=[])
    with pytest.raises(ValueError, match=r"training features are not finite for networks \[0, 1, 2"):
        fit(BoostedTrees, (train[0] * np.nan, train[1]), valid)
    zoo = {"sane_mean": {"train": train[0], "validation": valid[0], "test": test[0]}}
    labels = {"train": train[1], "validation": valid[1], "test": test[1]}
    with pytest.raises(ValueError, match="expected features and targets of the same zoos, at least two"):
        transfer_table({"a": zoo}, {"a": labels})
    with pytest.raises(ValueError, match="expected a regressor, one of"):
        transfer_table({"a": zoo, "b": zoo}, {"a": labels, "b": labels}, regressor="oracle")
    broken = {"sane_mean": {**zoo["sane_mean"], "test": test[0] * np.nan}}
    with pytest.raises(ValueError, match="'sane_mean' of the test networks of b is not finite"):
        transfer_table({"a": zoo, "b": broken}, {"a": labels, "b": labels})
    narrow = {"sane_mean": {split: part[:, :2] for split, part in zoo["sane_mean"].items()}}
    with pytest.raises(ValueError, match="'sane_mean' differs between zoos: features"):
        transfer_table({"a": zoo, "b": narrow}, {"a": labels, "b": labels})
    real = builtins.__import__

    def without_sklearn(name, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r"boosted trees require scikit-learn: pip install 'hf_sane\[analysis\]'"):
        fit(BoostedTrees, train, valid)
