"""A saved SANE folder carries its own code: it runs where this library is not installed."""

import json
import os

import pytest
import torch

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel

STRANGER = """
import sys
sys.modules["hf_sane"] = None  # any import of the library now fails
import torch
from transformers import AutoConfig, AutoModel

folder = sys.argv[1]
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
example = torch.load(f"{folder}/example.pt", weights_only=True)
output = model(example["tokens"], example["positions"], second_tokens=example["tokens"])
torch.testing.assert_close(output.reconstruction, example["reconstruction"])
latents = model.encode_sequences(example["tokens"], example["positions"], window_size=4, halo_size=1)
torch.testing.assert_close(latents, example["latents"])
fresh = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True)
assert torch.equal(fresh.token_in.weight, fresh.token_out.weight.T)  # it starts like the library's own
assert type(model).__module__.startswith("transformers_modules")
print("no library needed")
"""


@pytest.fixture
def folder_with_code(tmp_path, monkeypatch):
    monkeypatch.setattr(SANEConfig, "_auto_class", None)  # registering is global: put back what was there
    monkeypatch.setattr(SANEModel, "_auto_class", None)
    SANEConfig.register_for_auto_class()
    SANEModel.register_for_auto_class("AutoModel")
    torch.manual_seed(0)
    model = SANEModel(
        SANEConfig(token_dim=6, hidden_size=12, latent_dim=4, num_attention_heads=2, window_size=8)
    ).eval()
    model.save_pretrained(tmp_path)
    tokens, positions = torch.randn(2, 8, 6), torch.randint(0, 50, (2, 8, 3))
    with torch.no_grad():
        reconstruction = model(tokens, positions).reconstruction
    latents = model.encode_sequences(tokens, positions, window_size=4, halo_size=1)
    example = {"tokens": tokens, "positions": positions, "reconstruction": reconstruction, "latents": latents}
    torch.save(example, tmp_path / "example.pt")
    return tmp_path


def test_the_folder_runs_without_the_library(folder_with_code, tmp_path, fresh_python):
    assert json.loads((folder_with_code / "config.json").read_text())["auto_map"].keys() == {"AutoConfig", "AutoModel"}
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    assert "no library needed" in fresh_python(STRANGER, folder_with_code, env=environment, cwd=tmp_path)


def test_an_ordinary_save_carries_no_code(tmp_path):
    SANEModel(SANEConfig(token_dim=6, hidden_size=12, num_attention_heads=2)).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
