import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoModelForImageClassification

from hf_sane.demo.report import METHOD_TITLES
from hf_sane.demo.run import run_demo
from hf_sane.demo.settings import DemoSettings
from hf_sane.zoo.dataset import Zoo

TINY = {
    "seed_zoo_networks": 14,
    "hyperparameter_zoo_networks": 20,
    "seed_zoo_epochs": [1, 2],
    "hyperparameter_zoo_epochs": [0, 2],
    "hidden_size": 16,
    "num_layers": 1,
    "latent_dim": 16,
    "pretrain_epochs": 1,
    "num_candidates": 8,
    "num_kept": 2,
    "bandwidths": [0.1, 0.3],
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    copy = folder / "runs" / "report.json"
    record = run_demo(folder / "out", settings=DemoSettings(**TINY), record_path=copy)
    return folder / "out", record, copy


def test_folder_holds_everything(demo):
    output, record, copy = demo
    names = {path.name for path in output.iterdir()}
    expected = {"zoos", "sane", "sampled", "probe_table.md", "sampling_table.md", "report.md", "report.json"}
    assert expected | {"embedding_map.png", "finetuning.png"} <= names
    assert json.loads((output / "report.json").read_text()) == json.loads(copy.read_text()) == record
    for plot in ("embedding_map.png", "finetuning.png"):
        assert (output / plot).read_bytes().startswith(b"\x89PNG")


def test_record_has_what_it_promises(demo):
    _, record, _ = demo
    assert record["seed"] == 0
    assert record["seconds"] > 0
    assert record["peak_rss_bytes"] > 0
    assert {"reconstruction_r2", "command", "hardware", "versions"} <= record.keys()
    assert set(record["probe"]) == {"test_accuracy", "epoch", "generalization_gap"}
    for row in record["probe"].values():
        assert set(row) == {"weights", "layer_statistics", "sane_mean", "sane_best"}
    for epoch in (0, 1, 5):
        assert set(record["sampling"][f"epoch_{epoch}"]) == set(METHOD_TITLES)
    distances = record["sampling"]["nearest_training_distance"]
    assert set(distances) == set(METHOD_TITLES)
    assert distances["anchors"] == pytest.approx(0, abs=1e-6)
    assert distances["anchor_noise"] == pytest.approx(distances["sane_subsampled"], rel=0.3)
    assert distances["scratch"] > distances["anchor_noise"]


def test_artefacts_load(demo):
    output, _, _ = demo
    assert AutoModel.from_pretrained(output / "sane").config.latent_dim == 16
    zoo = Zoo.load(output / "zoos", "hyperparameter")
    assert {len(set(split.run_ids)) for split in zoo.splits.values()} == {14, 3}
    network = AutoModelForImageClassification.from_pretrained(output / "sampled" / "network_0")
    assert network.config.model_type == "sane_cnn"
    assert "README.md" in {path.name for path in (output / "sampled" / "network_0").iterdir()}


def test_refuses_to_overwrite(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; remove it, or choose another folder"):
        run_demo(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_settings_report_epoch_five():
    with pytest.raises(StrictDataclassClassValidationError, match="finetune_epochs must be at least 5"):
        DemoSettings(finetune_epochs=4)
