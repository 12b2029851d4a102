"""`--subfolder`, `--variant` and `--key` work for folders and repositories in every verb that reads networks."""

import json

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file, save

from hf_sane.architectures.presets import build_model, cnn_digits


def network_files(seed):
    torch.manual_seed(seed)
    model = build_model(cnn_digits())
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return weights, {"model.safetensors": save(weights), "config.json": model.config.to_json_string().encode()}


@pytest.fixture
def place(tmp_path, local_hub, monkeypatch):
    """A repository with nothing at its root but another precision, and networks in folders; two revisions."""
    monkeypatch.chdir(tmp_path)
    first, files = network_files(0)
    second, more = network_files(1)
    half = {name: tensor.half() for name, tensor in first.items()}
    local_hub.storage.add_files(
        "models",
        "org/parts",
        {
            "model.fp16.safetensors": save(half),
            **{f"a/{name}": content for name, content in files.items()},
            **{f"b/{name}": content for name, content in more.items()},
        },
    )
    return first, second


def test_info_names_what_is_there_and_chooses(place, hf_sane_command):
    said = hf_sane_command("info", "org/parts", exit_code=2).stderr
    assert said == (
        "hf-sane: org/parts holds no safetensors; it holds model.fp16.safetensors: choose with --variant fp16 "
        "(variant=)\n"
    )
    assert "float16" in hf_sane_command("info", "org/parts", "--variant", "fp16").output
    shown = json.loads(hf_sane_command("info", "org/parts", "--subfolder", "a", "--json").output)
    assert shown["total"]["weights"] == sum(tensor.numel() for tensor in place[0].values())


def test_spectra_are_those_of_the_chosen_weights(place, hf_sane_command, tmp_path):
    options = ("--min-values", 3, "--num-bootstrap", 0, "--json")
    torch.save({"model": place[0], "model_ema": place[1], "epoch": 3}, tmp_path / "run.ckpt")
    layers = [
        {
            layer["name"]: layer
            for layer in json.loads(hf_sane_command("analyze", *arguments, *options).output)["layers"]
        }
        for arguments in (("org/parts", "--subfolder", "b"), ("run.ckpt", "--key", "model_ema"))
    ]
    other = json.loads(hf_sane_command("analyze", "run.ckpt", "--key", "model", *options).output)["layers"]
    assert layers[0] == layers[1] != {layer["name"]: layer for layer in other}
    refused = hf_sane_command("analyze", "run.ckpt", *options, exit_code=2).stderr
    assert "2 state dicts: 'model' (" in refused


def test_embeddings_are_those_of_the_chosen_weights(place, tiny_sane_folder, hf_sane_command, tmp_path):
    torch.save({"model": place[0], "model_ema": place[1]}, tmp_path / "run.ckpt")
    found = {}
    for name, arguments in {
        "key": ("run.ckpt", "--key", "model_ema"),
        "subfolder": ("org/parts", "--subfolder", "b"),
        "other": ("run.ckpt", "--key", "model"),
    }.items():
        hf_sane_command("embed", *arguments, "--sane", tiny_sane_folder, "--output", name, "--poolings", "mean")
        found[name] = load_dataset("parquet", data_files=f"{name}/train.parquet", split="train")["mean"][0]
    torch.testing.assert_close(torch.tensor(found["key"]), torch.tensor(found["subfolder"]))
    assert found["key"] != found["other"]


def test_soups_are_made_of_the_chosen_weights(place, hf_sane_command, local_hub):
    local_hub.repositories["models", "org/parts"].tags["v1"] = local_hub.repositories["models", "org/parts"].head.sha
    third, files = network_files(2)
    local_hub.storage.add_files("models", "org/parts", {f"b/{name}": content for name, content in files.items()})
    sources = ("org/parts@v1", "org/parts")
    hf_sane_command("soup", *sources, "--subfolder", "b", "--no-align", "--output", "soup")
    soup = load_file("soup/model.safetensors")
    expected = {name: (place[1][name] + third[name]) / 2 for name in third if third[name].is_floating_point()}
    for name, tensor in expected.items():
        torch.testing.assert_close(soup[name], tensor)


@pytest.mark.parametrize(
    ("options", "inside"), [(("--variant", "fp16"), ""), (("--subfolder", "deep/weights"), "deep/weights")]
)
def test_soups_of_a_folder_of_networks_are_made_of_the_chosen_weights(options, inside, hf_sane_command, tmp_path):
    name = "model.fp16.safetensors" if "fp16" in options else "model.safetensors"
    networks = []
    for seed in range(2):
        weights, files = network_files(seed)
        networks.append(weights)
        folder = tmp_path / "nets" / f"net {seed}" / inside
        folder.mkdir(parents=True)
        (folder / name).write_bytes(files["model.safetensors"])
        (folder / "config.json").write_bytes(files["config.json"])
    hf_sane_command("soup", tmp_path / "nets", *options, "--no-align", "--output", tmp_path / "soup")
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    for tensor_name, tensor in soup.items():
        torch.testing.assert_close(tensor, (networks[0][tensor_name] + networks[1][tensor_name]) / 2)
    one = tmp_path / "nets" / "net 0"  # a network is not taken for a folder of them
    shown = json.loads(hf_sane_command("info", tmp_path / "nets", *options, "--json").stdout)["checkpoints"]
    scans = json.loads(hf_sane_command("scan", tmp_path / "nets", *options, "--no-spectra", "--json").stdout)["scans"]
    assert len(shown) == len(scans) == 2
    assert {len(scan["tensors"]) for scan in scans} == {len(soup)}
    refused = hf_sane_command("soup", one, *options, "--output", tmp_path / "one", exit_code=2)
    assert "expected a list of at least two checkpoints, got 1" in refused.stderr
