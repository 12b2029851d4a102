"""`info` and `analyze` from Python: objects as sources, the numbers and tables of the verbs."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_sane.architectures.presets import build_model, cnn_s
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.analyze import analyze
from hf_sane.workflows.doctor import Check, DoctorResult
from hf_sane.workflows.info import info
from hf_sane.workflows.search import index_networks, search


def test_info_of_a_module_and_of_its_folder(tmp_path, hf_sane_command):
    network = build_model(cnn_s())
    network.save_pretrained(tmp_path)
    of_module, of_folder = info(network, token_dim=201), info(tmp_path, token_dim=201)
    assert of_module.to_dict() == of_folder.to_dict()
    assert of_module.layout.num_tokens == 48
    assert json.loads(of_folder.to_json()) == of_folder.facts
    assert json.loads(hf_sane_command("info", tmp_path, "--token-dim", 201, "--json").output) == of_folder.facts
    assert str(of_folder) == hf_sane_command("info", tmp_path, "--token-dim", 201).output.rstrip()
    assert "2464" in next(line for line in str(of_module).splitlines() if line.startswith("weights"))
    assert of_module.record.arguments["checkpoint"] == "<CNNForImageClassification>"


def test_info_with_a_tokenizer_at_hand():
    extractor = SANEFeatureExtractor(token_dim=36, batch_norm="template", normalization="none")
    assert info(build_model(cnn_s()), sane=extractor).facts["total"]["token_dim"] == 36


def test_what_was_found_is_saved(tmp_path):
    """Results without files of their own used to save nothing but how they came about."""
    network = build_model(cnn_s())
    network.save_pretrained(tmp_path / "checkpoints" / "a")
    index = index_networks([network], output=tmp_path / "index").output
    checks = [Check("disk", "fault", "full", "make room")]
    found = {
        "info": info(network),
        "of a folder": info(tmp_path / "checkpoints"),
        "search": search(network, index),
        "doctor": DoctorResult(record=RunRecord(command="hf-sane doctor"), checks=checks),
    }
    assert [near.source for near in found["search"].neighbours] == ["network_0"]
    for name, result in found.items():
        folder = result.save(tmp_path / name).output
        assert json.loads((folder / "run.json").read_text())["results"] == json.loads(json.dumps(result.to_dict()))
        assert json.loads((folder / "hf_sane_manifest.json").read_text())["job"]


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(60, 70, generator=generator), "a.bias": torch.zeros(60)}


def test_analyze_of_tensors_and_of_a_file(tensors, tmp_path, hf_sane_command):
    save_file(tensors, tmp_path / "network.safetensors")
    of_tensors = analyze(tensors, num_bootstrap=20)
    of_file = analyze(tmp_path / "network.safetensors", num_bootstrap=20, output=tmp_path / "report", plots=False)
    assert of_tensors.report["a.weight"].row() == of_file.report["a.weight"].row()
    arguments = ("analyze", tmp_path / "network.safetensors", "--num-bootstrap", 20)
    assert json.loads(hf_sane_command(*arguments, "--json").output) == json.loads(json.dumps(of_file.to_dict()))
    assert f"{str(of_file).rpartition('wrote')[0]}".rstrip() == hf_sane_command(*arguments).output.rstrip()
    assert json.loads((tmp_path / "report" / "spectrum.json").read_text()) == json.loads(json.dumps(of_file.to_dict()))
    assert of_tensors.exit_code == 0
    assert of_tensors.record.arguments["checkpoint"] == of_tensors.report.source


def test_settings_are_checked_before_anything_is_read():
    with pytest.raises(ValueError, match="expected min_tail >= 2, got 1"):
        analyze("no/such-network", min_tail=1)


def test_nan_is_a_finding(tensors):
    tensors["b.weight"] = torch.full((4, 4), torch.nan)
    found = analyze(tensors, num_bootstrap=0)
    assert found.exit_code == 1
    assert found.notes == ["NaN or infinite weights in b.weight: left out of the analysis"]
    assert str(found).startswith(found.notes[0])


def test_what_a_stranger_named_is_shown_as_one_line_of_text(tensors):
    tensors["\x1b[31mred\n.weight"] = torch.full((4, 4), torch.nan)
    text = str(analyze(tensors, num_bootstrap=0)) + str(info(tensors))
    assert "\x1b" not in text
    assert "[31mred .weight" in text
