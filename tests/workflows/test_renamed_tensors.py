"""Networks of Transformers whose files name tensors otherwise than their modules, such as ViT, in all workflows."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import MixtralConfig, MixtralForSequenceClassification, ViTConfig, ViTForImageClassification

import hf_sane
from hf_sane.analysis._region_zoos import zoo_networks
from hf_sane.networks import _modules
from hf_sane.networks._images import load_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.tokenization._saved_form import renamed_tensors

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}
COUNT = 6


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_modules, "_REGISTERED", {})


def vit(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
    ).eval()


@pytest.fixture(scope="module")
def networks() -> list[ViTForImageClassification]:
    return [vit(index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("vits")
    for index, network in enumerate(networks):
        network.save_pretrained(place / f"run{index}")
    return place


@pytest.fixture(scope="module")
def zoo(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("zoo") / "zoo"
    return hf_sane.import_zoo(folder, token_dim=9, output=place)


@pytest.fixture(scope="module")
def sane(zoo):
    split = zoo.splits["train"]
    extractor = hf_sane.SANEFeatureExtractor(token_dim=9).fit([(split.layout(0), split.stacked_tokens())])
    torch.manual_seed(0)
    return hf_sane.SANE(hf_sane.SANEModel(hf_sane.SANEConfig(token_dim=9, window_size=32, **SMALL)).eval(), extractor)


def test_names_in_files_are_found(networks, folder):
    (network, *_), renamed = networks, renamed_tensors(networks[0])
    with safe_open(folder / "run0" / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    assert renamed.keys() <= stored.keys() != network.state_dict().keys()
    own = network.state_dict()
    assert own.keys() == {renamed.get(name, name) for name in stored}
    for name, tensor in stored.items():
        assert torch.equal(tensor, own[renamed.get(name, name)])


def test_modules_whose_experts_are_split_in_files_are_not_renamed():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        experts = MixtralForSequenceClassification(MixtralConfig(num_key_value_heads=2, vocab_size=9, **sizes))
    assert renamed_tensors(experts) == {} == renamed_tensors(torch.nn.Linear(2, 2))


def test_imported_networks_run_and_are_mapped(zoo, networks):
    x = torch.randn(3, 1, 8, 8)
    expected = {f"run{index}": network(x).logits for index, network in enumerate(networks)}
    train = zoo.splits["train"]
    stacked = train.networks().logits(x)
    for index, run in enumerate(train.run_ids):
        torch.testing.assert_close(train.model(index)(x).logits, expected[run])
        torch.testing.assert_close(stacked[index], expected[run])
    mapped = zoo_networks([zoo]).aligned()  # traced by the names in files
    points = torch.cat([tensor.flatten(1) for tensor in mapped.tensors.values()], dim=1)
    wanted = torch.stack([expected[run.rpartition("/")[2]] for run in mapped.runs])
    torch.testing.assert_close(mapped.at(points).logits(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", ["zoo", "folder", "modules"])
def test_they_are_sampled_saved_and_embedded_alike(given, zoo, folder, networks, sane, tmp_path):
    digits = load_images("digits", train_limit=40, validation_limit=20, test_limit=20)
    around = {"zoo": zoo, "folder": [folder], "modules": networks}[given]
    found = sane.sample(around, images=digits, num_samples=2, num_candidates=4, bandwidth=0.1, unit="latent_std")
    found.save_pretrained(tmp_path / "sampled")
    for index, network in enumerate(found):
        saved = ViTForImageClassification.from_pretrained(tmp_path / "sampled" / f"network_{index}")
        for name, tensor in network.state_dict().items():
            assert torch.equal(saved.state_dict()[name], tensor)
    torch.testing.assert_close(sane.embed(found[0]), sane.embed(tmp_path / "sampled" / "network_0"))


def test_a_zoo_that_is_built_has_the_names_of_files(tmp_path):
    digits = load_images("digits", train_limit=20, validation_limit=10, test_limit=10)
    zoo = hf_sane.build_zoo(digits, module=vit, num_models=3, epochs=1, output=tmp_path / "zoo", progress_bar=False)
    network = zoo.splits["test"].model(0)
    network.save_pretrained(tmp_path / "network")
    with safe_open(tmp_path / "network" / "model.safetensors", "pt") as file:
        assert sorted(zoo.splits["test"].layout(0).tensor_names) == sorted(file.keys())
    stack = StackedNetworks.from_state_dicts(network, [network.state_dict()])
    accuracy = stack.evaluate(*digits.split("test"))[1].item()
    assert zoo.splits["test"].column("test_accuracy")[-1] == pytest.approx(accuracy)


def test_a_registered_class_is_aligned_by_the_names_of_files(zoo, folder):
    hf_sane.register_architecture(vit, torch.zeros(1, 1, 8, 8))
    loaded = hf_sane.register_architecture(vit, torch.zeros(1, 1, 8, 8)).from_pretrained(folder / "run0")
    assert loaded.state_dict().keys() == vit().state_dict().keys()
    spec = _modules.find_architecture(zoo.splits["train"].layout(0)).permutations_of(
        zoo.splits["train"].layout(0).tensor_names
    )
    assert any(axis is not None for axes in spec.axes.values() for axis in axes)
