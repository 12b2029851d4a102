"""The round-trip benchmark on two small checkpoints, on an empty folder and on a loss."""

import json

import pytest
import round_trip
import torch
from safetensors.torch import save_file

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


@pytest.fixture
def folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "nets" / name).mkdir(parents=True)
    save_file(build_model(cnn_digits()).state_dict(), tmp_path / "nets" / "one" / "a.safetensors")
    tensors = {"w.weight": torch.randn(3, 400).half(), "w.bias": torch.randn(3).half(), "steps": torch.tensor(3)}
    torch.save(tensors, tmp_path / "nets" / "two" / "b.pth")
    return tmp_path / "nets"


def test_every_checkpoint_is_counted(folder, tmp_path):
    round_trip.main(["--checkpoints", str(folder), "--output", str(tmp_path / "record.json")])
    results = json.loads((tmp_path / "record.json").read_text())["results"]
    assert results["total"]["files"] == 2
    assert results["total"]["failures"] == 0
    assert results["groups"]["two"] == {
        "files": 1, "tensors": 3, "floating_tensors": 2, "bytes": 2 * 1203 + 8, "uncertain_kinds": 0, "failures": {},
    }  # fmt: skip


def test_a_lost_bit_is_found(folder, monkeypatch):
    decode = SANEFeatureExtractor.decode

    def lossy(self, tokens, layout):
        return {
            name: tensor + 1e-3 if name == "w.bias" else tensor
            for name, tensor in decode(self, tokens, layout).items()
        }

    monkeypatch.setattr(SANEFeatureExtractor, "decode", lossy)
    report = round_trip.main(["--checkpoints", str(folder)])
    assert report["total"]["failures"] == 1
    assert report["groups"]["two"]["failures"] == {"b.pth": ["rowwise: w.bias", "dense: w.bias"]}
    assert not round_trip.same_bits(torch.tensor(0.0), torch.tensor(-0.0))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected safetensors files or pickles below"):
        round_trip.main(["--checkpoints", str(tmp_path)])
