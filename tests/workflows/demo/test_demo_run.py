import json
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoModelForImageClassification

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._outputs import check_finished
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import METHODS
from hf_sane.sampling._export import Provenance
from hf_sane.workflows.demo.run import run_demo
from hf_sane.workflows.demo.settings import DemoSettings
from hf_sane.zoo._dataset import Zoo

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
    "num_samples": 2,
    "bandwidth": [0.1, 0.3],
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    result = run_demo(DemoSettings(output=folder / "out", **TINY))
    assert result.output == folder / "out" / "report.md"
    assert [path.name for path in folder.iterdir()] == ["out"], "the demo writes into its own folder only"
    return folder / "out", result.to_dict()


def test_folder_holds_everything(demo):
    output, record = demo
    names = {path.name for path in output.iterdir()}
    expected = {"zoos", "sane", "sampled", "probe_table.md", "sampling_table.md", "report.md", "report.json"}
    assert expected | {"overview.png", "embedding_map.png", "finetuning.png"} <= names
    assert json.loads((output / "report.json").read_text()) == record
    for plot in ("overview.png", "embedding_map.png", "finetuning.png"):
        assert (output / plot).read_bytes().startswith(b"\x89PNG")


def test_record_has_what_it_promises(demo):
    _, record = demo
    assert record["seed"] == 0
    assert record["seconds"] > 0
    assert record["peak_rss_bytes"] > 0
    assert {"reconstruction_r2", "command", "hardware", "versions"} <= record.keys()
    assert set(record["probe"]) == {"test_accuracy", "epoch", "generalization_gap"}
    for row in record["probe"].values():
        assert set(row) == {"weights", "layer_statistics", "sane_mean", "sane_best"}
    for row in record["probe_details"].values():
        assert {"weight_profile", "weight_distribution", "sane_concat", "sane_best", "linear_best"} < row.keys()
    for epoch in (0, 1, 5):
        assert set(record["sampling"][f"epoch_{epoch}"]) == set(METHODS)
    distances = record["sampling"]["nearest_training_distance"]
    assert set(distances) == set(METHODS)
    assert distances["anchors"] == pytest.approx(0, abs=1e-6)
    assert distances["anchor_noise"] == pytest.approx(distances["sane_subsampled"], rel=0.3)
    assert distances["scratch"] > distances["anchor_noise"]


def test_artefacts_load(demo):
    output, _ = demo
    assert AutoModel.from_pretrained(output / "sane").config.latent_dim == 16
    zoo = Zoo.load(output / "zoos", "hyperparameter")
    assert {len(set(split.run_ids)) for split in zoo.splits.values()} == {14, 3}
    network = AutoModelForImageClassification.from_pretrained(output / "sampled" / "network_0")
    assert network.config.model_type == "sane_cnn"
    assert "README.md" in {path.name for path in (output / "sampled" / "network_0").iterdir()}


def test_sampled_networks_say_where_they_came_from_and_what_fine_tuning_gave(demo):
    output, record = demo
    curves = record["sampling"]["finetuning_curves"]["sane_subsampled"]
    for index in range(2):  # as many as were kept
        folder = output / "sampled" / f"network_{index}"
        origin, own = Provenance.load(folder), RunRecord.load(folder / "run.json")
        assert (origin.method, origin.sane_model, origin.zoo) == ("subsampled", "sane", "zoos (config seed)")
        assert (origin.index, origin.seed, origin.mode, origin.bandwidth_unit) == (index, 0, "joint", "anchor_std")
        assert (origin.bandwidth, len(origin.anchors)) == (record["sampling"]["bandwidth"], 3)
        assert own.results["test_accuracy"] == origin.test_accuracy == curves[0][index]
        tuned = {f"after {epoch} epochs": curves[epoch][index] for epoch in range(1, 6)}
        assert own.results["test_accuracy_fine_tuned"] == tuned
    assert RunRecord.load(output / "sampled/run.json").results["saved"] == ["network_0", "network_1"]


def test_the_script_of_the_cards_renders_those_that_the_demo_wrote(demo, monkeypatch):
    output, record = demo
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "experiments"))
    cards = import_module("update_cards").render_demo_cards(output, record)
    for artefact in ("sane", "sampled/network_0", "zoos"):
        assert (output / artefact / "README.md").read_text() == cards[artefact]


def test_refuses_to_overwrite(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"precious\.txt, not ours to replace; choose a new or an empty folder"):
        run_demo(DemoSettings(output=tmp_path))
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_finished_demo_is_complete_and_not_repeated(demo):
    output, _ = demo
    manifest = check_finished(output, all_digests=True)
    assert manifest is not None
    files = [path.relative_to(output) for path in output.rglob("*") if path.is_file()]
    names = {path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)}  # caches
    assert {*manifest.files, MANIFEST} == names
    for name in names:
        assert b"hf_sane-partial" not in (output / name).read_bytes(), name
    with pytest.raises(FileExistsError, match="already holds a finished demo"):
        run_demo(DemoSettings(output=output, **TINY))


def test_an_interrupted_demo_goes_on_to_the_same_result(demo, tmp_path, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    for place in ("run.reconstruct", "report.DemoResult.write"):
        with monkeypatch.context() as patched:
            patched.setattr(f"hf_sane.workflows.demo.{place}", stop)
            if "write" in place:  # zoos and autoencoder are there
                patched.setattr("hf_sane.training._pretraining.prepare_run", stop)
            with pytest.raises(KeyboardInterrupt):
                run_demo(DemoSettings(output=tmp_path / "out", **TINY))
        with pytest.raises(InvalidFileError, match="an interrupted demo"):
            check_finished(tmp_path / "out")
        assert (tmp_path / "out/sampled").exists() == ("write" in place)
    with pytest.raises(FileExistsError, match=r"interrupted demo with other settings \(settings\.json\)"):
        run_demo(DemoSettings(output=tmp_path / "out", **TINY, seed=1))
    found, (_, expected) = run_demo(DemoSettings(output=tmp_path / "out", **TINY)).to_dict(), demo
    for part in ("zoos", "reconstruction", "probe", "sampling"):
        assert found[part] == expected[part]
    assert check_finished(tmp_path / "out") is not None


def test_settings_report_epoch_five():
    with pytest.raises(StrictDataclassClassValidationError, match="finetune_epochs must be at least 5"):
        DemoSettings(finetune_epochs=4)
