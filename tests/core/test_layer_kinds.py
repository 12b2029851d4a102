"""What tensors are: from modules, from names and shapes, and how far the two agree."""

import pytest
import torch
from module_kinds import module_kinds
from tiny_models import tiny_model
from torch import nn

from hf_sane.core._layer_kinds import LAYER_KINDS, is_batch_norm, possible_kinds, statistics_kind
from hf_sane.core._layout import Layout
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream


def shapes_of(model):
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and tensor.numel()
    }


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose1d(4, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.between = nn.PReLU(4)
        self.table = nn.Embedding(50, 4)
        self.rnn = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.readout = nn.Linear(4, 50)
        self.register_parameter("scale", nn.Parameter(torch.ones(4)))


EXPECTED = {
    "conv.weight": "conv",
    "conv.bias": "conv",
    "up.weight": "conv",
    "bn.weight": "norm",
    "bn.running_var": "running_statistics",
    "between.weight": "other",
    "table.weight": "embedding",
    "rnn.weight_ih_l0": "recurrent",
    "rnn.bias_hh_l0": "recurrent",
    "attention.in_proj_weight": "attention",
    "attention.out_proj.weight": "attention",
    "readout.weight": "linear",
}


def test_modules_say_what_their_tensors_are():
    kinds = module_kinds(Everything())
    assert {name: kinds[name] for name in EXPECTED} == EXPECTED
    assert "scale" not in kinds
    assert set(kinds.values()) <= set(LAYER_KINDS)


def test_names_say_nearly_as_much_and_own_up_to_their_doubts():
    shapes = shapes_of(Everything())
    for name, kind in EXPECTED.items():
        assert kind in possible_kinds(name, shapes), name
    assert possible_kinds("table.weight", shapes) == ("linear", "embedding")
    assert possible_kinds("between.weight", shapes) == ("norm", "other")
    assert possible_kinds("up.weight", shapes) == ("conv", "linear")
    assert possible_kinds("bn.weight", shapes) == ("norm",)
    assert possible_kinds("scale", shapes) == ("other",)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("base_model.model.q_proj.lora_A.weight", (4, 64), ("low_rank",)),
        ("unet:3:up", (4, 64), ("low_rank",)),
        ("transformer.wte.weight", (50, 4), ("embedding",)),
        ("embeddings.LayerNorm.weight", (4,), ("norm",)),
        ("patch_embed.proj.weight", (8, 3, 4, 4), ("conv",)),
        ("cls_token", (1, 1, 8), ("embedding",)),
        ("mlp.experts.gate_up_proj", (8, 16, 4), ("linear",)),
        ("layers.0.mixer.out_proj.weight", (8, 8), ("attention", "linear")),
        ("layers.0.mlp.out_proj.weight", (8, 8), ("linear",)),
        ("lm_head.weight", (500, 8), ("linear",)),
        ("weight", (3, 3), ("linear",)),
        ("A_log", (8, 16), ("other", "linear")),
        ("layer_scale", (8,), ("other",)),
        ("a.running_mean", (8,), ("running_statistics",)),
    ],
)
def test_names_of_well_known_files(name, shape, expected):
    assert possible_kinds(name, {name: shape}) == expected


def test_a_bias_is_what_its_weight_is():
    shapes = {"c_attn.weight": (4, 12), "c_attn.bias": (12,)}  # transposed, as in GPT-2: not one layer
    assert possible_kinds("c_attn.bias", shapes) == ("attention",)
    assert possible_kinds("c_attn.bias", {"c_attn.bias": (12,)}) == ("other",)


@pytest.mark.parametrize(
    "model_type", ["bert", "gpt2", "llama", "t5", "vit", "resnet", "mixtral", "whisper", "clip", "convnext", "mamba"]
)
def test_names_and_modules_agree_on_published_architectures(model_type):
    model = tiny_model(model_type)
    shapes, kinds = shapes_of(model), module_kinds(model)
    known = [name for name in shapes if name in kinds]
    assert known
    wrong = [name for name in known if kinds[name] not in possible_kinds(name, shapes)]
    assert len(wrong) <= 0.03 * len(known), wrong


def test_a_layout_has_the_kinds_of_the_names_whatever_it_was_made_from():
    model = nn.DataParallel(Everything())
    extractor = SANEFeatureExtractor(token_dim=5, normalization="none")
    layouts = [
        extractor.layout(model),
        extractor.layout(model.state_dict()),
        extractor.encode(model).layout,
        TokenStream(model, extractor).layout,
    ]
    layouts.append(Layout.from_dict(layouts[0].to_dict(), layouts[0].template))
    shapes = shapes_of(model.module)
    expected = {name: possible_kinds(name, shapes)[0] for name in shapes}
    for layout in layouts:
        assert {layer.weight.name: layer.kind for layer in layout.layers}.items() <= expected.items()
        assert layout == layouts[0]
        assert layout.signature == layouts[0].signature


def test_statistics_by_kind_are_the_same_for_module_and_file():
    model = Everything()
    by_module = SANEFeatureExtractor(token_dim=5).fit([model], by_kind=True).statistics
    by_file = SANEFeatureExtractor(token_dim=5).fit([model.state_dict()], by_kind=True).statistics
    assert by_module == by_file
    assert statistics_kind("table.weight", (50, 4)) == "linear"
    assert statistics_kind("embed.weight", (50, 4)) == "embedding"
    assert statistics_kind("bn.weight", (4,)) == "norm"
    assert statistics_kind("bn.running_var", (4,)) == "running_statistics"
    assert statistics_kind("conv.weight", (4, 3, 3, 3)) == "conv"
    assert statistics_kind("cls_token", (1, 1, 4)) == "embedding"
    assert statistics_kind("scale", ()) == statistics_kind("scale.weight", ()) == "other"


def test_batch_norm_is_a_matter_of_running_statistics():
    names = {"1.weight", "1.running_mean", "1.running_var", "2.weight", "weight", "running_mean", "running_var"}
    assert is_batch_norm("1.weight", names)
    assert is_batch_norm("weight", names)
    assert not is_batch_norm("2.weight", names)
