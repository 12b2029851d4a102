"""Which matrices a network has, and why the rest has none."""

import pytest
import torch

from hf_sane.analysis.matrices import layer_matrices


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
