"""Undefined metrics are NaN in memory, null in JSON, a word in print, and absent from cards."""

import json
import math

import numpy as np
import pytest
import torch
from zoo_recipes import seed_zoo

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cards._tables import fact_table, fact_text, result_tables
from hf_sane.core._metrics import kendall_tau
from hf_sane.hub._cards import network_card, sane_card
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.probing._evaluation import probe_table
from hf_sane.records._errors import shorten
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._diversity import error_overlap
from hf_sane.sampling._finetuning import accuracy
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import r2_from_sums, reconstruction_sums
from hf_sane.workflows.demo.report import Goal, goals_table, to_markdown
from hf_sane.workflows.pretrain import PretrainSettings, run_pretrain
from hf_sane.zoo._facts import read_facts
from hf_sane.zoo.building._build import build_zoo


def record(**results):
    return RunRecord.start(seed=0).finish(results)


def test_the_specimen(tmp_path):
    """A zoo without validation networks: R2 was 1.0."""
    zoo = build_zoo(
        seed_zoo(num_models=5, epochs=1, train_limit=64, split_shares=[0.8, 0.0, 0.2], progress_bar=False),
        None,
        tmp_path / "zoo",
    )
    assert len(zoo.splits["validation"]) == 0
    facts = read_facts(tmp_path / "zoo")["default"]
    assert facts.splits["validation"]["test_accuracy"] is None
    assert 0 <= facts.splits["train"]["test_accuracy"] <= 1
    assert "| validation | 0 | 0 | - |" in (tmp_path / "zoo" / "README.md").read_text()
    settings = {
        "zoo": [str(tmp_path / "zoo")],
        "output": str(tmp_path / "run"),
        "max_steps": 2,
        "batch_size": 2,
        "progress_bar": False,
        "model": {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    for given in (settings, {**settings, "resume": True}):  # a finished run says again what it found
        assert "unknown (no validation networks" in str(run_pretrain(PretrainSettings(**given)))
    stored = json.loads((tmp_path / "run" / "model" / "run.json").read_text())
    assert stored["results"]["reconstruction_r2"] is None
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "reconstruction r2" not in card
    assert "weight-reconstruction" not in card


@pytest.mark.parametrize("value", [0.0, 0.3, -1e6])
def test_r2_of_nothing_and_of_equal_weights_is_undefined(value):
    assert math.isnan(r2_from_sums(torch.zeros(4)))
    mask = torch.ones(3, 4, dtype=torch.bool)
    equal = torch.full((2, 3, 4), value)
    assert math.isnan(r2_from_sums(reconstruction_sums(equal, equal, mask)))
    assert math.isnan(r2_from_sums(reconstruction_sums(equal, equal + 1, mask)))
    tokens = torch.randn(2, 3, 4) + 100
    assert r2_from_sums(reconstruction_sums(tokens, tokens, mask)) == 1
    assert r2_from_sums(reconstruction_sums(tokens * 1e-18, tokens * 1e-18, mask)) == 1
    assert math.isnan(r2_from_sums(reconstruction_sums(tokens * math.nan, tokens, mask)))


def test_one_prediction_for_all_has_no_order():
    truth = np.array([1.0, 2.0, 3.0])
    assert math.isnan(kendall_tau(np.ones(3), truth))
    assert kendall_tau(truth, truth) == 1
    with pytest.raises(ValueError, match="requires values that vary"):
        kendall_tau(truth, np.ones(3))
    with pytest.raises(ValueError, match="requires values that vary"):
        kendall_tau(np.ones(0), np.ones(0))
    features = {"sane_flat": {split: torch.ones(4, 2) for split in ("train", "validation", "test")}}
    targets = {"epoch": {split: torch.arange(4.0) for split in ("train", "validation", "test")}}
    result = probe_table(features, targets)["epoch"]["sane_flat"]
    assert math.isnan(result.kendall_tau)
    assert json.loads(json.dumps(record(probe=result.to_dict()).to_dict()))["results"]["probe"]["kendall_tau"] is None


def test_networks_without_errors_share_none():
    right = torch.ones(1, 5, dtype=torch.bool)
    assert error_overlap(right, right).isnan().all()
    assert error_overlap(right, ~right).item() == 0
    assert error_overlap(~right, ~right).item() == 1


def test_accuracy_on_no_images():
    assert math.isnan(accuracy(build_model(cnn_digits()), torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)))


def test_tables_say_undefined_or_leave_it_out():
    assert [fact_text(value, shorten) for value in (math.nan, None, 0.5)] == ["undefined", "-", "0.5"]
    assert fact_table({"r2": math.nan, "loss": math.inf}) == ""
    assert "nan" not in result_tables({"probe": {"epoch": {"mean": math.nan, "std": 0.5}}, "r2": math.nan})
    goal = Goal("R2", 0.9, None)
    assert not goal.reached
    assert not Goal("R2", None, 0.9).reached
    assert not Goal("R2", 0.9, math.nan).reached
    assert "undefined" in to_markdown(goals_table([goal]))


def test_cards_take_only_what_can_be():
    config, extractor = SANEConfig(), SANEFeatureExtractor()
    for unknown in (math.nan, None):
        card = sane_card(config, extractor, record(reconstruction_r2=unknown), title="t")
        assert card.data.eval_results is None
        assert network_card(cnn_digits(), record(test_accuracy=unknown), title="t").data.eval_results is None
    assert (
        sane_card(config, extractor, record(reconstruction_r2=-3.0), title="t").data.eval_results[0].metric_value == -3
    )
    with pytest.raises(ValueError, match=r"results.reconstruction_r2 of the run record is 1\.5, expected at most 1"):
        sane_card(config, extractor, record(reconstruction_r2=1.5), title="t")
    for accuracy_of_nobody in (1.2, -0.1):
        with pytest.raises(
            ValueError, match=r"results.test_accuracy of the run record is .*, expected a share in \[0, 1\]"
        ):
            network_card(cnn_digits(), record(test_accuracy=accuracy_of_nobody), title="t")


def test_mixtures_of_splits_without_networks():
    from hf_sane.zoo._mixing import _counts

    none = {"runs": 0, "networks": 0, "test_accuracy": None}
    some = {"runs": 2, "networks": 4, "test_accuracy": 0.5}
    assert _counts([none, none])["test_accuracy"] is None
    assert _counts([none, some])["test_accuracy"] == 0.5
    assert _counts([{"runs": 0, "networks": 0, "test_accuracy": 0.0}, some])["test_accuracy"] == 0.5  # an older zoo
