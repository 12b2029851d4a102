"""`hf-sane info`: the paper's token counts from a file whose weights are never read."""

import json

import pytest
import torch

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_l, cnn_s
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor


@pytest.mark.parametrize(
    ("config", "token_dim", "weights", "tokens"), [(cnn_s(), 201, 2464, 48), (cnn_l(), 289, 10853, 93)]
)
def test_totals_of_the_papers_networks(config, token_dim, weights, tokens, tmp_path, hf_sane_command):
    build_model(config).save_pretrained(tmp_path)
    output = hf_sane_command("info", tmp_path, "--token-dim", token_dim, "--json").output
    total = json.loads(output)["total"]
    assert total["weights"] == weights
    assert total["tokens"] == tokens
    assert total["weight_bytes"] == 4 * weights
    assert total["token_bytes"] == 4 * tokens * token_dim
    assert total["padding"] == pytest.approx(1 - weights / (tokens * token_dim))


def test_layers_add_up_and_agree_with_the_tokenizer(tmp_path, hf_sane_command):
    network = build_model(cifar_resnet(20, width=4)).to(torch.bfloat16)
    network.save_pretrained(tmp_path)
    extractor = SANEFeatureExtractor(token_dim=36, token_layout="dense", batch_norm="template", normalization="none")
    extractor.save_pretrained(tmp_path / "extractor")
    facts = json.loads(hf_sane_command("info", tmp_path, "--extractor", tmp_path / "extractor", "--json").output)
    layout = extractor.layout(tmp_path)
    assert [layer["name"] for layer in facts["layers"]] == [layer.name for layer in layout.layers]
    assert sum(layer["tokens"] for layer in facts["layers"]) == facts["total"]["tokens"] == layout.num_tokens
    assert facts["total"]["template_tensors"] == len(layout.template) > 0
    assert facts["total"]["weight_bytes"] == 2 * layout.num_weights
    assert {layer["dtype"] for layer in facts["layers"]} == {"bfloat16"}


def test_the_table_is_for_people(tmp_path, hf_sane_command):
    build_model(cnn_s()).save_pretrained(tmp_path)
    lines = hf_sane_command("info", tmp_path, "--token-dim", 201).output.splitlines()
    assert lines[0].split() == ["name", "kind", "shape", "dtype", "tokens", "padding"]
    (row,) = [line.split() for line in lines if line.startswith("convolutions.0")]
    assert row == ["convolutions.0", "conv", "8x1x5x5", "+", "8", "float32", "8", "87.1%"]
    assert "2,464" in next(line for line in lines if line.startswith("weights"))
