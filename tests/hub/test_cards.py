"""Cards: every template renders, metadata is valid, code runs on the artefact, unknown facts are absent."""

import os
import re

import pytest
import torch
from huggingface_hub import ModelCard

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits, mlp
from hf_sane.hub._cards import network_card, sane_card
from hf_sane.hub._publish import save_network, save_sane
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._run_record import RunRecord
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._linear_code import fit_linear_code

NETWORKS = {
    "cnn": cnn_digits(),
    "mlp": mlp(image_size=8, hidden_sizes=(4, 3), num_labels=3),
    "resnet": cifar_resnet(20, width=2, num_labels=7),
}


def record(**results):
    data = {
        "zoo": ["digits"],
        "split": {"train": 70, "test": 15},
        "images": {"name": "digits", "mean": [0.5], "std": [2.0]},
    }
    return RunRecord.start(seed=7, command=["hf-sane", "a|b"], arguments={"mode": "joint"}, data=data).finish(results)


def sane(network_config):
    extractor = SANEFeatureExtractor(token_dim=20).fit([build_model(network_config).state_dict() for _ in range(2)])
    model = SANEModel(
        SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2)
    )
    return model, extractor


def run_code(card, folder):
    """Run every Python fence of a card inside `folder`; returns what they defined."""
    fences = re.findall(r"```python\n(.*?)```", str(card), flags=re.DOTALL)
    assert len(fences) == 1
    names = {}
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec(compile(fences[0], "card", "exec"), names)
    finally:
        os.chdir(before)
    return names


@pytest.mark.parametrize("architecture", list(NETWORKS))
def test_the_code_of_a_sane_card_reconstructs_a_network(architecture, tmp_path):
    config = NETWORKS[architecture]
    model, extractor = sane(config)
    folder = save_sane(tmp_path / "sane", model, extractor, record(), network_config=config)
    names = run_code(ModelCard.load(folder / "README.md"), folder)
    assert names["network"].config.to_dict() == config.to_dict() | {"dtype": None} | {
        key: names["network"].config.to_dict()[key] for key in ("dtype", "architectures")
    }
    assert names["decoded"].shape == (1, len(names["sequence"]), 20)
    sequence = extractor.encode(names["network"])  # the reconstruction is what the network holds now
    assert torch.allclose(sequence.tokens, names["decoded"][0] * sequence.weight_mask, atol=1e-4)
    assert f"# {len(sequence)} tokens of 20 weights" in (folder / "README.md").read_text()


def test_without_a_network_the_code_runs_on_tokens(tmp_path):
    model, extractor = sane(NETWORKS["cnn"])
    folder = save_sane(tmp_path / "sane", model, extractor, record())
    names = run_code(ModelCard.load(folder / "README.md"), folder)
    assert names["latents"].shape == (1, model.config.window_size, 4)
    assert names["decoded"].shape == (1, model.config.window_size, 20)


@pytest.mark.parametrize("with_network", [True, False])
@pytest.mark.parametrize("grouping", ["kind", "network"])
def test_the_code_of_a_linear_code_runs(grouping, with_network, tmp_path):
    config = NETWORKS["cnn"]
    _, extractor = sane(config)
    layout = extractor.layout(build_model(config))
    blocks = [(layout, layout.tokens(build_model(config).state_dict())[None])]
    model = fit_linear_code(lambda: blocks, [layout], extractor, latent_dim=4, grouping=grouping)
    folder = save_sane(tmp_path / "code", model, extractor, record(), network_config=config if with_network else None)
    names = run_code(ModelCard.load(folder / "README.md"), folder)
    tokens = layout.num_tokens if with_network or grouping == "network" else model.config.window_size
    shape = (1, 1 if grouping == "network" else tokens, 4)
    assert names["latents"].shape == shape
    assert names["decoded"].shape == (1, tokens, 20)
    text = (folder / "README.md").read_text()
    assert f"# {list(shape)}" in text
    assert ("which gives 1 latent vector per network" in text) == (grouping == "network")


def test_the_card_of_latents_of_whole_networks_says_so(tmp_path):
    _, extractor = sane(NETWORKS["cnn"])
    sizes = {
        "hidden_size": 8,
        "latent_dim": 4,
        "num_latents": 2,
        "num_components": 9,
        "num_attention_heads": 2,
        "window_size": 100,
    }
    model = SANEModel(SANEConfig(token_dim=20, **sizes))
    folder = save_sane(tmp_path / "sane", model, extractor, record(), network_config=NETWORKS["cnn"])
    names = run_code(ModelCard.load(folder / "README.md"), folder)
    assert names["latents"].shape == (1, 2, 4)
    text = (folder / "README.md").read_text()
    assert "\n2 latent vectors per network, and decodes latents" in text
    assert "| num components | 9 |" in text
    assert "one latent vector per token" not in text
    model, extractor = sane(NETWORKS["cnn"])
    assert "components" not in str(sane_card(model.config, extractor, record()))


@pytest.mark.parametrize("architecture", list(NETWORKS))
def test_the_code_of_a_network_card_predicts(architecture, tmp_path):
    network = build_model(NETWORKS[architecture])
    folder = save_network(tmp_path / "network", network, record(test_accuracy=0.9))
    names = run_code(ModelCard.load(folder / "README.md"), folder)
    assert names["predicted"].shape == (1,)
    assert 0 <= names["predicted"].item() < NETWORKS[architecture].num_labels


def test_measured_values_reach_the_model_index():
    model, extractor = sane(NETWORKS["cnn"])
    card = ModelCard(str(sane_card(model.config, extractor, record(reconstruction_r2=0.93), title="A name")))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("r2", 0.93, "digits")
    assert card.data.model_name == "A name"
    card = ModelCard(
        str(network_card(NETWORKS["cnn"], record(test_accuracy=0.8999999761581421, validation_accuracy=0.8)))
    )
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("test accuracy", 0.9),
        ("validation accuracy", 0.8),
    ]


def test_metadata_is_that_of_the_hub():
    card = ModelCard(
        str(
            network_card(
                NETWORKS["cnn"],
                record(fine_tuning_epochs=1),
                repo_id="someone/network",
                base_model="someone/sane",
                datasets=["someone/zoo"],
                license_id="mit",
            )
        )
    )
    assert card.data.library_name == "hf_sane"
    assert card.data.base_model == "someone/sane"
    assert card.data.datasets == ["someone/zoo"]
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-classification"
    assert "sampled-weights" in card.data.tags
    assert 'from_pretrained("someone/network")' in card.text
    assert "Inside this folder" not in card.text
    assert "fine-tuned for 1 epoch." in card.text


def test_facts_come_from_the_record():
    model, extractor = sane(NETWORKS["cnn"])
    text = str(sane_card(model.config, extractor, record(reconstruction_r2=0.93, probe={"epoch": 0.5}, failed=None)))
    rows = (
        "| zoo | digits |",
        "| split.train | 70 |",
        "| reconstruction r2 | 0.93 |",
        "| probe: epoch | 0.5 |",
        "| seed | 7 |",
        r"| command | `hf-sane 'a\|b'` |",
        "| normalization | standardize |",
    )
    assert rows
    for row in rows:
        assert row in text
    assert "pixels - [0.5]) / [2.0]" in str(network_card(NETWORKS["cnn"], record()))


@pytest.mark.parametrize("kind", ["sane", "network"])
def test_unknown_facts_are_absent(kind):
    bare = RunRecord(command="x")
    if kind == "sane":
        model, extractor = sane(NETWORKS["cnn"])
        text = str(sane_card(model.config, extractor, bare))
    else:
        text = str(network_card(NETWORKS["cnn"], bare))
    assert "| command | `x` |" in text
    for absent in (
        "| None",
        "unknown",
        "| null",
        "| nan",
        "| seed",
        "Results",
        "Training data",
        "## Data",
        "model-index",
    ):
        assert absent not in text
    assert "\n\n\n" not in text
    assert ModelCard(text).data.license is None


def test_links_are_whole_and_tables_have_two_columns():
    for text in (
        str(sane_card(SANEConfig(), SANEFeatureExtractor(), record(reconstruction_r2=1.0))),
        str(network_card(NETWORKS["mlp"], record(test_accuracy=1.0))),
    ):
        links = re.findall(r"\[[^\]]*\]\([^)]*\)", text)
        assert links
        assert all(re.fullmatch(r"\[[^\]]+\]\(https://[^)\s]+\)", link) for link in links)
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert tables
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3}
