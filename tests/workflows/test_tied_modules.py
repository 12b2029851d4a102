"""Modules of which tensors have two names: files omit one of them, as `safetensors.torch.save_model` does."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from transformers import BartConfig, BartForSequenceClassification

import hf_sane
from hf_sane.networks import _modules
from hf_sane.networks._modules import find_architecture, transformers_architecture
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._reading import read_network

NAMES = [f"run{index}" for index in range(4)]


class Tied(nn.Module):
    """A layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.first, self.second = nn.Linear(64, 6), nn.Linear(6, 10), nn.Linear(6, 10)
        self.second.weight = self.first.weight
        self.again = self.hidden

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.again(images.flatten(1)).relu()
        return self.first(hidden) + self.second(hidden)


@pytest.fixture(autouse=True)
def only_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "_REGISTERED", {})
    hf_sane.register_architecture(Tied, torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="module")
def networks() -> list[Tied]:
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        found.append(Tied().eval())
    return found


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    root = tmp_path_factory.mktemp("tied")
    for name, network in zip(NAMES, networks, strict=True):
        save_model(network, str(root / f"{name}.safetensors"))
        torch.save(network.state_dict(), root / f"{name}.pt")
    (root / "runs.csv").write_text("net,kind\n" + "\n".join(f"{name},{name[-1] in '02'}" for name in NAMES))
    return root


@pytest.fixture(scope="module")
def zoo(folder):
    options = {"files": ["*.safetensors"], "group_by": "network", "split_shares": [1, 0, 0], "token_dim": 16}
    return hf_sane.import_zoo(folder, properties=folder / "runs.csv", **options, output=folder / "zoo")


@pytest.fixture(scope="module")
def sane(networks) -> hf_sane.SANE:
    extractor = SANEFeatureExtractor(16).fit(networks)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4, "window_size": 64}
    torch.manual_seed(0)
    return hf_sane.SANE(hf_sane.SANEModel(hf_sane.SANEConfig(token_dim=16, **small)).eval(), extractor)


def test_files_are_embedded_as_their_modules_are(networks, folder, sane):
    modules = sane.embed(networks)
    for suffix in ("safetensors", "pt"):
        files = sane.embed([folder / f"{name}.{suffix}" for name in NAMES])
        torch.testing.assert_close(files, modules, rtol=0, atol=0)
    assert modules.unique(dim=0).shape[0] == 4


def test_a_zoo_of_their_files_runs_is_aligned_and_sampled(networks, zoo, sane, digits):
    images, labels = digits.split("test")
    expected = [(network(images).argmax(1) == labels).float().mean().item() for network in networks]
    split = zoo.splits["train"]
    assert split.networks().evaluate(images, labels)[1].tolist() == pytest.approx(expected)
    for aligned in (zoo, hf_sane.align_zoo(zoo)):
        network = aligned.splits["train"].model(3)
        torch.testing.assert_close(network(images), networks[3](images))
        assert network.second.weight is network.first.weight
    options = {"num_anchors": 2, "top_fraction": 1.0, "num_samples": 2, "num_candidates": 3, "bandwidth": [0.1]}
    sampled = hf_sane.sample(zoo, sane, evaluate=lambda network: network.hidden.weight.norm(), **options)
    assert all(type(network) is Tied for network in sampled)


def test_files_of_a_registered_module_are_opened_fine_tuned_and_averaged(networks, folder, digits):
    files = [folder / f"{name}.safetensors" for name in NAMES[:2]]
    assert find_architecture(dict(read_network(files[0]).tensors)).name == "Tied"
    tuned = hf_sane.finetune(files, digits, epochs=1, train_limit=40, scratch=False)
    images, labels = digits.split("test")
    before = [(network(images).argmax(1) == labels).float().mean().item() for network in networks[:2]]
    assert tuned.curves["networks"][0] == pytest.approx(before)
    soup = hf_sane.soup(files, method="greedy", images=digits, align=True).soup
    assert soup.score >= max(soup.ingredient_scores.values())
    foreign = {name: tensor for name, tensor in networks[0].state_dict().items() if "hidden" not in name}
    assert find_architecture({name: t for name, t in foreign.items() if "again" not in name}) is None


def test_tied_tensors_count_once_in_maps_of_regions(networks, zoo, sane):
    """Weights that count twice weigh twice in distances, and an autoencoder does not know the second name."""
    found = hf_sane.map_regions(zoo, sane=sane, label=["kind"], align=False, plots=False)
    distinct = sum(parameter.numel() for parameter in networks[0].parameters())
    assert found.maps["weights"].points.shape == (4, distinct)
    apart = [sum((a - b).square().sum() for a, b in zip(networks[0].parameters(), other.parameters(), strict=True))
             for other in networks]  # fmt: skip
    measured = found.maps["weights"].distances("euclidean")[0]
    np.testing.assert_allclose(measured, torch.stack(apart).detach().sqrt(), rtol=1e-5)
    latents = sane.encode(networks[0])[0].flatten()
    torch.testing.assert_close(found.maps["latents"].points[0], latents, rtol=1e-4, atol=1e-5)
    options = {"label": ["kind"], "plots": False, "num_points": 2, "evaluate": lambda m: m.second.weight.norm()}
    corners = hf_sane.map_regions(zoo, **options).scores["kind: True"].corners.tolist()
    assert corners == pytest.approx([networks[index].first.weight.norm().item() for index in (0, 2)], rel=1e-5)


def test_classes_of_transformers_with_tied_embeddings_run(tmp_path):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "decoder_start_token_id": 3}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    network = BartForSequenceClassification(BartConfig(vocab_size=10, **sizes, **heads, **ids)).eval()
    network.save_pretrained(tmp_path / "bart")
    zoo = hf_sane.import_zoo(tmp_path / "bart", token_dim=16, split_shares=[1, 0, 0], output=tmp_path / "zoo")
    loaded = zoo.splits["train"].model(0)
    tokens = torch.tensor([[4, 5, 6, 3]])
    torch.testing.assert_close(loaded(tokens).logits, network(tokens).logits)
    layout = zoo.splits["train"].layout(0)
    assert transformers_architecture(network.config.to_dict() | {"num_labels": 7}, layout) is None
    with pytest.raises(ValueError, match="BartForSequenceClassification has shapes that depend on values"):
        hf_sane.align_zoo(zoo)
