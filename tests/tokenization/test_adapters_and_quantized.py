"""Adapters go there and back; weights that are whole numbers are carried along or refused, never rounded."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from hf_sane.core._layout import Layout
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._token_stream import TokenStream

EXPONENTS = [torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []  # since PyTorch 2.7

LAYOUTS = ["rowwise", "dense"]


def extractor(token_layout="rowwise"):
    return SANEFeatureExtractor(token_dim=7, token_layout=token_layout, normalization="none")


def assert_round_trip(source, expected, token_layout):
    tokenizer = extractor(token_layout)
    sequence = tokenizer.encode(source)
    decoded = tokenizer.decode(sequence.tokens, sequence.layout)
    assert decoded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert torch.equal(decoded[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    return sequence


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("token_layout", LAYOUTS)
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["pooler"]}])
def test_a_peft_adapter(settings, token_layout, tmp_path):
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=12,
    )  # fmt: skip
    model = get_peft_model(BertModel(config), LoraConfig(r=3, target_modules=["query", "value"], **settings))
    for tensor in model.parameters():
        tensor.data.normal_()
    model.save_pretrained(tmp_path)
    saved = load_state_dict(tmp_path)
    assert all(tensor.is_floating_point() for tensor in saved.values())
    sequence = assert_round_trip(tmp_path, saved, token_layout)
    kinds = {layer.name.rpartition(".")[2]: layer.kind for layer in sequence.layout.layers}
    assert kinds["lora_A"] == kinds["lora_B"] == "low_rank"
    assert len(saved) == sum(len(layer.tensors) for layer in sequence.layout.layers)


@pytest.mark.parametrize("token_layout", LAYOUTS)
def test_integer_weights_are_carried_in_the_template(token_layout, tmp_path):
    """As bitsandbytes stores them: int8 rows with float scales, and two 4-bit numbers in a byte."""
    tensors = {
        "a.weight": torch.randint(-128, 127, (6, 8), dtype=torch.int8),
        "a.SCB": torch.rand(6),
        "b.weight": torch.randint(0, 255, (24, 1), dtype=torch.uint8),
        "b.weight.absmax": torch.rand(3),
        "b.weight.quant_state.bitsandbytes__nf4": torch.randint(0, 255, (40,), dtype=torch.uint8),
        "c.weight": torch.randn(4, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    sequence = assert_round_trip(tmp_path, tensors, token_layout)
    assert set(sequence.layout.template) == {name for name, t in tensors.items() if not t.is_floating_point()}
    assert sequence.layout.num_weights == 6 + 3 + 16
    streamed = torch.cat([block.tokens for block in TokenStream(tmp_path, extractor(token_layout))])
    assert torch.equal(streamed, extractor(token_layout).encode(tmp_path).tokens)


@pytest.mark.parametrize("token_layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, *EXPONENTS])
def test_float8_weights_are_tokens(dtype, token_layout, tmp_path):
    tensors = {
        "a.weight": (torch.randn(5, 9).abs() + 0.1).to(dtype),
        "a.bias": torch.randn(5),
        "b": torch.ones(3).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    sequence = assert_round_trip(tensors, tensors, token_layout)
    assert not sequence.layout.template
    assert_round_trip(tmp_path, tensors, token_layout)
    assert Layout.from_state_dict(read_meta_state_dict(tmp_path), token_dim=7) == extractor().layout(tmp_path)
    streamed = torch.cat([block.tokens for block in TokenStream(tmp_path, extractor(token_layout))])
    assert torch.equal(streamed, extractor(token_layout).encode(tmp_path).tokens)


def test_float8_that_is_not_a_number_is_refused():
    weight = torch.ones(3, 3).to(torch.float8_e4m3fn)
    weight.view(torch.uint8)[1, 1] = 0x7F
    with pytest.raises(ValueError, match=r"NaN or infinite weights .*'a.weight': 1"):
        extractor().encode({"a.weight": weight})


def test_a_network_of_whole_numbers_alone_has_no_tokens():
    with pytest.raises(ValueError, match="no floating-point weights among 1 tensors"):
        extractor().encode({"a.weight": torch.zeros(3, 3, dtype=torch.int8)})


@pytest.mark.filterwarnings("ignore:.*quantize.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_quantized_tensors_of_torch_are_refused():
    weight = torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 0, torch.qint8)
    with pytest.raises(
        TypeError, match=r"expected a dense real tensor for 'a.weight', got .*qint8.*convert it .dequantize"
    ):
        extractor().encode({"a.weight": weight, "b": torch.ones(2)})


def test_an_unknown_packed_format_is_refused(tmp_path):
    header = b'{"a.weight":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    with pytest.raises(ValueError, match=r"dtype: expected one of F64.*, got \['F4'\]"):
        read_meta_state_dict(tmp_path)
