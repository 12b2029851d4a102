"""What other packages can add, each as one file. docs/architecture.md shows these very files."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SMALL = '{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "latent_dim": 4}'
ROAD = f"""
import json
import hf_sane

def build(**settings):
    return hf_sane.build_zoo(
        "digits", num_models=6, epochs=1, train_limit=64, progress_bar=False, output="zoo", **settings
    )

def pretrain(zoo):
    return hf_sane.pretrain(
        zoo, max_steps=2, batch_size=3, model=json.loads('{SMALL}'), output="run", progress_bar=False, log_with="none"
    )
"""
ARCHITECTURE = """
import architecture_plugin
from transformers import AutoModelForImageClassification

zoo = build(architecture="gated_mlp", architecture_settings={"hidden_size": 3}, token_dim=20)
zoo.splits["train"].model(0).save_pretrained("network")
assert type(AutoModelForImageClassification.from_pretrained("network")) is architecture_plugin.GatedMLP
assert hf_sane.load_zoo("zoo").alignment is not None
print(len(zoo), sorted(hf_sane.probe(zoo, pretrain(zoo), properties=["epoch"], poolings=["mean"]).table["epoch"]))
"""
LAYOUT_POOLING_SAMPLER = """
import pooling_plugin, sampler_plugin, token_layout_plugin

zoo = build(architecture="mlp", architecture_settings={"hidden_sizes": [4]}, token_layout="pairs", token_dim=20)
sane = pretrain(zoo)
network = zoo.splits["train"].model(0)
latents, layout = sane.encode(network)
assert layout.token_layout == "pairs"
assert hf_sane.info(network, token_layout="pairs").layout.token_layout == "pairs"
assert sane.embed(network, pooling="largest").tolist() == latents.amax(dim=0).tolist()
networks = sane.sample(zoo, method="midpoints", num_samples=2, num_candidates=4, bandwidth=[0.1])
print(len(networks), networks[0].num_parameters())
"""
READER = """
import numpy as np
import reader_plugin, hf_sane
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

np.savez("network.npz", **{"a.weight": np.ones((2, 3), np.float32)})
extractor = SANEFeatureExtractor(token_dim=3, normalization="none")
print(extractor.encode("network.npz").tokens.tolist())
"""


def test_an_architecture(run_python):
    expected = "12 ['layer_statistics', 'sane_best', 'sane_mean', 'weights']"
    assert run_python(ROAD + ARCHITECTURE).splitlines()[-1] == expected


def test_a_token_layout_a_pooling_and_a_sampler(run_python):
    assert run_python(ROAD + LAYOUT_POOLING_SAMPLER).splitlines()[-1] == f"2 {64 * 4 + 4 + 4 * 10 + 10}"


def test_a_reader(run_python):
    assert run_python(READER).splitlines()[-1] == "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]"


def test_a_verb(run_python, tmp_path):
    info = tmp_path / "count-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: count\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hf_sane.verbs]\ncount = verb_plugin\n")
    script = """
import sys, torch
from safetensors.torch import save_file
from hf_sane.cli import app

sys.path.insert(0, ".")
save_file({"w": torch.ones(3, 5)}, "w.safetensors")
sys.argv = ["hf-sane", "count", *sys.argv[1:], "w.safetensors"]
app.main()
"""
    assert run_python(script).splitlines() == ["       weights", "total       15"]


@pytest.mark.parametrize("path", sorted(HERE.glob("*_plugin.py")), ids=lambda path: path.stem)
def test_the_page_shows_every_file(path):
    page = (HERE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"```python\n{path.read_text(encoding='utf-8')}```" in page
