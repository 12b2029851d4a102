"""`hf-sane regions`: zoos or adapters in; tables, a record and pictures out."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sane.records._run_record import RunRecord
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings


@pytest.fixture(scope="module")
def other_zoo_folder(digits, tmp_path_factory):
    """Six runs that call their images "inverted"."""
    folder = tmp_path_factory.mktemp("other")
    arguments = ZooSettings(
        name="inverted", num_models=6, epochs=1, keep_epochs=[1], learning_rate=[1e-2], progress_bar=False,
        train_limit=64, validation_limit=50, test_limit=50, seed=1,
    )  # fmt: skip
    build_zoo(arguments, digits, folder)
    return folder


def test_zoos_in_both_spaces(tiny_zoo_folder, other_zoo_folder, tiny_sane_folder, tmp_path, hf_sane_command):
    (tmp_path / "groups.json").write_text(json.dumps({"task": {"digits": "plain", "inverted": "other"}}))
    output = hf_sane_command(
        *("regions", "--zoo", tiny_zoo_folder, "--zoo", other_zoo_folder, "--label", "data_set", "--label", "task"),
        *("--label", "optimizer", "--groups", tmp_path / "groups.json", "--sane", tiny_sane_folder, "--limit", 6),
        *("--num-points", 3, "--method", "pca", "--output", tmp_path / "out"),
    ).output
    assert "weights, data_set: mean euclidean distance" in output
    assert "latents, task: mean euclidean distance" in output
    assert "nearest region: by centroid" in output
    assert "started from the same weights" not in output
    assert "test accuracy of" in output
    record = RunRecord.load(tmp_path / "out" / "run.json")
    assert record.data["networks"] == 12
    for space in ("weights", "latents"):
        assert record.results[space].keys() == {"data_set", "task", "optimizer"}
        found = record.results[space]["data_set"]
        assert found["counts"] == {"digits": 6, "inverted": 6}
        assert 0 <= found["nearest_centroid"]["accuracy"] <= 1
    assert record.results["interior"].keys() == {
        "data_set: digits", "data_set: inverted", "task: plain", "task: other"
    }  # fmt: skip
    assert record.results["interior"]["task: plain"]["line"]["count"] == 3
    names = {"run.json", "run.yaml", "report.html", "map.png", "scores.png", "hf_sane_manifest.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_alignment_can_be_left_out(tiny_zoo_folder, other_zoo_folder, tmp_path, hf_sane_command):
    ratios = []
    for name in ("align", "no-align"):
        arguments = ("--zoo", tiny_zoo_folder, "--zoo", other_zoo_folder, "--no-plots", f"--{name}")
        hf_sane_command("regions", *arguments, "--splits", "train,test", "--output", tmp_path / name)
        record = RunRecord.load(tmp_path / name / "run.json")
        assert record.arguments["aligned"] == (name == "align")
        assert record.data["networks"] < 18
        ratios.append(record.results["weights"]["data_set"]["distances"]["mean_between"])
    assert ratios[0] < ratios[1]
    names = sorted(path.name for path in (tmp_path / "align").iterdir())
    assert names == ["hf_sane_manifest.json", "report.html", "run.json", "run.yaml"]


@pytest.fixture
def adapters(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for index in range(4):
        factors = {
            "unet:0:down": torch.randn(2, 6, generator=generator) + index // 2,
            "unet:0:up": torch.randn(5, 2, generator=generator) * 0.1 + index % 3,
        }
        save_file(factors, tmp_path / f"{index}.safetensors")
    return [tmp_path / f"{index}.safetensors" for index in range(4)]


def test_adapters_by_what_they_were_trained_for(adapters, tmp_path, hf_sane_command):
    pairs = [f"{label}={path}" for label, path in zip("aabb", adapters, strict=True)]
    chosen = [part for pair in pairs for part in ("--adapter", pair)]
    output = hf_sane_command("regions", *chosen, "--method", "pca", "--output", tmp_path / "out").output
    assert "weights, label: mean cosine distance" in output
    record = RunRecord.load(tmp_path / "out" / "run.json")
    assert record.arguments["metric"] == "cosine"
    assert len(record.results["distances"]) == 4
    assert (tmp_path / "out" / "map.png").exists()
    mixed = ["--adapter", pairs[0], "--adapter", pairs[1], "--adapter", pairs[2]]
    output = hf_sane_command("regions", *mixed, "--output", tmp_path / "mixed").output
    assert "nearest region: skipped, since some labels have only one network" in output
    assert "no map: it needs at least 4 networks" in output


def test_layers_that_not_all_adapters_change_are_said_to_be_left_out(adapters, tmp_path, hf_sane_command):
    tensors = load_file(adapters[1])
    save_file(tensors | {name.replace("0", "1"): tensor.clone() for name, tensor in tensors.items()}, adapters[1])
    chosen = [part for label, path in zip("ab", adapters, strict=False) for part in ("--adapter", f"{label}={path}")]
    output = hf_sane_command("regions", *chosen, "--no-plots", "--output", tmp_path / "out").output
    (line,) = [line for line in output.splitlines() if "left out" in line]
    assert line.startswith("1: b=")
    assert line.endswith("1 of its 2 layers are left out, since not all adapters change them")


def test_adapters_whose_changes_depend_on_their_base_need_it(tmp_path, hf_sane_command):
    """DoRA: distances are those of the merged models."""
    torch.manual_seed(0)
    base = {"layer.weight": torch.randn(5, 6)}
    save_file(base, tmp_path / "base.safetensors")
    pairs, moved = [], []
    for index in range(3):
        first, second, magnitude = torch.randn(2, 6), torch.randn(5, 2), torch.rand(5)
        weight = base["layer.weight"] + 2 * second @ first
        moved.append(magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True))
        folder = tmp_path / str(index)
        folder.mkdir()
        stored = {"lora_A.weight": first, "lora_B.weight": second, "lora_magnitude_vector": magnitude}
        tensors = {f"base_model.model.layer.{name}": tensor for name, tensor in stored.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["layer"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        pairs += ["--adapter", f"{index}={folder}"]
    arguments = ("regions", *pairs, "--metric", "euclidean", "--no-plots", "--output", tmp_path / "out")
    assert "its changes depend on the base model" in hf_sane_command(*arguments, exit_code=2).stderr
    assert not (tmp_path / "out").exists()
    hf_sane_command(*arguments, "--base", tmp_path / "base.safetensors")
    found = torch.tensor(RunRecord.load(tmp_path / "out" / "run.json").results["distances"])
    points = torch.stack(moved).flatten(1)
    torch.testing.assert_close(found, torch.cdist(points, points), rtol=1e-4, atol=1e-4)


def test_single_adapters_per_label_are_said_to_be_no_regions(adapters, tmp_path, hf_sane_command):
    chosen = [part for label, path in zip("abc", adapters, strict=False) for part in ("--adapter", f"{label}={path}")]
    output = hf_sane_command("regions", *chosen, "--output", tmp_path / "out").output
    assert "no regions, since every label has only one network; distances (cosine)" in output
    results = RunRecord.load(tmp_path / "out" / "run.json").results
    assert results["weights"]["label"]["skipped"] == "every label has only one network"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected either zoos \(--zoo\) or adapters \(--adapter\); name at least one"),
        (["--zoo", "a", "--adapter", "b=c"], r"expected either zoos \(--zoo\) or adapters"),
        (["--adapter", "b"], r"expected adapters as LABEL=SOURCE, got \['b'\]; say what each was trained for"),
        (["--adapter", "=b"], r"expected adapters as LABEL=SOURCE, got \['=b'\]"),
    ],
)
def test_options_that_do_not_fit(arguments, message, tmp_path, hf_sane_command):
    error = hf_sane_command("regions", *arguments, "--output", tmp_path / "out", exit_code=2).stderr
    assert re.search(message, error)


def test_plots_are_left_out_without_matplotlib(adapters, tmp_path, hf_sane_command, monkeypatch, caplog):
    from hf_sane.workflows import shared

    monkeypatch.setattr(shared, "find_spec", lambda name: None)
    chosen = [part for label, path in zip("abc", adapters, strict=False) for part in ("--adapter", f"{label}={path}")]
    hf_sane_command("regions", *chosen, "--output", tmp_path / "out")
    assert "plots are left out, since matplotlib is not installed: pip install 'hf_sane[analysis]'" in caplog.text
    assert not list((tmp_path / "out").glob("*.png"))


def test_zoos_of_one_seed_are_pointed_out(digits, tmp_path, hf_sane_command):
    for name in ("one", "two"):
        arguments = ZooSettings(
            name=name, num_models=4, epochs=1, keep_epochs=[0], split_shares=[1.0, 0.0, 0.0], progress_bar=False,
            train_limit=32, validation_limit=32, test_limit=32,
        )  # fmt: skip
        build_zoo(arguments, digits, tmp_path / name)
    zoos = ("--zoo", tmp_path / "one", "--zoo", tmp_path / "two")
    output = hf_sane_command("regions", *zoos, "--no-plots", "--output", tmp_path / "out").output
    assert "8 networks started from the same weights as a network of another data set" in output


def test_one_data_set_is_no_map(tiny_zoo_folder, tmp_path, hf_sane_command):
    error = hf_sane_command("regions", "--zoo", tiny_zoo_folder, "--output", tmp_path / "out", exit_code=2).stderr
    assert "level 'data_set' needs at least two networks with one label and two labels, got 1 labels" in error


def test_an_adapter_that_comes_twice_is_refused(adapters, tmp_path, hf_sane_command):
    (tmp_path / "copy.safetensors").write_bytes(adapters[1].read_bytes())
    for label, twin in (("a", adapters[1]), ("b", tmp_path / "copy.safetensors")):
        pairs = (f"a={adapters[0]}", f"a={adapters[1]}", f"{label}={twin}", f"b={adapters[2]}")
        chosen = [part for pair in pairs for part in ("--adapter", pair)]
        error = hf_sane_command("regions", *chosen, "--output", tmp_path / "out", exit_code=2).stderr
        assert f"these adapters are the same, weight by weight: 1: a={adapters[1]} and 2: {label}={twin}." in error
        assert not (tmp_path / "out").exists()


def test_a_zoo_that_comes_twice_is_refused(tiny_zoo_folder, tmp_path, hf_sane_command):
    zoos = ("--zoo", tiny_zoo_folder, "--zoo", f"{tiny_zoo_folder}/")
    error = hf_sane_command("regions", *zoos, "--output", tmp_path / "out", exit_code=2).stderr
    assert "expected different zoos, got" in error
