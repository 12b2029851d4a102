"""The choice between probes: by left-out runs, with settings chosen inside, and never by test networks."""

import numpy as np
import pytest
import torch

from hf_sane.core import Layout
from hf_sane.probing._choice import Candidate, choice_table, make_candidates
from hf_sane.probing._evaluation import probe_table
from hf_sane.probing._probes import RidgeProbe
from hf_sane.probing._runs import fold_of_runs
from hf_sane.probing._set_transformer import SetTransformerSettings
from hf_sane.probing._token_sets import TokenSets

COUNTS = {"train": 90, "validation": 30, "test": 60}
LAYOUT = Layout.from_state_dict({"fc.weight": torch.zeros(4, 2)}, token_dim=2)
QUICK = {
    "settings": SetTransformerSettings(members=2, width=8, heads=1, epochs=2),
    "trees": {"grid": [(7, 0.3)], "max_rounds": 20},
}


@pytest.fixture
def zoo():
    """A property that is linear in `weight_profile`, and one that is an interaction in `sane_mean`."""
    generator = torch.Generator().manual_seed(0)
    parts = {split: torch.randn(count, 3, generator=generator) for split, count in COUNTS.items()}
    features = {
        "weight_profile": {split: x[:, :2] for split, x in parts.items()},
        "sane_mean": {split: x[:, 1:] for split, x in parts.items()},
    }
    tokens = {
        "sane_tokens": {
            split: TokenSets.of_layout(torch.randn(len(x), 4, 2, generator=generator), LAYOUT)
            for split, x in parts.items()
        }
    }
    targets = {
        "straight": {split: (x[:, 0] + 0.1 * x[:, 2]).numpy() for split, x in parts.items()},
        "bent": {split: (x[:, 1] * x[:, 2] > 0).double().numpy() for split, x in parts.items()},
    }
    runs = {split: [f"{split} {index // 3}" for index in range(count)] for split, count in COUNTS.items()}
    return features, tokens, targets, runs


def test_each_property_gets_the_probe_that_predicts_left_out_runs(zoo):
    features, tokens, targets, runs = zoo
    table = choice_table(make_candidates(features, tokens, **QUICK), targets, runs=runs)
    rows = [f"{name}, {regressor}" for name in features for regressor in ("ridge", "gradient_boosting")]
    rows = [*rows, "sane_tokens, set_transformer", "sane_best", "weights_best", "best"]
    assert [list(row) for row in table.values()] == [rows, rows]
    straight, bent = table["straight"]["best"], table["bent"]["best"]
    assert (straight.features, straight.regressor) == ("weight_profile", "ridge")
    assert (bent.features, bent.regressor) == ("sane_mean", "gradient_boosting")
    assert table["bent"]["sane_best"] == bent
    assert table["bent"]["weights_best"].features == "weight_profile"
    assert bent.r2 > 0.3 > table["bent"]["sane_mean, ridge"].r2
    assert bent.penalty is None
    assert straight.penalty is not None
    assert 0.7 < straight.coverage <= 1


def test_left_out_runs_affect_neither_fit_nor_settings(zoo):
    features, _, targets, runs = zoo
    row = choice_table(make_candidates(features, {}, **QUICK), targets, runs=runs)["straight"]["weight_profile, ridge"]
    x = torch.cat([features["weight_profile"][split] for split in ("train", "validation")])
    y = np.concatenate([targets["straight"][split] for split in ("train", "validation")])
    names = np.array([*runs["train"], *runs["validation"]])
    folds = fold_of_runs(names, 4)
    errors = np.empty(len(y))
    for fold in range(4):
        out = folds == fold
        probe = RidgeProbe.fit_runs(x[~out], y[~out], runs=names[~out])
        errors[out] = probe.predict(x[out])[:, 0].numpy() - y[out]
    assert row.validation_r2 == pytest.approx(1 - np.square(errors).sum() / np.square(y - y.mean()).sum())
    assert row.margin == pytest.approx(np.sort(np.abs(errors))[int(np.ceil(121 * 0.9)) - 1])
    # The fit that is tested uses all networks, as in a table of ridge probes.
    plain = probe_table(features, targets, runs=runs)["straight"]["weight_profile"]
    assert (row.r2, row.penalty) == (pytest.approx(plain.r2), plain.penalty)


def test_test_networks_do_not_choose(zoo):
    features, tokens, targets, runs = zoo
    candidates = make_candidates(features, tokens, **QUICK)
    chosen = choice_table(candidates, targets, runs=runs)["straight"]["best"]
    features["weight_profile"]["test"] = -features["weight_profile"]["test"]
    fooled = choice_table(make_candidates(features, tokens, **QUICK), targets, runs=runs)["straight"]["best"]
    assert (fooled.features, fooled.regressor) == (chosen.features, chosen.regressor)
    assert fooled.r2 < 0 < chosen.r2


def test_a_candidate_never_sees_the_runs_that_it_predicts(zoo):
    features, _, targets, runs = zoo
    seen = []

    class Memory:
        validation_r2, settings, num_features, margins = (0.0,), ({},), 2, (1.0,)

        def predict(self, x):
            return torch.zeros(len(x), 1, dtype=torch.float64)

    def fit(x, y, names):
        seen.append(set(names))
        return Memory()

    only = {"straight": targets["straight"]}
    choice_table([Candidate("memory", "weight_profile", features["weight_profile"], fit)], only, runs=runs)
    known = {*runs["train"], *runs["validation"]}
    assert seen[0] == known
    assert len(seen) == 5
    left = [known - names for names in seen[1:]]
    assert sorted(name for names in left for name in names) == sorted(known)
    assert not known & set(runs["test"])


def test_without_folds_probes_are_scored_by_their_own_left_out_runs(zoo):
    features, _, targets, runs = zoo
    row = choice_table(make_candidates(features, {}, **QUICK), targets, runs=runs, nested=False)["straight"]
    plain = probe_table(features, targets, runs=runs)["straight"]["weight_profile"]
    found = row["weight_profile, ridge"]
    assert (found.validation_r2, found.margin) == (pytest.approx(plain.validation_r2), pytest.approx(plain.margin))


def test_errors(zoo):
    features, _, targets, runs = zoo
    with pytest.raises(ValueError, match="expected at least one kind of features and one property, got"):
        choice_table([], targets, runs=runs)
    few = {split: ["one"] * count for split, count in COUNTS.items()}
    with pytest.raises(ValueError, match="expected at least 4 training runs, some of which are left out in tu"):
        choice_table(make_candidates(features, {}, **QUICK), targets, runs=few)
