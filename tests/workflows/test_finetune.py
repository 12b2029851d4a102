"""Fine-tuning from Python: modules in, networks out; the verb does the same."""

import json

import pytest
import torch
from program import parse_settings
from transformers import AutoImageProcessor, AutoModelForImageClassification
from typer.testing import CliRunner

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cli.app import app
from hf_sane.networks._images import load_images
from hf_sane.records._run_record import RunRecord
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.finetune import finetune
from hf_sane.workflows.finetune_lora import FinetuneLoraSettings, finetune_lora

SMALL = {"epochs": 2, "learning_rate": 3e-3, "train_limit": 128, "seed": 1}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [build_model(cnn_digits()).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def tuned(networks):
    return finetune(networks, "digits", **SMALL)


def test_networks_are_trained_and_measured(tuned, networks, digits):
    assert len(tuned) == 2
    assert tuned.names == ["network_0", "network_1"]
    assert {name: [len(row) for row in curve] for name, curve in tuned.curves.items()} == {
        "networks": [2, 2, 2],
        "scratch": [2, 2, 2],
    }
    assert tuned.evaluate("digits").tolist() == pytest.approx(tuned.curves["networks"][-1])
    assert sum(tuned.curves["networks"][-1]) > sum(tuned.curves["networks"][0])
    assert not torch.equal(tuned[0].classifier.weight, networks[0].classifier.weight)
    first, *rows = str(tuned).splitlines()
    assert first.split() == [
        "epoch",
        *["networks:", "mean", "test", "accuracy", "scratch:", "mean", "test", "accuracy"],
    ]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert float(rows[0].split()[1]) == pytest.approx(sum(tuned.curves["networks"][0]) / 2, rel=1e-3)


def test_the_verb_takes_the_same_road(tuned, networks, tmp_path):
    for index, network in enumerate(networks):
        network.save_pretrained(tmp_path / "in" / f"net_{index}")
    sizes = ["--epochs", "2", "--learning-rate", "3e-3", "--train-limit", "128", "--seed", "1", "--json"]
    arguments = ["finetune", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *sizes]
    told = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert told == {"test_accuracy": tuned.curves, "output": str(tmp_path / "out")}
    tuned.save_pretrained(tmp_path / "ours")
    for theirs, ours in (("net_0", "network_0"), ("net_1", "network_1")):
        read = [
            AutoModelForImageClassification.from_pretrained(tmp_path / path)
            for path in (f"out/{theirs}", f"ours/{ours}")
        ]
        assert torch.equal(read[0].classifier.weight, read[1].classifier.weight)
    ours, theirs = (RunRecord.load(tmp_path / name / "run.json") for name in ("ours", "out"))
    assert ours.results.pop("saved") == ["network_0", "network_1"]
    assert theirs.results.pop("saved") == ["net_0", "net_1"]
    assert ours.results == theirs.results
    assert {**ours.arguments, "networks": None} == {**theirs.arguments, "networks": None}


def test_what_comes_out_can_go_in_again(tuned):
    again = finetune(tuned, epochs=0, scratch=False)
    assert torch.equal(again[1].classifier.weight, tuned[1].classifier.weight)
    assert again.curves["networks"] == [pytest.approx(tuned.curves["networks"][-1])]


def test_weights_are_averaged_over_the_last_epochs(tuned, networks, digits, tmp_path):
    one = finetune(networks, "digits", **SMALL | {"epochs": 1}, scratch=False)
    found = finetune(networks, "digits", **SMALL, average_epochs=2, output=tmp_path / "averages")
    assert found.curves == tuned.curves
    for index, network in enumerate(found):
        last, first = tuned[index].state_dict(), one[index].state_dict()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, (first[name] + last[name]) / 2)
    few = load_images("digits", train_limit=128)
    assert found.evaluate(few).tolist() == pytest.approx(found.averaged["networks"])
    assert found.averaged.keys() == {"networks", "scratch"}
    assert str(found).splitlines()[-2].startswith("average of the last 2 ")
    saved = RunRecord.load(tmp_path / "averages" / "network_0" / "run.json")
    assert saved.results["test_accuracy"] == found.averaged["networks"][0]
    for wrong in (1, 3):
        with pytest.raises(ValueError, match=f"between 2 and the number of epochs, 2, or 0, got {wrong}"):
            finetune(networks, "digits", epochs=2, average_epochs=wrong)


def test_an_adapter_leaves_its_base_as_it_is(networks, digits, tmp_path):
    before = networks[0].state_dict()["classifier.weight"].clone()
    found = finetune_lora(
        networks[0], digits, steps=4, lora_rank=2, lora_targets=["classifier"], output=tmp_path / "adapter"
    )
    assert torch.equal(networks[0].classifier.weight, before)
    results = found.record.results
    assert str(found).splitlines() == [
        f"test accuracy {results['test_accuracy_before']:.3f} -> {results['test_accuracy']:.3f} in 4 steps, "
        f"{results['adapter']['share']:.1%} of the network's parameters",
        f"wrote {tmp_path / 'adapter'}",
    ]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "adapter")
    assert (processor.image_mean, processor.size, processor.num_channels) == (list(digits.mean), 8, 1)
    predicted = (found.model(digits.test_images).logits.argmax(dim=1) == digits.test_labels).float().mean().item()
    assert predicted == pytest.approx(results["test_accuracy"])


def test_the_base_is_named_alike_everywhere(capsys):
    for settings, needed, old in (
        (FinetuneLoraSettings, ["net", "-o", "out"], "--base-model"),
        (PretrainSettings, ["--zoo", "zoo", "-o", "out"], "--lora-base"),
    ):
        note = f"door: {old} is now --base; the old spelling works until version 0.3\n"
        for option in ("--base", old):
            made = parse_settings(settings, [*needed, option, "org/base"], name="door")
            assert "org/base" in vars(made).values()
            told = capsys.readouterr().err
            assert told == ("" if option == "--base" else note)


def test_an_adapter_without_a_folder_is_not_published(networks):
    with pytest.raises(
        ValueError,
        match=r"expected an output folder, from which to publish the adapter, got none; name it \(--output\)",
    ):
        FinetuneLoraSettings(network="org/net", output=None, push_to="org/adapter")
    with pytest.raises(ValueError, match="expected steps to be a finite number of at least 1, got 0"):
        finetune_lora(networks[0], steps=0)


def test_lora_refuses_networks_of_other_libraries_by_name():
    with pytest.raises(ValueError, match="expected a network of this library's architectures, got a Linear; use PEFT"):
        finetune_lora(torch.nn.Linear(2, 2), "digits", train_limit=32)


def test_a_file_of_weights_is_no_folder_of_a_network(tmp_path):
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError, match="net.pt is a file; expected the folder of a network"):
        finetune(tmp_path / "net.pt", "digits", train_limit=32)
