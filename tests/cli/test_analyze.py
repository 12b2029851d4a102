"""`hf-sane analyze`: the table, the files, and what goes wrong."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.records._run_record import RunRecord


@pytest.fixture
def checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(60, 70, generator=generator),
        "a.bias": torch.zeros(60),
        "conv.weight": torch.randn(64, 60, 2, 2, generator=generator),
        "small.weight": torch.randn(5, 64, generator=generator),
        "small.bias": torch.zeros(5),
    }
    save_file(tensors, tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def test_the_table_is_for_people(checkpoint, hf_sane_command):
    output = hf_sane_command("analyze", checkpoint, "--num-bootstrap", 20).output
    lines = output.splitlines()
    assert lines[0].split()[0] == "layer"
    layer = analyze_spectrum(checkpoint, SpectrumSettings(num_bootstrap=20))["a.weight"]
    cells = next(line for line in lines if line.startswith("a.weight")).split()
    assert cells[1:4] == ["70", "x", "60"]
    assert cells[4] == f"{layer.alpha:.2f}"
    assert cells[-1] == "random-like"
    assert next(line for line in lines if line.startswith("small.weight")).endswith("too small")
    assert "  one-dimensional: a.bias, small.bias" in lines
    assert any(line.startswith("  5 eigenvalues are too few") and line.endswith(": small.weight") for line in lines)


def test_pooled_convolutions_and_long_lists(checkpoint, hf_sane_command):
    output = hf_sane_command("analyze", checkpoint, "--conv", "pooled", "--num-bootstrap", 0).output
    assert "4 x 64 x 60" in output
    output = hf_sane_command("analyze", checkpoint, "--conv", "slices", "--min-values", 65).output
    assert "conv.weight[1,1]" in output
    assert "a.weight, conv.weight[0,0], conv.weight[0,1] and 2 more" in output


def test_json_is_the_report(checkpoint, hf_sane_command):
    output = hf_sane_command("analyze", checkpoint, "--json", "--num-bootstrap", 0, "--eigenvalues").output
    report = analyze_spectrum(str(checkpoint), SpectrumSettings(num_bootstrap=0))
    assert json.loads(output) == json.loads(json.dumps(report.to_dict(eigenvalues=True)))


def test_the_folder_holds_report_pictures_and_record(checkpoint, tmp_path, hf_sane_command):
    arguments = ("analyze", checkpoint, "--num-bootstrap", 0, "--output", tmp_path / "out")
    hf_sane_command(*arguments)
    names = {"spectrum.json", "densities.png", "depth.png", "report.html", "run.json", "run.yaml"}
    names.add("hf_sane_manifest.json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    record = RunRecord.load(tmp_path / "out" / "run.json")
    assert record.results["summary"]["layers"] == 3
    assert record.results["summary"] == json.loads((tmp_path / "out" / "spectrum.json").read_text())["summary"]
    assert "already holds a finished" in hf_sane_command(*arguments, exit_code=2).stderr


def test_sane_stands_beside(tiny_sane_folder, tiny_zoo, tmp_path, hf_sane_command):
    save_file(tiny_zoo.splits["test"].state_dict(0), tmp_path / "network.safetensors")
    arguments = ("analyze", tmp_path / "network.safetensors", "--sane", tiny_sane_folder, "--output", tmp_path / "out")
    hf_sane_command(*arguments)
    spread = RunRecord.load(tmp_path / "out" / "run.json").results["embedding_spread"]
    assert all(value > 0 for value in spread.values())
    assert any(name.endswith(".weight") for name in spread)


def test_plots_are_left_out_without_matplotlib(checkpoint, tmp_path, hf_sane_command, monkeypatch, caplog):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "hf_sane.workflows.shared.find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    arguments = ("analyze", checkpoint, "--num-bootstrap", 0, "--output", tmp_path / "out")
    hf_sane_command(*arguments)
    assert "plots are left out, since matplotlib is not installed: pip install 'hf_sane[analysis]'" in caplog.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "spectrum.json",
        "report.html",
        "run.json",
        "run.yaml",
        "hf_sane_manifest.json",
    }


def test_a_checkpoint_without_matrices_is_one_line_of_error(tmp_path, hf_sane_command):
    save_file({"bias": torch.ones(3)}, tmp_path / "network.safetensors")
    message = hf_sane_command("analyze", tmp_path / "network.safetensors", exit_code=2).stderr
    assert "holds no matrix to analyse among 1 tensors (bias: one-dimensional)" in message


@pytest.mark.parametrize("broken", ["a.weight", "a.bias"])
def test_nan_is_a_finding_with_exit_code_one(broken, checkpoint, tmp_path, hf_sane_command):
    tensors = load_file(checkpoint)
    tensors[broken].view(-1)[3] = torch.nan
    save_file(tensors, tmp_path / "broken.safetensors")
    for arguments in (("--json",), ("--output", tmp_path / "out", "--no-plots"), ()):
        result = hf_sane_command(
            "analyze", tmp_path / "broken.safetensors", "--num-bootstrap", 0, *arguments, exit_code=1
        )
        note = f"NaN or infinite weights in {broken}: left out of the analysis"
        assert result.stderr == ("" if arguments == ("--json",) else note + "\n")
        if arguments == ("--json",):
            assert json.loads(result.stdout)["skipped"][broken] == "NaN or infinite weights"
    assert (
        RunRecord.load(tmp_path / "out" / "run.json").results["summary"]["layers"] >= 2
    )  # the rest is done all the same
