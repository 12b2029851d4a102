"""The committed autoencoder and the network that it sampled: small, complete, and what their records say."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sane import SANEFeatureExtractor, SANEModel
from hf_sane.hub._publish import find_anchors
from hf_sane.records._outputs import check_finished
from hf_sane.sampling._export import Provenance
from hf_sane.workflows.networks import open_stack
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.shared import BUNDLE

LARGEST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def folder(request):
    return request.config.rootpath / "pretrained"


@pytest.fixture(scope="module")
def sane(folder):
    return SANEModel.from_pretrained(folder / "sane-usps", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return SANEFeatureExtractor.from_pretrained(folder / "sane-usps")


@pytest.fixture(scope="module")
def network(folder):
    return AutoModelForImageClassification.from_pretrained(folder / "sampled-usps").eval()


def test_the_package_brings_a_small_sane_with_networks_to_sample_around():
    manifest = check_finished(BUNDLE, all_digests=True)
    assert manifest.strangers(BUNDLE) == []
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*")) < 8_000_000
    stack, names = open_stack([find_anchors(BUNDLE)])
    assert (stack.config.image_size, stack.config.num_channels) == (32, 3)
    assert len(names) == 10
    sane = SANE.from_pretrained(BUNDLE)
    assert sane.record.results["reconstruction_r2"] > 0.8
    assert next(iter(sane.record.results["anchors"].values())) > 0.4  # test accuracy on CIFAR-10
    latents, layout = sane.encode(stack.model(0))
    rebuilt = stack.model(0)
    rebuilt.load_state_dict(sane.decode(latents, layout))
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same = rebuilt(images).logits.argmax(dim=1) == stack.model(0)(images).logits.argmax(dim=1)
    assert same.float().mean() > 0.5


def normalised_error(sane, tokenizer, network):
    """Mean square of what reconstruction misses, in units of the weights' variance over the zoo."""
    sequence = tokenizer.encode(network)
    with torch.no_grad():
        latents = sane.encode_sequences(sequence.tokens[None], sequence.positions)
        decoded = sane.decode_sequences(latents, sequence.positions)[0]
    return (decoded - sequence.tokens)[sequence.layout.weight_mask].square().mean().item()


@pytest.mark.parametrize(("name", "job"), [("sane-usps", "SANE folder"), ("sampled-usps", "network")])
def test_every_file_is_as_its_manifest_lists_it(folder, name, job):
    manifest = check_finished(folder / name, all_digests=True)
    assert manifest is not None
    assert manifest.job == job
    assert manifest.strangers(folder / name) == []


def test_it_is_small_and_complete(folder):
    for name in ("sane-usps", "sampled-usps"):
        files = {path.name: path.stat().st_size for path in (folder / name).iterdir()}
        assert {"README.md", "config.json", "model.safetensors", "run.json"} <= files.keys()
        assert sum(files.values()) < LARGEST_BYTES
    assert (folder / "sane-usps" / "preprocessor_config.json").exists()


def test_it_reconstructs_networks_of_its_zoo_and_not_others(folder, sane, tokenizer, network):
    other = type(network)(network.config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    r2 = json.loads((folder / "sane-usps" / "run.json").read_text())["results"]["reconstruction_r2"]
    assert normalised_error(sane, tokenizer, network) < 3 * (1 - r2)
    assert normalised_error(sane, tokenizer, other) > 3 * (1 - r2)


def test_the_sampled_network_says_where_it_is_from(folder):
    provenance = Provenance.load(folder / "sampled-usps")
    record = json.loads((folder / "sampled-usps" / "run.json").read_text())
    assert provenance.sane_model == "sane-usps"
    assert provenance.test_accuracy == record["results"]["test_accuracy"]
    assert provenance.anchors
    mean, std = (record["data"]["images"][name] for name in ("mean", "std"))
    assert tuple(AutoImageProcessor.from_pretrained(folder / "sampled-usps").image_mean) == tuple(mean)
    assert f"standardised as `(pixels - {mean}) / {std}`" in (folder / "sampled-usps" / "README.md").read_text()
