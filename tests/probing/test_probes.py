import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from hf_sane.probing._probes import PENALTIES, RidgeProbe, conformal_margins

X, Y = torch.arange(12.0).view(6, 2).square(), torch.arange(6.0)


def problem(num_networks: int, num_features: int, num_targets: int = 2, seed: int = 0):
    """Train and validation features with very different scales and offsets, targets partly linear in them."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** torch.linspace(-3, 3, num_features)
    weight = torch.randn(num_features, num_targets, generator=generator)
    parts = []
    for count in (num_networks, 40):
        x = torch.randn(count, num_features, generator=generator)
        noise = torch.randn(count, num_targets, generator=generator)
        parts.append((x * scales + 5, x @ weight / num_features**0.5 + 0.3 * noise + 7))
    return parts


def fit(train, valid, **settings) -> RidgeProbe:
    return RidgeProbe.fit(*train, validation_features=valid[0], validation_targets=valid[1], **settings)


@pytest.mark.parametrize(
    ("num_networks", "num_features"), [(50, 1), (50, 10), (50, 49), (50, 50), (50, 51), (20, 300)]
)
@pytest.mark.parametrize("penalty", [1e-4, 1.0, 100.0])
def test_same_as_scikit_learn_in_primal_and_dual_form(num_networks, num_features, penalty):
    train, valid = problem(num_networks, num_features)
    probe = fit(train, valid, penalties=[penalty])
    x = train[0].double()
    mean, std = x.mean(0), x.std(0, unbiased=False)
    reference = Ridge(alpha=penalty * num_networks).fit(((x - mean) / std).numpy(), train[1].double().numpy())
    expected = reference.predict(((valid[0].double() - mean) / std).numpy())
    np.testing.assert_allclose(probe.predict(valid[0]).numpy(), expected, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(probe.weight.numpy(), reference.coef_.T.reshape(num_features, 2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_features", [5, 200])
def test_each_property_gets_the_penalty_that_is_best_on_validation(num_features):
    train, valid = problem(60, num_features, num_targets=4)
    train[1][:, 3] = torch.randn(60, generator=torch.Generator().manual_seed(1))  # nothing to learn
    probe = fit(train, valid)
    for target in range(4):
        scores = {
            penalty: RidgeProbe.fit(
                train[0],
                train[1][:, target],
                validation_features=valid[0],
                validation_targets=valid[1][:, target],
                penalties=[penalty],
            ).validation_r2[0]
            for penalty in PENALTIES
        }
        assert probe.penalties[target] == max(scores, key=scores.get)
        assert probe.validation_r2[target] == pytest.approx(max(scores.values()))


def test_validation_r2_and_score_are_r2():
    train, valid = problem(60, 5)
    probe = fit(train, valid)
    expected = [r2_score(valid[1][:, i], probe.predict(valid[0])[:, i]) for i in range(2)]
    assert probe.score(*valid) == pytest.approx(expected)
    assert list(probe.validation_r2) == pytest.approx(expected)


@pytest.mark.parametrize("num_features", [4, 90])
def test_units_of_features_and_targets_do_not_matter(num_features):
    train, valid = problem(60, num_features)
    factor = 10 ** torch.linspace(-5, 5, num_features, dtype=torch.float64)
    plain = fit(train, valid).predict(valid[0])
    other = fit((train[0] * factor - 3, train[1] * 100), (valid[0] * factor - 3, valid[1] * 100))
    torch.testing.assert_close(other.predict(valid[0] * factor - 3), plain * 100, rtol=1e-6, atol=1e-6)


def test_repeating_the_networks_changes_nothing():
    train, valid = problem(30, 8)
    twice = fit((train[0].repeat(2, 1), train[1].repeat(2, 1)), valid)
    torch.testing.assert_close(twice.predict(valid[0]), fit(train, valid).predict(valid[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_networks", [10, 100])
def test_constant_and_repeated_features_do_no_harm(num_networks):
    train, valid = problem(num_networks, 20)
    padded = [(torch.cat([x, torch.full((len(x), 3), 1e6), x[:, :2]], dim=1), y) for x, y in (train, valid)]
    probe = fit(*padded)
    assert probe.weight.isfinite().all()
    assert probe.weight[20:23].abs().max() < 1e-9


def test_noise_features_shrink_to_the_mean():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 400, generator=generator), torch.randn(80, generator=generator)
    other = torch.randn(80, 400, generator=generator), torch.randn(80, generator=generator)
    probe = RidgeProbe.fit(x, y, validation_features=other[0], validation_targets=other[1])
    assert -0.1 < probe.validation_r2[0] < 0.1


def test_takes_numpy_and_any_precision():
    train, valid = problem(30, 4)
    from_numpy = fit(*[(x.double().numpy(), y.half().numpy()) for x, y in (train, valid)])
    torch.testing.assert_close(
        from_numpy.predict(valid[0].numpy()), fit(train, valid).predict(valid[0]), rtol=1e-2, atol=1e-2
    )


def test_save_and_load_exactly(tmp_path):
    train, valid = problem(30, 4)
    probe = fit(train, valid, names=["accuracy", "epoch"])
    probe.save_pretrained(tmp_path / "new" / "probe")
    loaded = RidgeProbe.from_pretrained(tmp_path / "new" / "probe")
    assert torch.equal(loaded.predict(valid[0]), probe.predict(valid[0]))
    assert (loaded.penalties, loaded.validation_r2, loaded.names) == (
        probe.penalties,
        probe.validation_r2,
        ("accuracy", "epoch"),
    )
    assert loaded.margins == probe.margins
    names = sorted(path.name for path in (tmp_path / "new" / "probe").iterdir())
    assert names == ["hf_sane_manifest.json", "probe.json", "probe.safetensors"]


@pytest.mark.parametrize("count", [9, 8])
def test_margins_are_saved_if_they_are_known_or_not_and_may_be_missing(count, tmp_path):
    train, valid = problem(30, 4)
    few = [part[:count] for part in valid]
    probe = fit(train, few)
    probe.save_pretrained(tmp_path / "probe")
    assert RidgeProbe.from_pretrained(tmp_path / "probe").margins == probe.margins
    errors = (probe.predict(few[0]) - few[1].double()).abs()
    expected = errors.max(dim=0).values.tolist() if count == 9 else [math.inf, math.inf]
    assert probe.margins == pytest.approx(expected)
    older = {**json.loads((tmp_path / "probe" / "probe.json").read_text())}
    del older["margins"]
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "probe.json").write_text(json.dumps(older))
    (tmp_path / "older" / "probe.safetensors").write_bytes((tmp_path / "probe" / "probe.safetensors").read_bytes())
    assert RidgeProbe.from_pretrained(tmp_path / "older").margins == ()


@pytest.mark.parametrize(("count", "level", "place"), [(9, 0.9, 8), (19, 0.9, 17), (39, 0.9, 35), (4, 0.5, 2)])
def test_margins_are_the_conformal_quantile_of_absolute_errors(count, level, place):
    errors = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [sorted(abs(value) for value in column)[place] for column in errors.T.tolist()]
    assert conformal_margins(errors, level) == pytest.approx(expected)


def test_margins_hold_as_many_new_networks_as_they_should():
    """Averaged over many draws, the share of new networks is the level; with margins half as wide it is not."""
    generator = torch.Generator().manual_seed(0)
    inside = {1.0: 0, 0.5: 0}
    for _ in range(400):
        errors = torch.randn(60, 1, generator=generator) ** 3
        (margin,) = conformal_margins(errors[:49])
        for factor in inside:
            inside[factor] += int((errors[49:].abs() <= factor * margin).sum())
    assert inside[1.0] / (400 * 11) == pytest.approx(0.9, abs=0.02)
    assert inside[0.5] / (400 * 11) < 0.85


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no probe in .*'probe.safetensors', 'probe.json'\] missing"):
        RidgeProbe.from_pretrained(tmp_path)


def refitted_without(run, features, targets, runs, penalty):
    """A ridge regression that never sees a run, on the scale and with the penalty of the whole."""
    x, y = features.double(), targets.double()
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    kept = [index for index, name in enumerate(runs) if name != run]
    reference = Ridge(alpha=penalty * len(x)).fit(x[kept].numpy(), y[kept].numpy())
    left = [index for index, name in enumerate(runs) if name == run]
    return left, reference.predict(x[left].numpy())


@pytest.mark.parametrize("num_features", [3, 100])
@pytest.mark.parametrize("penalty", [1e-4, 0.1])
def test_left_out_runs_are_predicted_as_by_refits_without_them(num_features, penalty):
    x, y = problem(30, num_features)[0]
    runs = ["a"] * 7 + ["b"] * 7 + ["c"] * 9 + ["d"] + ["e"] * 6
    probe = RidgeProbe.fit_runs(x, y, runs=runs, penalties=[penalty])
    predicted = np.full((30, 2), np.nan)
    for run in set(runs):
        left, values = refitted_without(run, x, y, runs, penalty)
        predicted[left] = values
    expected = r2_score(y.double().numpy(), predicted, multioutput="raw_values")
    np.testing.assert_allclose(probe.validation_r2, expected, rtol=1e-6, atol=1e-6)
    whole = fit((x, y), (x, y), penalties=[penalty])
    torch.testing.assert_close(probe.weight, whole.weight)  # the final probe is fitted on all networks


def test_runs_are_left_out_whole():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 30, generator=generator).repeat_interleave(6, dim=0)  # a run's networks are alike ...
    y = torch.randn(10, generator=generator).repeat_interleave(6)  # ... and knowing one gives the others away
    x += 0.01 * torch.randn(x.shape, generator=generator)
    by_run = RidgeProbe.fit_runs(x, y, runs=np.arange(10).repeat(6))
    by_network = RidgeProbe.fit_runs(x, y, runs=np.arange(60))
    assert by_network.validation_r2[0] > 0.9
    assert by_run.validation_r2[0] < 0.3


def test_each_property_gets_the_penalty_that_is_best_on_left_out_runs():
    x, y = problem(40, 60, num_targets=3)[0]
    y[:, 2] = torch.randn(40, generator=torch.Generator().manual_seed(1))
    runs = np.arange(40) // 4
    scores = torch.tensor([RidgeProbe.fit_runs(x, y, runs=runs, penalties=[p]).validation_r2 for p in PENALTIES])
    probe = RidgeProbe.fit_runs(x, y, runs=runs)
    assert probe.validation_r2 == pytest.approx(scores.max(dim=0).values.tolist())
    assert probe.penalties[2] > max(probe.penalties[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ["a"] * 6}, r"at least two runs, got 6 names of 1 run; with a single run, use fit"),
        ({"runs": ["a", "b"]}, "expected the run of each of 6 networks, and at least two runs, got 2 names of 2"),
        ({"features": X * torch.nan}, "probed features are not finite for networks"),
        ({"targets": torch.ones(6)}, r"targets of properties \[0\] are all equal"),
        ({"penalties": [-1.0]}, "expected at least one penalty, all positive"),
        ({"names": ["a", "b"]}, "one name for each of 1 properties, got 2 names"),
    ],
)
def test_fit_runs_errors(changes, message):
    settings = {"features": X, "targets": Y, "runs": [0, 0, 1, 1, 2, 2], **changes}
    with pytest.raises(ValueError, match=message):
        RidgeProbe.fit_runs(settings.pop("features"), settings.pop("targets"), **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": X[:5]},
            r"expected training features \[M, F\] and targets \[M\] or \[M, T\] .* got \[5, 2\] and \[6, 1\]",
        ),
        ({"features": X[:, 0]}, r"got \[6\] and \[6, 1\]"),
        ({"features": X[:0], "targets": Y[:0]}, "of at least one network"),
        ({"validation_targets": Y[:4]}, "expected validation features"),
        ({"validation_features": X[:, :1]}, "training has 2 features and 1 properties, validation 1 and 1"),
        (
            {"features": X / torch.tensor([1.0, 0.0])},
            r"training features are not finite for networks \[0, 1, 2, 3, 4, 5\]",
        ),
        ({"validation_targets": Y.log()}, r"validation targets are not finite for networks \[0\]"),
        ({"validation_targets": torch.ones(6)}, r"validation targets of properties \[0\] are all equal"),
        ({"validation_targets": torch.ones(6), "names": ["epoch"]}, r"properties \['epoch'\] are all equal"),
        ({"penalties": [1.0, 0.0]}, r"expected at least one penalty, all positive, got \[1.0, 0.0\]"),
        ({"penalties": []}, r"got \[\]"),
        ({"names": ["a", "b"]}, "one name for each of 1 properties, got 2 names"),
    ],
)
def test_fit_errors(changes, message):
    settings = {"features": X, "targets": Y, "validation_features": X, "validation_targets": Y, **changes}
    with pytest.raises(ValueError, match=message):
        RidgeProbe.fit(settings.pop("features"), settings.pop("targets"), **settings)


def test_predict_and_score_errors():
    probe = RidgeProbe.fit(X, Y, validation_features=X, validation_targets=Y)
    with pytest.raises(ValueError, match=r"the probe was fitted on 2 features, got \[6, 3\]; use the same pooling"):
        probe.predict(torch.zeros(6, 3))
    with pytest.raises(ValueError, match="R2 requires targets that vary"):
        probe.score(X, torch.ones(6))
