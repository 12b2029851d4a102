"""Every link of every kind of card leads to a file beside it or to the web."""

import re
from copy import deepcopy

import pytest
import torch

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.hub._adapters import save_network_adapter
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.hub._soups import save_soup
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._finetuning import add_network_lora
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


def broken_links(folder):
    """Targets in the cards of a folder that lead nowhere; paths on this machine are such targets."""
    found = []
    for card in folder.rglob("README.md"):
        targets = re.findall(r"\]\((?!#)([^)\s]+)\)", card.read_text())
        found += [
            target for target in targets if not target.startswith("https://") and not (card.parent / target).is_file()
        ]
        found += re.findall(r"(?<!\.)/(?:tmp|home|root)/\S+", card.read_text())
    return found


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model(cnn_digits())


def write_sane(folder, network):
    extractor = SANEFeatureExtractor(73).fit([network])
    record = RunRecord.start(seed=0).finish({"reconstruction_r2": 0.9})
    save_sane(folder, SANEModel(SANEConfig(token_dim=73, hidden_size=16, num_attention_heads=2)), extractor, record)


def write_network(folder, network):
    save_network(folder, network, RunRecord.start(seed=0).finish({"test_accuracy": 0.9}))


def write_soup(folder, network):
    rows = {"org/a": {"weight": 0.5, "held_out_score": 0.8}, "local": {"weight": 0.5, "held_out_score": 0.7}}
    record = RunRecord.start(seed=0, arguments={"recipe": "uniform", "metric": "accuracy"})
    save_soup(folder, network, record.finish({"ingredients": rows, "validation_accuracy": 0.9}))


def write_adapter(folder, network):
    record = RunRecord.start(seed=0, arguments={"steps": 9}).finish({"test_accuracy": 0.75})
    save_network_adapter(folder, add_network_lora(deepcopy(network), rank=2), network, record, base_model="org/base")


@pytest.mark.parametrize("write", [write_sane, write_network, write_soup, write_adapter])
def test_links_of_model_and_adapter_cards(write, network, tmp_path):
    write(tmp_path / "folder", network)
    card = tmp_path / "folder" / "README.md"
    assert "](https://" in card.read_text()
    assert not broken_links(tmp_path)
    card.write_text(card.read_text() + "[gone](gone.md) and [here](README.md) and /tmp/elsewhere\n")
    assert broken_links(tmp_path) == ["gone.md", "/tmp/elsewhere"]


def test_links_of_zoo_cards(tiny_zoo_folder):
    assert (tiny_zoo_folder / "README.md").is_file()
    assert not broken_links(tiny_zoo_folder)
