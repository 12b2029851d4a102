"""The page on repairs says what its records say; faults are what they are called, and repairs undo them."""

import children_prompts
import pytest
import sabotage
import torch
from results import repair


@pytest.fixture
def folder(write_record):
    """SANE detects as well as the distance to the ancestor, and repairs less well than the nearest sibling."""
    detectors = ("sane8", "sane1", "linear8", "linear1", "whole64", "ancestor", "average", "norms", "spectra")
    detection = {name: {"auc": 0.97, "localized": 0.9} for name in detectors}
    repair = {"validation": 0.8, "suspected_layer": 0.7, "healthy_loss": 0.002}
    results = {
        "detection": detection,
        "chosen": {"all": "ancestor", "sane": "sane8"},
        "accuracy": {"healthy": 0.8, "broken": 0.4},
        "alarms": 0.95,
        "false_alarms": 0.05,
        "reference": "nearest",
        "best_sane": "sane8_filled",
        "repair": {
            "nearest": {**repair, "true_layer": 0.9, "gap": [0.0, 0.0, 0.0]},
            "sane8_filled": {**repair, "true_layer": 0.75, "gap": [-0.15, -0.2, -0.1]},
        },
        "by_fault": {
            fault: {"lost": 0.4, "detected": 1.0, "sane": 0.7, "reference": 0.9}
            for fault in ("zeroed", "flipped", "scaled", "rank_1")
        },
    }
    write_record("repair/usps_1", results, seed=1)
    return write_record("repair/usps_0", results)


def test_the_page_says_which_goals_were_reached(folder):
    found = repair.blocks(folder)
    assert "AUC 0.970 with SANE, 8 latents per token (goal reached)" in found["verdict"]
    assert "0.750 of the lost accuracy with SANE, 8 latents per token, projection from the average" in found["verdict"]
    assert "(goal not reached), 0.900 with the layer of the nearest sibling" in found["verdict"]
    assert (
        "7 of 7 detectors without SANE have at least as much, the distance to the ancestor 0.970" in found["verdict"]
    )
    assert "On 1 of 1 data sets, the best repair without SANE is ahead" in found["verdict"]
    assert "difference of SANE: -0.150 (-0.200 to -0.100)" in found["verdict"]
    assert "lose 0.0020 by false alarms (goal reached)" in found["verdict"]
    assert "| norms of layers | 0.970 (0.970 to 0.970) | 0.900 (0.900 to 0.900) |" in found["detection"]
    assert "| the layer of the nearest sibling | 0.900 (0.900 to 0.900) |" in found["repair"]
    assert "| USPS | rank 1 | 0.400 (0.400 to 0.400) |" in found["faults"]
    assert found["source"].count("commit 0123456789ab") == 2


def test_without_records_there_is_nothing_to_say(tmp_path):
    assert set(repair.blocks(tmp_path).values()) == {""}


def test_faults_hit_one_layer_and_detectors_and_repairs_find_and_undo_them(family):
    found = children_prompts.Family.open(family[0])
    layout, train = found.layout, found.splits["train"]
    faults = sabotage.draw_sabotages(8, len(layout.layers), seed=1)
    assert [one.fault for one in faults[:4]] == list(sabotage.FAULTS)
    rows = torch.arange(8) % len(train)
    tokens = found.ancestors[train.ancestor[rows]] + train.changes[rows]
    broken = sabotage.sabotage(tokens, layout, faults, seed=1)
    for i, fault in enumerate(faults):
        part = layout.token_slices[fault.layer]
        changed = (broken[i] != tokens[i]).any(dim=1)
        changed[part] = False
        assert not changed.any()
        if fault.fault == "rank_1":
            assert torch.linalg.matrix_rank(broken[i, part], atol=1e-4) == 1
        if fault.fault == "flipped" and fault.share == 1:
            assert torch.equal(broken[i, part], -tokens[i, part])
        if fault.fault == "zeroed" and fault.share == 1:
            assert not broken[i, part].any()
    ancestor = sabotage.nearest_ancestor(found, broken)
    assert torch.equal(ancestor, train.ancestor[rows])
    changes = broken - found.ancestors[ancestor]
    codes = {"whole4": children_prompts.WholeCode.fit(train, 2, 4)}
    layers = torch.tensor([fault.layer for fault in faults])
    for name, score in sabotage.layer_scores(found, codes).items():
        suspicion = sabotage.Detector.fit(score, train, two_sided=name == "norms")(changes, ancestor)
        assert suspicion.shape == (8, len(layout.layers))
        if name == "ancestor":
            assert (suspicion.argmax(dim=1) == layers).sum() >= 6
    assert sabotage.SpectrumDetector(found)(changes, ancestor).shape == (8, len(layout.layers))
    repairs = sabotage.LayerRepairs(found, codes).all()
    hurt = (changes - train.changes[rows]).square().flatten(1).sum(dim=1)
    for name in ("ancestor", "average", "nearest", "linear_conditional", "whole4_filled"):
        mended = repairs[name](changes, ancestor, layers)
        left = (mended - train.changes[rows]).square().flatten(1).sum(dim=1)
        assert (left < hurt).sum() >= 7, name
    nearest = repairs["nearest"](changes, ancestor, layers)
    torch.testing.assert_close(nearest, train.changes[rows])  # they are training children themselves
    assert sabotage.area_under_curve(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])) == 0.875
