"""Methods side by side: the same networks as the room draws, distances, fine-tuning, and networks to keep."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageClassification

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import METHODS
from hf_sane.sampling._diversity import DISTANCES
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.compare import CompareSettings, compare_samplers, run_compare
from hf_sane.workflows.sane import SANE

SETTINGS = {"num_candidates": 6, "num_samples": 2, "bandwidth": [0.1, 0.3], "seed": 3, "condition": False}


@pytest.fixture(scope="module")
def sane(tiny_zoo) -> SANE:
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SANE(SANEModel(SANEConfig(token_dim=layout.token_dim, window_size=16, **sizes)).eval(), extractor)


@pytest.fixture(scope="module")
def compared(tiny_zoo, sane, digits):
    return compare_samplers(tiny_zoo, sane, digits, **SETTINGS)


def test_every_method_is_measured(compared, digits):
    results = compared.to_dict()
    assert list(compared.methods) == list(METHODS)
    for name in DISTANCES:
        assert list(results[name]) == list(METHODS)
    assert results["nearest_training_distance"]["anchors"] == pytest.approx(0, abs=1e-6)
    assert results["nearest_training_distance"]["scratch"] > 0
    assert results["bandwidth"] in (0.1, 0.3)
    accuracy = compared.methods["anchors"].evaluate(*digits.split("test"))[1]
    assert compared.test_accuracy()["anchors"] == pytest.approx(accuracy.mean().item(), abs=1e-6)
    assert results["epoch_0"] == compared.test_accuracy()
    (table,) = compared.tables()
    assert table.header[1] == "test accuracy"
    assert table.rows[0][1] == results["epoch_0"]["anchors"]


def test_a_comparison_is_one_call_with_its_settings(compared, tiny_zoo_folder, sane, digits, tmp_path):
    settings = CompareSettings(
        **SETTINGS,
        zoo=tiny_zoo_folder,
        sane=sane,
        images=digits,
        methods="anchors",
        output=tmp_path / "out",
        finetune_epochs=1,
    )
    found = run_compare(settings)
    saved = RunRecord.load(tmp_path / "out/run.json")
    assert saved.results == found.record.results
    assert ">anchors (trained networks)</text>" in (tmp_path / "out/report.html").read_text()
    assert saved.results["epoch_1"].keys() == {"anchors"}
    assert saved.arguments["zoo"] == str(tiny_zoo_folder)
    assert saved.arguments["bandwidth"] == [0.1, 0.3]
    for name in DISTANCES:
        assert saved.results[name]["anchors"] == compared.to_dict()[name]["anchors"]
    with pytest.raises(StrictDataclassError, match="got 'ancors'; did you mean 'anchors'"):
        CompareSettings(zoo="zoo", sane="sane", methods="ancors")


def test_some_methods_are_the_same_networks(compared, tiny_zoo, sane, digits):
    some = compare_samplers(
        tiny_zoo, sane, digits, **SETTINGS, methods=["interpolation", "sane_subsampled", "anchors"]
    )
    assert list(some.methods) == ["interpolation", "sane_subsampled", "anchors"]
    for name, networks in some.methods.items():
        for key, tensor in networks.tensors.items():
            assert torch.equal(tensor, compared.methods[name].tensors[key])
    assert some.to_dict()["pairwise_distance"]["anchors"] == compared.to_dict()["pairwise_distance"]["anchors"]


def test_fine_tuned_networks_are_kept_with_their_accuracies(compared, tmp_path):
    curves = compared.finetune(1)
    results = compared.to_dict()
    assert results["finetuning_curves"] == curves
    assert results["epoch_0"] == pytest.approx(compared.test_accuracy(), abs=1e-6)
    assert results["epoch_1"]["scratch"] == sum(curves["scratch"][1]) / 2
    assert "epoch_5" not in results
    assert list(results)[:3] == ["epoch_0", "epoch_1", "nearest_training_distance"]  # the order of columns on cards
    (table,) = compared.tables()
    distances = ("nearest training distance", "nearest reconstruction distance", "pairwise distance")
    assert table.header == ("networks", "test accuracy", "after epoch 1", *distances)
    assert [row[0] for row in table.rows] == list(METHODS.values())
    record = RunRecord.start(seed=3).finish({})
    saved = compared.sampled(1, record, sane="org/sane", zoo="org/zoo", title="Network").save(tmp_path / "out")
    assert len(saved) == 1
    own = RunRecord.load(tmp_path / "out/network_0/run.json").results
    assert own["test_accuracy"] == curves["sane_subsampled"][0][0]
    assert own["test_accuracy_fine_tuned"] == {"after 1 epochs": curves["sane_subsampled"][1][0]}
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "out/network_0")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, compared.methods["sane_subsampled"].state_dict(0)[name])
