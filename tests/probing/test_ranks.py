import numpy as np
import pytest
import torch
from scipy import stats

from hf_sane.probing._evaluation import probe_table
from hf_sane.probing._ranks import normal_scores, rank_targets


@pytest.fixture
def reference():
    return torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_scores_of_the_reference_are_those_of_van_der_waerden(reference):
    wanted = stats.norm.ppf(stats.rankdata(reference.numpy()) / (len(reference) + 1))
    np.testing.assert_allclose(normal_scores(reference, reference).numpy(), wanted, rtol=1e-12, atol=1e-15)


def test_scores_with_ties_and_of_new_values():
    reference = torch.tensor([0.5, 0.1, 0.5, 0.9])
    values = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 2.0])
    shares = []
    for value in values.tolist():  # by counting
        below, up_to = (sum(op(u, value) for u in reference.tolist()) for op in (float.__lt__, float.__le__))
        shares.append(((below + up_to) / 2 + 0.5) / 5)
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9])
    scores = normal_scores(values.double(), reference.double())
    np.testing.assert_allclose(scores.numpy(), stats.norm.ppf(shares), rtol=1e-12, atol=1e-15)


def test_increasing_maps_leave_scores_as_they_are_and_others_do_not(reference):
    values = torch.linspace(-3, 3, 31, dtype=torch.float64)
    scores = normal_scores(values, reference)
    assert torch.equal(normal_scores(values.exp(), reference.exp()), scores)
    assert not torch.equal(normal_scores(values.abs(), reference.abs()), scores)
    torch.testing.assert_close(normal_scores(-values, -reference), -scores)


def test_splits_are_ranked_among_training_and_validation_networks(reference):
    targets = {"train": reference[:30], "validation": reference[30:], "test": torch.tensor([-9.0, 0.0, 9.0])}
    scores = rank_targets(targets)
    together = torch.cat([scores["train"], scores["validation"]])
    assert torch.equal(together, normal_scores(reference, reference))
    assert scores["test"][0] < together.min() < together.max() < scores["test"][2]


def test_probes_of_ranks_order_what_crowds_at_one_end():
    """Accuracies as in training: a few early networks, explained by another feature, make half of the spread."""
    generator = np.random.default_rng(0)
    features, targets = {"sane_mean": {}}, {"test_accuracy": {}}
    for split, count in {"train": 300, "validation": 150, "test": 200}.items():
        x = generator.normal(size=(count, 1))
        features["sane_mean"][split] = torch.from_numpy(np.concatenate([x, np.exp(-3 * x)], axis=1))
        targets["test_accuracy"][split] = -np.exp(-3 * x[:, 0]) + 0.1 * x[:, 0] + 0.02 * generator.normal(size=count)
    bent = {name: {split: -np.log(2 - part) for split, part in found.items()} for name, found in targets.items()}
    ranks = probe_table(features, targets, ranks=True)["test_accuracy"]["sane_mean"]
    assert ranks.kendall_tau > 0.9
    again = probe_table(features, bent, ranks=True)["test_accuracy"]["sane_mean"]
    assert (again.r2, again.kendall_tau) == (ranks.r2, ranks.kendall_tau)
    plain, plain_again = (probe_table(features, found)["test_accuracy"]["sane_mean"] for found in (targets, bent))
    assert plain.r2 != plain_again.r2


def test_tau_is_measured_against_the_property_itself():
    """Test values beyond those of training tie as scores, and do not as what they are."""
    x = torch.linspace(0, 1, 20)[:, None]
    features = {"weights": {"train": x, "validation": x, "test": torch.linspace(2, 3, 5)[:, None]}}
    targets = {"epoch": {"train": x[:, 0], "validation": x[:, 0], "test": torch.tensor([0.5, 2.0, 3.0, 4.0, 5.0])}}
    assert probe_table(features, targets, ranks=True)["epoch"]["weights"].kendall_tau == pytest.approx(1)


def test_errors(reference):
    with pytest.raises(
        ValueError, match="expected at least one value of a property as the reference of ranks, got none"
    ):
        normal_scores(reference, reference[:0])
    broken = torch.tensor([0.1, float("nan"), float("inf")])
    with pytest.raises(ValueError, match="2 of 3 values of the gap are NaN or infinite; leave those networks out"):
        normal_scores(broken, reference, name="the gap")
    parts = {split: reference.float() for split in ("train", "validation", "test")}
    features = {"weights": {split: part[:, None] for split, part in parts.items()}}
    with pytest.raises(ValueError, match="2 of 3 values of 'epoch' are NaN or infinite"):
        probe_table(features, {"epoch": {**parts, "test": broken}}, ranks=True)
