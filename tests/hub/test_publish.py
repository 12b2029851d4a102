"""Saved folders are complete, loadable, optionally with code, without traces; one commit pushes them."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

import hf_sane  # noqa: F401 (registers the Auto classes)
from hf_sane.architectures.configuration_zoo import CNNConfig
from hf_sane.architectures.modeling_zoo import CNNForImageClassification
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._publish import code_files, load_sane, save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._manifests import MANIFEST
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


@pytest.fixture
def record():
    return RunRecord.start(seed=1, command=["x"]).finish({"test_accuracy": 0.5})


@pytest.fixture
def model():
    return SANEModel(SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2))


@pytest.fixture
def extractor():
    return SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits()).state_dict() for _ in range(2)])


def test_a_sane_folder_is_complete_and_comes_back(tmp_path, model, extractor, record):
    folder = save_sane(tmp_path / "sane", model, extractor, record)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "run.json",
        "README.md",
        "hf_sane_manifest.json",
    }
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert AutoFeatureExtractor.from_pretrained(folder).statistics == extractor.statistics
    assert RunRecord.load(folder / "run.json") == record


def test_a_sampled_network_is_complete_and_comes_back(tmp_path, record):
    network = build_model(cnn_digits())
    folder = save_network(tmp_path / "network", network, record, base_model="someone/sane")
    names = {"config.json", "model.safetensors", "run.json", "README.md", "hf_sane_manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(loaded, CNNForImageClassification)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert ModelCard.load(folder / "README.md").data.base_model == "someone/sane"


def test_code_travels_on_request_and_leaves_no_trace(tmp_path, model, extractor, record):
    folder = save_sane(tmp_path / "with", model, extractor, record, include_code=True)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_sane.SANEConfig",
        "AutoModel": "modeling_sane.SANEModel",
    }
    assert (folder / "modeling_sane.py").exists()
    network = build_model(cnn_digits())
    folder = save_network(tmp_path / "network", network, record, include_code=True)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    assert "hf_sane " not in (folder / "README.md").read_text().partition("```python")[2].partition("```")[0]

    for cls in (SANEConfig, SANEModel, CNNConfig, CNNForImageClassification):
        assert cls._auto_class is None
        assert "_auto_class" not in vars(cls)
    for saved in (
        save_sane(tmp_path / "without", model, extractor, record),
        save_network(tmp_path / "network without", network, record),
    ):
        assert not list(saved.glob("*.py"))
        assert "auto_map" not in json.loads((saved / "config.json").read_text())


def test_code_of_whoever_wrote_the_ingredient_is_not_named_by_what_is_saved(tmp_path, model, extractor, record):
    network = build_model(cnn_digits())
    for loaded in (model, network):
        loaded.config.auto_map = {"AutoModel": "org/stranger--code.Model"}
    for saved in (
        save_sane(tmp_path / "sane", model, extractor, record),
        save_network(tmp_path / "network", network, record),
    ):
        assert "stranger" not in (saved / "config.json").read_text()


def test_a_registration_of_the_users_own_stays(tmp_path, record, monkeypatch):
    monkeypatch.setattr(CNNConfig, "_auto_class", "AutoConfig", raising=False)
    save_network(tmp_path / "network", build_model(cnn_digits()), record, include_code=True)
    assert CNNConfig._auto_class == "AutoConfig"


def test_nothing_stays_registered_when_saving_fails(tmp_path, record):
    (tmp_path / "file").write_text("in the way")
    network = build_model(cnn_digits())
    with pytest.raises(NotADirectoryError):
        save_network(tmp_path / "file" / "network", network, record, include_code=True)
    assert CNNConfig._auto_class is None


def test_model_and_tokenizer_must_belong_together(tmp_path, model, record):
    with pytest.raises(ValueError, match="must share token_dim, got 20 and 30; save the tokenizer"):
        save_sane(tmp_path, model, SANEFeatureExtractor(token_dim=30), record)


def test_code_files_open_a_network_that_was_saved_without_its_code(tmp_path, record):
    folder = save_network(tmp_path / "network", build_model(cnn_digits()), record)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    files = code_files(folder)
    assert files.keys() == {"config.json", "configuration_zoo.py", "initialization_zoo.py", "modeling_zoo.py"}
    assert json.loads(files["config.json"])["auto_map"].keys() == {"AutoConfig", "AutoModelForImageClassification"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert CNNConfig._auto_class is None
    (folder / MANIFEST).unlink()  # what follows is changed on purpose
    for name, text in files.items():
        (folder / name).write_text(text)
    assert code_files(folder) == {}


def test_a_folder_that_is_no_sane_says_what_it_holds_and_which_one_is_meant(tmp_path):
    """Not Transformers' sentence about an address on the Hub."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/arguments.json").write_text("{}")
    for read, what in (
        (load_sane, "a SANE autoencoder"),
        (SANEFeatureExtractor.from_pretrained, "a weight tokenizer"),
    ):
        with pytest.raises(FileNotFoundError) as refused:
            read(tmp_path / "run")
        holds = f"{tmp_path / 'run'}: expected {what}, got a folder with arguments.json"
        assert str(refused.value) == f"{holds}; pass a folder that holds one"
        (tmp_path / "run/model").mkdir()
        (tmp_path / "run/model/config.json").write_text("{}")
        with pytest.raises(FileNotFoundError) as refused:
            read(tmp_path / "run")
        assert str(refused.value) == f"{holds}, model; give {tmp_path / 'run/model'}"
        shutil.rmtree(tmp_path / "run/model")
