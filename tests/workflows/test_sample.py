"""Sampling from Python: objects in, networks with provenance out; the verb does the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.cli.app import app
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import METHODS
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._samplers import SAMPLERS, register_sampler
from hf_sane.sampling._selection import keep_best
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.linear_code import fit_linear
from hf_sane.workflows.sample import SampleSettings, sample
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.shared import BUNDLE

SMALL = {"num_samples": 3, "num_candidates": 8, "bandwidth": [0.1, 0.5], "seed": 2}


@pytest.fixture(scope="module")
def sane(tiny_zoo, tmp_path_factory) -> SANE:
    """An autoencoder that nobody trained, from its folder."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    config = SANEConfig(token_dim=layout.token_dim, hidden_size=16, latent_dim=8, num_hidden_layers=1, window_size=32)
    folder = tmp_path_factory.mktemp("sane") / "sane"
    SANE(SANEModel(config).eval(), extractor).save_pretrained(folder)
    return SANE.from_pretrained(folder)


@pytest.fixture(scope="module")
def networks(sane, tiny_zoo, digits):
    return sane.sample(tiny_zoo, images=digits, **SMALL)


def test_networks_come_with_their_provenance(networks, sane, tiny_zoo, tiny_zoo_folder, digits):
    assert len(networks) == len(networks.modules()) == len(list(networks)) == 3
    assert isinstance(networks[0], ZooPreTrainedModel)
    assert not networks[0].training
    accuracies = networks.evaluate(digits)
    images, labels = digits.split("test")
    for index, (network, origin) in enumerate(zip(networks, networks.provenance, strict=True)):
        own = (network(images).logits.argmax(dim=1) == labels).float().mean().item()
        assert own == pytest.approx(accuracies[index].item()) == pytest.approx(origin.test_accuracy)
        assert (origin.index, origin.seed, origin.method) == (index, 2, "subsampled")
        assert (origin.sane_model, origin.zoo) == (sane.source, str(tiny_zoo_folder))
        assert origin.bandwidth in (0.1, 0.5)
        assert set(origin.anchors) <= set(tiny_zoo.splits["train"].run_ids)
    validation = [origin.validation_accuracy for origin in networks.provenance]
    assert validation == sorted(validation, reverse=True)
    assert validation == pytest.approx(networks.evaluate(digits, split="validation").tolist())
    assert networks.comparison["sane_subsample"]["test_accuracy"] == pytest.approx(accuracies.mean().item())
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"expected an index below 3, got {index}"):
            networks[index]
    assert torch.equal(networks[-1].classifier.weight, networks[2].classifier.weight)


def test_the_result_describes_and_saves_itself(networks, tmp_path):
    first, *rows = str(networks).splitlines()
    assert first.split("  ")[0] == "networks"
    assert [row.split("  ")[0] for row in rows] == [
        "SANE, subsample",
        *(METHODS[name] for name in [*networks.comparison][1:]),
    ]
    assert networks.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    for index, origin in enumerate(networks.provenance):
        folder = tmp_path / "saved" / f"network_{index}"
        assert Provenance.load(folder) == origin
        loaded = AutoModelForImageClassification.from_pretrained(folder)
        assert torch.equal(loaded.classifier.weight, networks[index].classifier.weight)
        assert RunRecord.load(folder / "run.json").results["test_accuracy"] == origin.test_accuracy
    saved = [f"network_{index}" for index in range(len(networks))]
    written = RunRecord.load(tmp_path / "saved" / "run.json").results
    assert written == {"networks": networks.comparison, "saved": saved}


def test_the_verb_takes_the_same_road(networks, sane, tiny_zoo_folder, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sane.workflows.sample.load_zoo_images", lambda facts: digits)
    arguments = ["sample", "--sane", sane.source, "--zoo", str(tiny_zoo_folder), "--output", str(tmp_path / "out")]
    sizes = ["--num-samples", "3", "--num-candidates", "8", "--bandwidth", "0.1,0.5", "--seed", "2", "--json"]
    told = CliRunner().invoke(app, [*arguments, *sizes], catch_exceptions=False)
    assert json.loads(told.stdout) == {"networks": networks.comparison, "output": str(tmp_path / "out")}
    assert Provenance.load(tmp_path / "out" / "network_1") == networks.provenance[1]
    ours, theirs = networks.record, RunRecord.load(tmp_path / "out" / "run.json")
    assert {name: value for name, value in ours.arguments.items() if value is not None} == {
        name: value for name, value in theirs.arguments.items() if value is not None
    }
    assert ours.data == theirs.data


def test_networks_can_be_the_anchors(sane, tiny_zoo, digits, tmp_path):
    split = tiny_zoo.splits["train"].final_epochs()
    modules = [split.model(index) for index in range(3)]
    modules[2].save_pretrained(tmp_path / "third")
    networks = sane.sample(
        [*modules[:2], tmp_path / "third"], images=digits, method="kde", num_samples=2, bandwidth=0.0
    )
    assert networks.provenance[0].anchors == ("network_0", "network_1", str(tmp_path / "third"))
    assert networks.provenance[0].zoo == ""
    expected = torch.stack([sane.encode(module)[0] for module in modules])
    layout = sane.encode(modules[0])[1]
    decoded = [sane.decode(latents, layout)["classifier.weight"] for latents in expected]
    for network in networks:
        assert min((network.classifier.weight - other).abs().max().item() for other in decoded) < 1e-5


def test_networks_are_refined_on_training_images(networks, sane, tiny_zoo, digits):
    refined = sane.sample(tiny_zoo, images=digits, refine=True, refine_steps=15, refine_rate=0.3, **SMALL)
    before, after = refined.comparison["sane_subsample"], refined.comparison["sane_subsample_refined"]
    assert before == networks.comparison["sane_subsample"]
    assert after["test_accuracy"] > before["test_accuracy"] + 0.05
    assert after["test_accuracy"] == pytest.approx(refined.evaluate(digits).mean().item())
    assert {origin.method for origin in refined.provenance} == {"subsampled, refined"}
    measured = [origin.validation_accuracy for origin in refined.provenance]
    assert measured == pytest.approx(refined.evaluate(digits, split="validation").tolist())
    assert measured == sorted(measured, reverse=True)
    assert "SANE, subsample refined" in str(refined)
    expected = {"refine": True, "refine_steps": 15, "refine_rate": 0.3, "refine_prior": 0.0}
    assert expected.items() <= refined.record.arguments.items()
    assert "refine" not in networks.record.arguments


@pytest.mark.parametrize("method", ["auto", "cma"])
def test_networks_are_refined_by_a_score_without_gradient(sane, tiny_zoo, method):
    def flatness(module):
        return -module.classifier.weight.detach().square().mean().item()

    options = {"evaluate": flatness, "num_rounds": 2, "refine_method": method, **SMALL, "num_candidates": 30}
    plain, refined = (sane.sample(tiny_zoo, refine=refine, **options) for refine in (False, True))
    scores = [[flatness(network) for network in found] for found in (plain, refined)]
    assert max(scores[1]) > max(scores[0])
    assert sorted(scores[1]) > sorted(scores[0])
    with pytest.raises(ValueError, match="to refine by gradient, got a function that judges networks"):
        sane.sample(tiny_zoo, refine=True, **options | {"refine_method": "gradient"})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("refine_rate", 0.0, "expected steps >= 1, a rate > 0 and a prior >= 0, got 60, 0.0 and 0.0"),
        ("refine_prior", -1.0, "expected refine_prior to be a finite number of at least 0, got -1.0"),
    ],
)
def test_a_search_out_of_range(option, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SampleSettings(zoo="zoo", output=tmp_path / "out", **{option: value})


def test_a_registered_sampler_can_be_named(sane, tiny_zoo, digits, monkeypatch):
    monkeypatch.setattr(SAMPLERS, "_entries", dict(SAMPLERS._entries))

    @register_sampler("first")
    def first(task):
        return keep_best(task.draw, task.judge, num_candidates=task.num_samples, num_samples=task.num_samples)

    options = {"images": digits, "num_samples": 2, "bandwidth": "silverman"}
    mine, theirs = (sane.sample(tiny_zoo, method=name, **options) for name in ("first", "kde"))
    assert mine.provenance[0].method == "first"
    assert next(iter(mine.comparison)) == "sane_first"
    assert torch.equal(mine[0].classifier.weight, theirs[0].classifier.weight)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "boot"}, "expected a sampler, one of subsample, bootstrap, kde, got 'boot'"),
        ({"bandwidth": "wide"}, "expected a bandwidth >= 0, several separated by commas"),
        ({"bandwidth": "scott", "unit": "latent"}, "the rules 'scott' and 'silverman' require the unit 'anchor_std'"),
        ({"anchors": ["a"]}, r"expected a zoo \(--zoo\) or networks \(--anchors\) to sample around, got both"),
        (
            {"sane": None, "zoo": None, "anchors": ["a"], "images": "digits", "code": "linear"},
            r"expected a zoo \(--zoo\) to fit the linear code to, got none; name one, or name a SANE \(--sane\)",
        ),
        ({"zoo": None, "anchors": ["a"]}, r"expected images to judge networks by.*\(--images\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        SampleSettings(**{"sane": "s", "output": None, "zoo": "z"} | changed)


# huggingface_hub 2.4 uploads large files with an argument that httpx is about to rename.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_networks_are_published_with_their_cards(networks, local_hub, tmp_path):
    address = networks.push_to_hub("me/sampled")
    assert address.startswith(local_hub.address)
    assert networks.output is None or networks.output.name == "saved"
    loaded = AutoModelForImageClassification.from_pretrained("me/sampled", subfolder="network_1")
    assert torch.equal(loaded.classifier.weight, networks[1].classifier.weight)


def test_without_an_autoencoder_a_linear_code_is_fitted(tiny_zoo, tiny_zoo_folder, digits, tmp_path):
    found = sample(tiny_zoo_folder, images=digits, **SMALL)
    code = fit_linear(tiny_zoo)
    named = code.sample(tiny_zoo, images=digits, **SMALL)
    for mine, theirs in zip(found, named, strict=True):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert next(iter(found.comparison)) == "linear_subsample"
    origin = found.provenance[0]
    assert (origin.method, origin.sane_model, origin.zoo) == (
        "subsampled in the linear code", "", str(tiny_zoo_folder)
    )  # fmt: skip
    found.save(tmp_path / "networks")
    assert Provenance.load(tmp_path / "networks" / "network_0").method == origin.method
    assert "in the linear code" in (tmp_path / "networks" / "network_0" / "README.md").read_text(encoding="utf-8")


def test_networks_are_sampled_with_the_built_in_autoencoder_without_a_zoo(tmp_path):
    labels = np.arange(30) % 10
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    options = {"num_samples": 1, "num_candidates": 2, "bandwidth": 0.1}
    found = sample([], images=str(tmp_path / "images.npz"), **options)
    named = sample([], BUNDLE, images=str(tmp_path / "images.npz"), **options)
    assert torch.equal(found[0].classifier.weight, named[0].classifier.weight)
    assert found.record.arguments["sane"] is None
    origin = found.provenance[0]
    assert (origin.method, origin.sane_model) == ("subsampled", "small_images")
    own = build_model(cnn_digits())
    with pytest.raises(ValueError, match=r"layers of the built-in SANE, got others; pass a zoo .*\(--zoo\)"):
        sample([own, own], images="digits", **options)


def test_functions_take_names_and_objects(sane, tiny_zoo_folder, networks, digits):
    found = sample(tiny_zoo_folder, Path(sane.source), images=digits, **SMALL)
    assert found.comparison == networks.comparison
    assert found.output is None
