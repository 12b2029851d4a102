"""Publishing and loading through unmodified Hub clients, against a Hub on the loopback interface."""

import subprocess
import sys

import pytest
from hub_server import run_hub

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.core.run_record import RunRecord
from hf_sane.hub.publish import save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor

CLIENT = """
import sys
from pathlib import Path

import datasets
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

import hf_sane
from hf_sane.hub.publish import push_folder
from hf_sane.tokenization.checkpoints import load_state_dict
from hf_sane.tokenization.headers import read_meta_state_dict
from hf_sane.zoo.dataset import Zoo

folder, zoo_folder = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("sane", "network"):
    address = push_folder(folder / name, f"someone/{name}")
    assert f"someone/{name}/commit/" in address, address

model, local = AutoModel.from_pretrained("someone/sane"), AutoModel.from_pretrained(folder / "sane")
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), local.state_dict().values(), strict=True))
tokenizer = AutoFeatureExtractor.from_pretrained("someone/sane")
assert torch.equal(tokenizer.encode("someone/network").tokens, tokenizer.encode(folder / "network").tokens)
network = AutoModelForImageClassification.from_pretrained("someone/network")
assert {name: tensor.shape for name, tensor in read_meta_state_dict("someone/network").items()} == {
    name: tensor.shape for name, tensor in network.state_dict().items()
}
try:
    load_state_dict("someone/zoo-that-is-not-there")
except OSError as error:
    assert "404" in str(error), error
else:
    raise AssertionError("a repository that does not exist was read")

zoo = Zoo.load(zoo_folder)
zoo.push_to_hub("someone/zoo")
loaded = Zoo.load("someone/zoo")
for name, split in zoo.splits.items():
    assert torch.equal(loaded.splits[name].stacked_tokens(), split.stacked_tokens())
assert loaded.alignment is not None
rows = datasets.load_dataset("someone/zoo", split="test", streaming=True)
assert [row["run_id"] for row in rows] == zoo.splits["test"].run_ids
print("all came back")
"""


@pytest.fixture
def folder(tmp_path):
    """A SANE folder and a network, saved for publication."""
    network, record = build_model(cnn_digits()), RunRecord(command="x", results={"test_accuracy": 0.5})
    extractor = SANEFeatureExtractor(token_dim=20).fit([network])
    model = SANEModel(
        SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    )
    save_sane(tmp_path / "sane", model, extractor, record, repo_id="someone/sane", network_config=network.config)
    save_network(tmp_path / "network", network, record, repo_id="someone/network")
    return tmp_path


def test_everything_survives_the_way_to_the_hub_and_back(folder, tiny_zoo_folder, tmp_path):
    with run_hub() as hub:
        ran = subprocess.run(
            [sys.executable, "-c", CLIENT, str(folder), str(tiny_zoo_folder)],
            capture_output=True,
            text=True,
            env=hub.environment(tmp_path / "home"),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert "all came back" in ran.stdout
    assert len(hub.repositories["models", "someone/sane"].titles) == 2  # the initial commit, and ours with the card
    assert "README.md" in hub.repositories["models", "someone/sane"].files
    assert "README.md" in hub.repositories["datasets", "someone/zoo"].files
