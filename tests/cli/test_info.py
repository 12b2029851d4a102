"""`hf-sane info`: the paper's token counts from a file whose weights are never read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import hf_sane
from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_l, cnn_s
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows import info


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
    facts = json.loads(hf_sane_command("info", tmp_path, "--sane", tmp_path / "extractor", "--json").output)
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
    assert "2464" in next(line for line in lines if line.startswith("weights"))


STRANGE = {
    "items.weight": torch.randn(40, 4),
    "slope.weight": torch.ones(4),
    "first.weight": torch.randint(-9, 9, (4, 4), dtype=torch.int8),
    "second.weight": torch.randint(0, 9, (4, 4), dtype=torch.int8),
    "packed": torch.zeros(9, dtype=torch.uint8),
    "out.weight": torch.randn(2, 4),
    "out.bias": torch.randn(2),
}


def test_what_names_and_shapes_leave_open_is_said(tmp_path, hf_sane_command):
    save_file(STRANGE, tmp_path / "model.safetensors")
    facts = json.loads(hf_sane_command("info", tmp_path, "--token-dim", 8, "--json").output)
    possible = {layer["name"]: layer["possible_kinds"] for layer in facts["layers"]}
    assert possible == {"items": ["linear", "embedding"], "slope": ["norm", "other"], "out": ["linear"]}
    assert facts["total"]["uncertain_kinds"] == 2
    assert facts["template"] == {"int8": {"tensors": 2, "bytes": 32}, "uint8": {"tensors": 1, "bytes": 9}}
    assert facts["total"]["template_bytes"] == 41
    assert facts["kinds"]["linear"] == {"layers": 2, "weights": 170, "tokens": 42, "padding": 1 - 170 / (42 * 8)}
    lines = hf_sane_command("info", tmp_path, "--token-dim", 8).output.splitlines()
    assert "stored unchanged, not as tokens: 2 int8 tensors, 32 bytes" in lines
    assert "  items: linear or embedding" in lines
    assert "2 layers whose kind is uncertain (tokens do not depend on it):" in lines


def test_a_long_list_of_doubts_is_cut(tmp_path, hf_sane_command):
    save_file({f"scale{number:02}.weight": torch.ones(3) for number in range(25)}, tmp_path / "model.safetensors")
    output = hf_sane_command("info", tmp_path).output
    assert "  scale19: norm or other" in output
    assert "scale20: norm or other" not in output
    assert "  and 5 more: see --json" in output


def test_a_checkpoint_larger_than_memory_takes_none(tmp_path, hf_sane_command):
    """A sparse file of 8 TiB: neither weights nor masks nor positions of its tokens are ever there."""
    header = {"a.weight": {"dtype": "F32", "shape": [2**20, 2**21], "data_offsets": [0, 2**43]}}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**43)
    facts = json.loads(hf_sane_command("info", tmp_path, "--token-dim", 256, "--json").output)
    assert facts["total"]["tokens"] == 2**33
    assert facts["total"]["weight_bytes"] == facts["total"]["token_bytes"] == 2**43


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_repository_only_headers_are_read(sharded, tmp_path, local_hub, hf_sane_command):
    config = BertConfig(
        vocab_size=3000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    BertModel(config).save_pretrained(tmp_path, max_shard_size="500KB" if sharded else "1GB")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert ("model.safetensors.index.json" in files) == sharded
    local_hub.storage.add_files("models", "org/network", files)
    remote = json.loads(hf_sane_command("info", "org/network", "--json").stdout)
    local = json.loads(hf_sane_command("info", tmp_path, "--json").output)
    by_name = {layer["name"]: layer for layer in remote["layers"]}
    assert by_name == {layer["name"]: layer for layer in local["layers"]}
    assert remote["total"] == local["total"]
    weights = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    assert 0 < local_hub.sent(r"safetensors$") < weights / 2


def test_nan_is_told_of_small_files_and_that_large_ones_were_not_read(tmp_path, hf_sane_command, monkeypatch):
    save_file({"w.weight": torch.full((4, 4), torch.nan), "v": torch.ones(3)}, tmp_path / "broken.safetensors")
    output = hf_sane_command("info", tmp_path / "broken.safetensors", exit_code=1).output
    assert "NaN or infinite: 16 in w.weight" in output
    facts = json.loads(hf_sane_command("info", tmp_path / "broken.safetensors", "--json", exit_code=1).output)
    assert (facts["values_read"], facts["not_finite"]) == (True, {"w.weight": 16})
    monkeypatch.setattr(info, "READ_BYTES", 19)
    output = hf_sane_command("info", tmp_path / "broken.safetensors").output
    assert "read from headers only, so NaN values would not be found; `hf-sane scan` reads the values" in output
    facts = json.loads(hf_sane_command("info", tmp_path / "broken.safetensors", "--json").output)
    assert (facts["values_read"], facts["not_finite"]) == (False, None)


def test_a_module_in_memory_is_looked_at():
    network = build_model(cnn_s())
    assert hf_sane.info(network).facts["not_finite"] == {}
    network.classifier.bias.data[1] = torch.inf
    assert hf_sane.info(network).facts["not_finite"] == {"classifier.bias": 1}


def test_of_a_folder_of_checkpoints_every_file_has_a_line(tmp_path, hf_sane_command):
    (tmp_path / "empty").mkdir()
    build_model(cnn_s()).save_pretrained(tmp_path / "whole")
    save_file({"w.weight": torch.full((4, 4), torch.nan)}, tmp_path / "broken.safetensors")
    (tmp_path / "llama.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "notes.txt").write_text("nothing")
    found = json.loads(hf_sane_command("info", tmp_path, "--json", exit_code=1).output)["checkpoints"]
    assert {Path(name).name for name in found} == {"empty", "whole", "broken.safetensors", "llama.gguf", "notes.txt"}
    assert found[str(tmp_path / "whole")]["weights"] == 2464
    assert found[str(tmp_path / "broken.safetensors")]["not_finite"] == {"w.weight": 16}
    assert "a GGUF file" in found[str(tmp_path / "llama.gguf")]["reason"]
    assert "holds no safetensors" in found[str(tmp_path / "empty")]["reason"]
    output = hf_sane_command("info", tmp_path, exit_code=1).output
    assert "NaN or infinite: 16 in w.weight" in output
    assert "all values are finite" in output
