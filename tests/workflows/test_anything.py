"""Every function takes networks, zoos and autoencoders as objects, `str` or `Path`, with the same result."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import hf_sane
from hf_sane.hub._publish import save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import Zoo, ZooSplit

# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

PRETRAINED = Path(__file__).parents[2] / "pretrained"


@pytest.fixture(scope="module")
def sane_folder(tiny_zoo, tmp_path_factory):
    """An autoencoder that nobody trained, with a record."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SANEModel(SANEConfig(token_dim=layout.token_dim, window_size=16, **sizes)).eval()
    record = RunRecord(command="hf-sane pretrain", results={"loss": 0.25})
    return save_sane(tmp_path_factory.mktemp("sane") / "model", model, extractor, record)


@pytest.fixture(scope="module")
def sane(sane_folder):
    return hf_sane.SANE.from_pretrained(sane_folder)


@pytest.fixture(scope="module")
def network(tiny_zoo):
    return tiny_zoo.splits["train"].model(0)


@pytest.fixture(scope="module")
def network_folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network") / "network"
    network.save_pretrained(folder)
    return folder


def test_one_network_is_embedded_from_everywhere(sane, sane_folder, network, network_folder):
    file = network_folder / "model.safetensors"
    expected = sane.embed(network)
    for given in (network, network.state_dict(), network_folder, str(network_folder), file, str(file)):
        assert torch.equal(sane.embed(given), expected)
        found = hf_sane.embed(given, sane_folder, poolings="mean")
        assert found.splits["train"]["mean"] == [expected.tolist()]
    found = hf_sane.embed([network_folder, network], sane, poolings=["mean"])
    assert found.splits["train"]["mean"] == [expected.tolist()] * 2
    assert found.splits["train"]["checkpoint"] == [str(network_folder), "network_1"]
    assert sane.embed([network_folder, network]).tolist() == [expected.tolist()] * 2


def test_windows_are_set_alike_everywhere():
    sane = hf_sane.SANE.from_pretrained(PRETRAINED / "sane-usps")  # without training, tokens do not see each other
    network = PRETRAINED / "sampled-usps"
    narrow = sane.embed(network, window_size=8)
    assert not torch.allclose(narrow, sane.embed(network))
    assert torch.equal(sane.encode(network, window_size=8)[0].mean(dim=0), narrow)
    assert hf_sane.embed(network, sane, poolings="mean", window_size=8).splits["train"]["mean"] == [narrow.tolist()]


def test_a_zoo_is_embedded_from_its_folder(sane, tiny_zoo, tiny_zoo_folder):
    expected = sane.embed(tiny_zoo)
    assert expected.shape == (len(tiny_zoo), 8)
    for given in (tiny_zoo_folder, str(tiny_zoo_folder)):
        assert torch.equal(sane.embed(given), expected)
        found = hf_sane.embed(given, sane, poolings=["mean"]).splits
        assert [row for split in found.values() for row in split["mean"]] == expected.tolist()


def test_other_workflows_take_folders(sane, sane_folder, tiny_zoo, tiny_zoo_folder, digits, network):
    settings = {"num_candidates": 4, "num_samples": 2, "bandwidth": [0.1]}
    calls = {
        "compare": lambda zoo, sane: hf_sane.compare_samplers(zoo, sane, digits, methods=["anchors"], **settings),
        "reconstruct": lambda zoo, sane: hf_sane.reconstruct({"zoo": zoo}, sane, digits),
        "probe": lambda zoo, sane: hf_sane.probe(zoo, sane, poolings="mean", properties="epoch"),
        "sample": lambda zoo, sane: hf_sane.sample(
            zoo, sane, images=digits, num_samples=2, num_candidates=4, bandwidth=0.1
        ),
    }
    for name, call in calls.items():
        assert call(tiny_zoo_folder, sane_folder).to_dict() == call(tiny_zoo, sane).to_dict(), name
    options = {"num_samples": 2, "num_candidates": 4, "bandwidth": 0.1, "unit": "latent_std"}
    alone = sane.sample(network, images=digits, **options)
    assert alone.to_dict() == sane.sample([network], images=digits, **options).to_dict()


def test_a_folder_keeps_its_alignment(tiny_zoo, tmp_path):
    bare = {name: ZooSplit(split.table, tiny_zoo.facts, None) for name, split in tiny_zoo.splits.items()}
    folder = Zoo(bare, tiny_zoo.facts).save(tmp_path / "zoo")
    assert hf_sane.load_zoo(folder).alignment is None
    aligned = hf_sane.align_zoo(str(folder))
    for zoo in (aligned, hf_sane.load_zoo(folder)):
        for key, axes in tiny_zoo.alignment.permutations.items():
            assert {axis: index.tolist() for axis, index in zoo.alignment.permutations[key].items()} == {
                axis: index.tolist() for axis, index in axes.items()
            }


def test_an_autoencoder_keeps_its_record(sane, sane_folder, tmp_path):
    assert sane.record.results == {"loss": 0.25}
    again = hf_sane.SANE.from_pretrained(sane.save_pretrained(tmp_path / "copy")).record
    assert again.to_dict() == sane.record.to_dict()
    shutil.copytree(sane_folder, tmp_path / "repository" / "inside")
    inside = hf_sane.SANE.from_pretrained(tmp_path / "repository", subfolder="inside")
    assert inside.record.command == "hf-sane pretrain"


def vit(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).eval()


def test_the_package_comes_with_an_autoencoder_and_its_anchors(sane, network, tmp_path):
    released = hf_sane.SANE.from_pretrained()
    anchors = released.anchors()
    assert [folder.name for folder in anchors] == [f"anchor_{number}" for number in range(10)]
    assert released.embed(anchors[:2]).shape[0] == 2
    with pytest.raises(ValueError, match=r"comes with networks to sample around, got one without; .*anchors=\["):
        hf_sane.SANE(sane.model, sane.extractor).anchors()
    sane.save_pretrained(tmp_path / "sane", anchors=[network])
    (own,) = hf_sane.SANE.from_pretrained(tmp_path / "sane").anchors()
    assert torch.equal(sane.embed(own), sane.embed(network))


def test_objects_say_what_they_are_in_one_line(sane, sane_folder, tiny_zoo, digits):
    sizes = {name: len(split) for name, split in tiny_zoo.splits.items()}
    counts = ", ".join(f"{name}={size}" for name, size in sizes.items())
    assert repr(tiny_zoo) == f"Zoo('digits', {counts}, aligned, source={tiny_zoo.source!r})"
    assert repr(tiny_zoo.splits["test"]).startswith(
        f"ZooSplit({sizes['test']} networks of the zoo 'digits', columns: "
    )
    loaded = hf_sane.SANE.from_pretrained(sane_folder)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    end = f"tokens of {loaded.extractor.token_dim} weights, source={str(sane_folder)!r})"
    assert repr(loaded) == f"SANE(SANEModel, {count:,} parameters, {end}"
    assert repr(digits).endswith(" images of 1x8x8, 10 classes)")


def test_a_result_in_a_console_is_its_tables(sane, tiny_zoo):
    found = hf_sane.embed(tiny_zoo, sane)
    assert repr(found) == f"<EmbedResult>\n{found}"
    assert "networks" in repr(found)


def test_a_soup_is_published(network, local_hub):
    """With its code, if Transformers has none."""
    found = hf_sane.soup([network, network])
    address = found.push_to_hub("me/soup")
    assert address.startswith(f"{local_hub.address}/me/soup/commit/")
    assert found.output is None
    soup = AutoModelForImageClassification.from_pretrained("me/soup")
    for name, tensor in soup.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name])
    repository = local_hub.repositories["models", "me/soup"]
    assert "modeling_zoo.py" in repository.files
    assert repository.titles[-1] == "Soup of 2"


def test_a_soup_of_another_library_is_published_without_code(local_hub, tmp_path):
    models = [vit(0), vit(1)]
    for index, model in enumerate(models):
        model.save_pretrained(tmp_path / str(index))
    hf_sane.soup([tmp_path / "0", tmp_path / "1"]).push_to_hub("me/vit")
    soup = AutoModelForImageClassification.from_pretrained("me/vit")
    for name, tensor in soup.state_dict().items():
        torch.testing.assert_close(tensor, (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2)
    assert set(local_hub.repositories["models", "me/vit"].files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "run.json",
    }
