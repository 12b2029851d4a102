"""Describe a layout: layers, kinds, numbers of tokens, padding and memory."""

from typing import Any

import torch

from hf_sane.core._layer_kinds import Shapes, possible_kinds
from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import LayerSpec, TensorSpec


def describe_layout(layout: Layout) -> dict[str, Any]:
    """Layers, kinds and totals of a layout, in a form that JSON supports.

    `token_bytes` is the memory of the tokens in float32; `encoding_bytes`, which `encode` requires in addition to the
    weights, also includes mask and positions. `possible_kinds` has several entries if names and shapes are ambiguous.
    No tensor of the size of the network is created.
    """
    shapes = {spec.name: spec.shape for layer in layout.layers for spec in layer.tensors}
    layers = [
        _layer_facts(layer, tokens.stop - tokens.start, layout.token_dim, shapes)
        for layer, tokens in zip(layout.layers, layout.token_slices, strict=True)
    ]
    kinds: dict[str, dict[str, Any]] = {}
    for layer, facts in zip(layout.layers, layers, strict=True):
        found = kinds.setdefault(layer.kind, {"layers": 0, "weights": 0, "tokens": 0, "padding": 0.0})
        found["layers"] += 1
        found["weights"] += layer.num_weights
        found["tokens"] += facts["tokens"]
        found["padding"] = 1 - found["weights"] / (found["tokens"] * layout.token_dim)
    template: dict[str, dict[str, int]] = {}
    for tensor in layout.template.values():
        carried = template.setdefault(str(tensor.dtype).removeprefix("torch."), {"tensors": 0, "bytes": 0})
        carried["tensors"] += 1
        carried["bytes"] += tensor.numel() * tensor.itemsize
    scalars = layout.num_tokens * layout.token_dim
    total = {
        "layers": len(layers),
        "weights": layout.num_weights,
        "tokens": layout.num_tokens,
        "token_dim": layout.token_dim,
        "padding": layout.padding_share,
        "weight_bytes": sum(_num_bytes(spec) for layer in layout.layers for spec in layer.tensors),
        "token_bytes": 4 * scalars,
        "encoding_bytes": 5 * scalars + 3 * 8 * layout.num_tokens,
        "template_tensors": len(layout.template),
        "template_bytes": sum(carried["bytes"] for carried in template.values()),
        "shared_tensors": len(layout.aliases),
        "uncertain_kinds": sum(len(layer["possible_kinds"]) > 1 for layer in layers),
    }
    return {"layers": layers, "kinds": kinds, "template": template, "total": total}


def _layer_facts(layer: LayerSpec, count: int, token_dim: int, shapes: Shapes) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "possible_kinds": list(possible_kinds(layer.weight.name, shapes)),
        "shape": [list(spec.shape) for spec in layer.tensors],
        "dtype": layer.weight.dtype,
        "tokens": count,
        "padding": 1 - layer.num_weights / (count * token_dim),
    }


def _num_bytes(spec: TensorSpec) -> int:
    return spec.numel * getattr(torch, spec.dtype).itemsize
