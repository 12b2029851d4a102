"""Soups from Python: modules or folders in, one network out; the verb does the same."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cli.app import app
from hf_sane.merging._methods import MERGE_METHODS, register_merge_method
from hf_sane.merging._soups import NamesMixer, Soup, equal_weights, score_ingredients
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.finetune import finetune
from hf_sane.workflows.soup import SoupSettings, soup


@pytest.fixture(scope="module")
def networks():
    """Three networks trained from one start, each on its own order of images."""
    torch.manual_seed(0)
    return finetune([build_model(cnn_digits())] * 3, epochs=2, learning_rate=5e-3, train_limit=256, scratch=False)


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    return networks.save_pretrained(tmp_path_factory.mktemp("soup") / "networks")


def test_modules_are_averaged(networks, tmp_path):
    found = soup(networks.modules(), align=False)
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, torch.stack([x.state_dict()[name] for x in networks]).mean(dim=0))
    rows = [line.split() for line in str(found).splitlines()]
    assert rows == [["ingredient", "weight"], *([f"ingredient_{index}", "0.3333"] for index in range(3))]
    found.save(tmp_path / "soup")
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "soup")
    assert torch.equal(saved.classifier.weight, found.model.classifier.weight)


@pytest.mark.parametrize("spelling", [("--method", "greedy", "--output"), ("--greedy", "--out")])
def test_the_verb_takes_the_same_road(spelling, folder, digits, tmp_path):
    found = soup(folder, method="greedy", images="digits")
    results = found.record.results
    assert found.to_dict()["steps"][0]["name"] == results["best_ingredient"]
    arguments = ["soup", str(folder), "--data", "digits", *spelling, str(tmp_path / "soup"), "--json"]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(told.stdout) == json.loads(found.to_json()) | {"output": str(tmp_path / "soup")}
    assert ("--greedy is now --method=greedy" in told.stderr) == ("--greedy" in spelling)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "soup")
    assert torch.equal(saved.classifier.weight, found.model.classifier.weight)
    record = RunRecord.load(tmp_path / "soup" / "run.json")
    assert record.arguments == {**found.record.arguments, "recipe": "greedy"}
    assert f"validation accuracy: {results['validation_accuracy']:.4g}" in str(found)


def test_a_registered_method_can_be_named(folder, digits, monkeypatch):
    monkeypatch.setattr(MERGE_METHODS, "_entries", dict(MERGE_METHODS._entries))

    @register_merge_method("best", needs_score=True)
    def best_alone(mixer, score, *, higher_is_better=True):
        scores = score_ingredients(mixer, score)
        best = scores.index(max(scores) if higher_is_better else min(scores))
        weights = equal_weights([best], len(scores))
        mixer.mix(weights)
        rows = dict(zip(mixer.names, scores, strict=True))
        return Soup(dict(zip(mixer.names, weights, strict=True)), scores[best], rows)

    found = soup([folder], method="best", images=digits)
    results = found.record.results
    assert found.soup.weights == {
        f"network_{i}": float(f"network_{i}" == results["best_ingredient"]) for i in range(3)
    }
    assert results["test_accuracy"] == results["best_ingredient_test_accuracy"]
    with pytest.raises(ValueError, match=r"on held-out data, got none; pass images \(--images\)"):
        SoupSettings(networks=["a"], output=None, method="best")


def test_networks_far_below_their_records_are_noticed(folder, digits):
    right = soup(folder, images=digits)
    assert not right.notes
    shifted = {f"{split}_labels": (digits.split(split)[1] + 1) % 10 for split in ("train", "validation", "test")}
    (note,) = soup(folder, images=replace(digits, **shifted)).notes
    assert note.startswith("the trained networks have an accuracy of 0.")


def test_unknown_methods_and_mixers_without_a_model():
    with pytest.raises(ValueError, match="one of uniform, greedy, got 'greddy'; did you mean"):
        SoupSettings(networks=["a"], output=None, method="greddy")
    with pytest.raises(TypeError, match="needs no model; register it with needs_score=True"):
        _ = NamesMixer(("a", "b")).model
