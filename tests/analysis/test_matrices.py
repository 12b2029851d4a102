"""Which matrices a network has, and why the rest has none."""

import pytest
import torch

from hf_sane.analysis._matrices import layer_matrices

EXPONENTS = [torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []  # since PyTorch 2.7


def test_convolutions_become_what_is_asked_for():
    weight = torch.randn(6, 4, 3, 2)
    (flat,) = layer_matrices({"c": weight}, "flatten", {})
    assert torch.equal(flat.matrices[0], weight.reshape(6, 24))
    slices = list(layer_matrices({"c": weight}, "slices", {}))
    assert [part.name for part in slices] == [f"c[{i},{j}]" for i in range(3) for j in range(2)]
    assert all(torch.equal(part.matrices[0], weight[:, :, i // 2, i % 2]) for i, part in enumerate(slices))
    (pooled,) = layer_matrices({"c": weight}, "pooled", {})
    assert torch.equal(pooled.matrices, torch.cat([part.matrices for part in slices]))
    assert [part.reshaping for part in (flat, slices[0], pooled)] == ["flatten", "slice", "pooled"]


@pytest.mark.parametrize("conv", ["flatten", "slices", "pooled"])
def test_dense_layers_stay_as_they_are(conv):
    weight = torch.randn(4, 7)
    (layer,) = layer_matrices({"w": weight}, conv, {})
    assert torch.equal(layer.matrices, weight[None])
    assert (layer.name, layer.reshaping) == ("w", "matrix")


def test_every_reason_to_skip():
    weight = torch.randn(4, 5)
    broken = weight.clone()
    broken[1, 2] = torch.nan
    infinite = weight.clone()
    infinite[0, 0] = torch.inf
    tensors = {
        "good": weight,
        "tied": weight,
        "transposed": weight.T,
        "counter": torch.zeros((), dtype=torch.int64),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "empty": torch.zeros(0, 3),
        "bias": torch.ones(4),
        "scalar": torch.ones(()),
        "row": torch.ones(1, 5),
        "column": torch.ones(5, 1, 1),
        "eight": weight.to(torch.float8_e4m3fn),
        "meta": torch.empty(3, 3, device="meta"),
        "nan": broken,
        "inf": infinite,
        "zero": torch.zeros(3, 3),
    }
    skipped = {}
    assert [layer.name for layer in layer_matrices(tensors, "flatten", skipped)] == ["good", "transposed"]
    assert skipped == {
        "tied": "the same memory as good",
        "counter": "int64 values, no weights",
        "complex": "complex64 values, no weights",
        "empty": "no elements",
        "bias": "one-dimensional",
        "scalar": "one-dimensional",
        "row": "a single row or column",
        "column": "a single row or column",
        "eight": "8-bit floats; convert them first",
        "meta": "no values, only a shape (meta device)",
        "nan": "NaN or infinite weights",
        "inf": "NaN or infinite weights",
        "zero": "all weights are zero",
    }


def test_an_unknown_reshaping_is_refused():
    with pytest.raises(ValueError, match="expected conv to be one of flatten, slices, pooled, got 'rows'"):
        list(layer_matrices({"w": torch.ones(2, 2)}, "rows", {}))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 6, 10), "expert"),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (4, 6, 10), "expert"),  # GraniteMoe: by its shape
        ("backbone.layers.0.mixer.conv1d.weight", (6, 2, 4), "flatten"),
        ("encoder.conv1.weight", (6, 4, 3), "flatten"),
        ("experts.2.conv.weight", (6, 4, 3), "flatten"),
        ("feature_extractor.layers.0.proj.weight", (6, 4, 3), "flatten"),  # no bias, no name: by its shape
        ("pos_conv_embed.conv.weight", (6, 2, 128), "flatten"),
        ("mixer.weight", (8, 5, 20), None),
        ("queries", (4, 6, 10), None),
    ],
)
def test_three_axes_are_experts_a_convolution_or_neither(name, shape, expected):
    skipped = {}
    layers = list(layer_matrices({name: torch.randn(shape)}, "flatten", skipped))
    if expected is None:
        assert not layers
        assert skipped == {name: "three axes, so it may be a convolution or a stack of matrices"}
        return
    assert {layer.reshaping for layer in layers} == {expected}
    assert len(layers) == (shape[0] if expected == "expert" else 1)


def test_biases_of_experts_are_no_matrix_and_broken_experts_are_named():
    experts = torch.randn(3, 5, 6)
    experts[1] = 0
    skipped = {}
    tensors = {"mlp.experts.down_proj": experts, "mlp.experts.down_proj_bias": torch.randn(3, 5)}
    found = [layer.name for layer in layer_matrices(tensors, "flatten", skipped)]
    assert found == ["mlp.experts.down_proj[0]", "mlp.experts.down_proj[2]"]
    assert skipped == {"mlp.experts.down_proj[1]": "all weights are zero", "mlp.experts.down_proj_bias": "biases"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2, *EXPONENTS])
def test_nan_is_seen_in_what_is_no_matrix_too(dtype):
    skipped = {}
    broken = torch.tensor([1.0, torch.nan]).to(dtype)
    large = torch.tensor([1.0, 2.0**100 if dtype in EXPONENTS else 4.0]).to(dtype)
    assert not list(layer_matrices({"norm.weight": broken, "scale": large}, "flatten", skipped))
    assert skipped == {"norm.weight": "NaN or infinite weights", "scale": "one-dimensional"}


def test_factors_are_not_taken_for_weights():
    skipped = {}
    tensors = {"q.lora_A.weight": torch.randn(2, 6), "q.lora_B.weight": torch.randn(5, 2), "q.weight": torch.eye(3)}
    assert [layer.name for layer in layer_matrices(tensors, "flatten", skipped)] == ["q.weight"]
    assert set(skipped) == {"q.lora_A.weight", "q.lora_B.weight"}
    assert all("whose own spectrum means nothing" in reason for reason in skipped.values())
