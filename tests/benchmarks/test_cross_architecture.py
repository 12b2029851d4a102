"""Sampling into an architecture that SANE never saw: the whole benchmark on a small scale."""

import json

import cross_architecture
import torch
from zoo_recipes import seed_zoo

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo.building._build import build_zoo


def test_prompts_of_another_architecture_become_networks(tiny_zoo, digits, tmp_path):
    split = tiny_zoo.splits["train"]
    extractor = SANEFeatureExtractor(73).fit([(split.layout(0), split.stacked_tokens())])
    torch.manual_seed(0)
    config = SANEConfig(
        token_dim=73,
        hidden_size=16,
        latent_dim=73,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=52,
        position_embedding="sinusoidal",
    )
    for part in (SANEModel(config), extractor):
        part.save_pretrained(tmp_path / "sane")
    build_zoo(
        seed_zoo(architecture="mlp", num_models=6, epochs=1, token_dim=73, train_limit=100, progress_bar=False),
        digits,
        tmp_path / "prompts",
    )
    output = tmp_path / "record.json"
    sizes = ["--seeds", "0", "1", "--epochs", "1", "--num-candidates", "4", "--num-samples", "2", "--num-prompts", "3"]
    places = ["--sane", str(tmp_path / "sane"), "--prompts", str(tmp_path / "prompts"), "--output", str(output)]
    cross_architecture.main([*places, *sizes])
    results = json.loads(output.read_text())["results"]
    assert {"anchors", "sane_subsampled", "scratch", "anchor_noise"} < results["methods"].keys()
    row = results["methods"]["sane_subsampled"]
    assert 0 <= row["epoch_0"]["mean"] <= 1
    assert row["epoch_1"]["standard_deviation"] >= 0
    assert 0 < results["layers_without_statistics"] <= results["layers"]
    assert [draw["num_anchors"] for draw in results["draws"]] == [3, 3]
