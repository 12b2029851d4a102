"""Adapter folders are complete, have a card of known facts, and are not pushed without a public base."""

import os
import re
import runpy
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.core._adapters import quiet_peft
from hf_sane.hub._adapters import save_network_adapter, write_adapter_card
from hf_sane.hub._cards import adapter_card
from hf_sane.hub._publish import save_network
from hf_sane.hub._push import plan_push
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._finetuning import add_network_lora
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune_lora.py"
ADAPTER = {"base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model(cnn_digits())


@pytest.fixture
def network_folder(network, tmp_path):
    return save_network(tmp_path / "network", network, RunRecord(command="x"))


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


def saved(folder, network, **settings):
    model = add_network_lora(deepcopy(network), rank=2)
    images = {"name": "digits", "image_size": 8, "mean": [0.5], "std": [2.0]}
    record = RunRecord.start(seed=3, command=["x"], arguments={"steps": 9}, data={"images": images})
    record.finish({"test_accuracy": 0.75})
    return save_network_adapter(folder, model, network, record, **settings)


def test_the_code_of_a_card_runs_inside_its_folder(network, network_folder, tmp_path, monkeypatch):
    folder = saved(tmp_path / "adapter", network, base_model="org/base")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert 'from_pretrained("org/base")' in code
    monkeypatch.chdir(folder)
    names = {}
    with quiet_peft():
        exec(code.replace("org/base", str(network_folder)), names)
    assert names["predicted"].shape == (1,)
    assert type(names["network"]) is type(network)


def test_a_card_says_what_is_known(network, tmp_path):
    folder = saved(tmp_path / "adapter", network, base_model="org/base", license_id="mit", datasets=["org/images"])
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("org/base", "peft", "mit")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "lora" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("test accuracy", 0.75)
    rows = (
        "| rank | 2 |",
        "| alpha | 8 |",
        "| steps | 9 |",
        "| test accuracy | 0.75 |",
        "convolutions.0",
        "classifier",
    )
    for row in (*rows, "pixels - [0.5]) / [2.0]", "the image classifier `org/base`", "Inside this folder"):
        assert row in card.text, row


@pytest.mark.parametrize("kind", ["network", "sane"])
def test_a_card_is_silent_about_what_is_not_known(kind):
    bare = RunRecord(command="x")
    if kind == "network":
        config, settings = cnn_digits(), {}
    else:
        extractor = SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits()).state_dict() for _ in range(2)])
        config, settings = SANEConfig(token_dim=20, hidden_size=8, num_attention_heads=2), {"extractor": extractor}
    text = str(adapter_card(config, ADAPTER | {"base_model_name_or_path": None}, bare, **settings))
    for absent in (
        "None",
        "null",
        "base_model",
        "How to use",
        "```",
        "## Data",
        "## Training",
        "Results",
        "modules saved",
    ):
        assert absent not in text, absent
    assert "| command | `x` |" in text
    assert {"network": "of an image classifier:", "sane": "of a SANE autoencoder:"}[kind] in text


def test_a_pushed_card_loads_from_the_hub(network, tmp_path):
    folder = saved(tmp_path / "adapter", network, base_model="org/base")
    assert 'PeftModel.from_pretrained(network, ".")' in (folder / "README.md").read_text()
    (card,) = [file.content for file in plan_push("adapter", folder, "org/adapter").files if file.path == "README.md"]
    assert b'PeftModel.from_pretrained(network, "org/adapter")' in card
    assert b"Inside this folder" not in card
    direct = saved(tmp_path / "direct", network, base_model="org/base", repo_id="org/adapter")
    before, _, _ = (direct / "README.md").read_bytes().partition(b"## Provenance")
    assert before == card.partition(b"## Provenance")[0]


def test_the_hub_is_refused_what_nobody_could_use(network, tmp_path):
    nameless = saved(tmp_path / "nameless", network, base_model=str(tmp_path))
    with pytest.raises(ValueError, match="belongs to None, which is not a repository on the Hub"):
        plan_push("adapter", nameless, "org/adapter")


def test_a_card_needs_an_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        write_adapter_card(tmp_path, cnn_digits())


def test_the_script_adapts_and_reports(main, network_folder, tmp_path, capsys):
    flags = ("--steps", "4", "--train_limit", "64", "--batch_size", "16", "--rank", "1", "--targets", "classifier")
    folder = main([str(network_folder), "--output", str(tmp_path / "adapter"), *flags]).output
    printed = capsys.readouterr().out
    record = RunRecord.load(folder / "run.json")
    assert f"-> {record.results['test_accuracy']:.3f} in 4 steps" in printed
    assert record.results["adapter"]["adapter_parameters"] == 20 + 10
    assert record.data["images"]["train"] == 64
    assert str(network_folder) not in (folder / "adapter_config.json").read_text()


@pytest.mark.parametrize("base_model", [None, "network"])
def test_the_script_publishes_nothing_under_a_local_base(main, network_folder, tmp_path, monkeypatch, base_model):
    monkeypatch.chdir(tmp_path)
    named = [] if base_model is None else ["--base_model", base_model]
    with pytest.raises(ValueError, match="expected the Hub repo id of the base model"):
        main([str(network_folder), "--output", "adapter", "--push-to", "org/adapter", *named])
    assert not os.path.exists("adapter")


def test_the_script_takes_images_from_a_file_and_refuses_those_that_do_not_fit(main, network_folder, tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "images.npz"

    def write(classes, size):
        labels = np.arange(40) % classes
        images = generator.integers(0, 255, (40, size, size), dtype=np.uint8)
        np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    flags = ["--images", str(path), "--steps", "2", "--lora-rank", "1", "--output", str(tmp_path / "adapter")]
    write(12, 8)
    with pytest.raises(ValueError, match="the network distinguishes 10 classes, images has 12"):
        main([str(network_folder), *flags])
    write(4, 16)
    with pytest.raises(ValueError, match=r"expected pixel_values \[batch, 1, 8, 8\], got \[1, 1, 16, 16\]"):
        main([str(network_folder), *flags])
    folder = main([str(network_folder), *flags, "--image-size", "8"]).output
    assert RunRecord.load(folder / "run.json").data["images"]["name"] == "images"
