"""`hf-sane info`: what a checkpoint looks like as tokens, from its header alone."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import print_table
from hf_sane.cli.weights import Key, Subfolder, Variant

if TYPE_CHECKING:
    from hf_sane.core.layer_kinds import Shapes
    from hf_sane.core.layout import Layout
    from hf_sane.core.token_layouts import LayerSpec, TensorSpec

MAX_UNSURE = 20  # layers listed one by one


def info(
    checkpoint: Annotated[str, typer.Argument(help="safetensors file, folder, weights-only pickle, or Hub repo id.")],
    extractor: Annotated[
        str | None, typer.Option(help="SANE folder or Hub id whose weight tokenizer to use; replaces the next three.")
    ] = None,
    token_dim: Annotated[int, typer.Option(help="Scalars per token.")] = 289,
    token_layout: Annotated[Literal["rowwise", "dense"], typer.Option(help="How weights become tokens.")] = "rowwise",
    batch_norm: Annotated[
        Literal["tokens", "template"], typer.Option(help="Whether BatchNorm becomes tokens or is carried along.")
    ] = "tokens",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repo.")] = None,
    subfolder: Subfolder = None,
    variant: Variant = None,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; errors, too.")] = False,
) -> None:
    """Show the layers, tokens and memory of a checkpoint from its headers; weights are not read, NaN is not looked for."""
    from hf_sane.tokenization.checkpoints import Checkpoint
    from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.tokenization.headers import read_meta_state_dict

    if extractor is not None:
        tokenizer = SANEFeatureExtractor.load(extractor)
    else:
        tokenizer = SANEFeatureExtractor(token_dim, token_layout, batch_norm, normalization="none")
    layout = tokenizer.layout(read_meta_state_dict(Checkpoint(checkpoint, revision, subfolder, variant, key)))
    facts = describe_layout(layout)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    columns = ("name", "kind", "shape", "dtype", "tokens", "padding")
    print_table(columns, [[_shown(layer[column]) for column in columns] for layer in facts["layers"]])
    typer.echo()
    kinds = [[name, *(_shown(value) for value in found.values())] for name, found in facts["kinds"].items()]
    print_table(("kind", "layers", "weights", "tokens", "padding"), kinds)
    typer.echo()
    print_table(("total", ""), [[name.replace("_", " "), _shown(value)] for name, value in facts["total"].items()])
    typer.echo("from headers only: values were not read, so NaN would not show; `hf-sane analyze` reads them")
    for dtype, found in facts["template"].items():
        typer.echo(f"carried along, not tokens: {found['tensors']} tensors of {dtype}, {found['bytes']:,} bytes")
    if unsure := [layer for layer in facts["layers"] if len(layer["possible_kinds"]) > 1]:
        typer.echo(f"\nkind not certain from name and shape alone, {len(unsure)} layers (tokens do not depend on it):")
        for layer in unsure[:MAX_UNSURE]:
            typer.echo(f"  {layer['name']}: {' or '.join(layer['possible_kinds'])}")
        if len(unsure) > MAX_UNSURE:
            typer.echo(f"  and {len(unsure) - MAX_UNSURE} more: see --json")


def describe_layout(layout: "Layout") -> dict[str, Any]:
    """Layers, kinds and totals of a layout, as JSON holds them.

    `token_bytes` is the memory of the tokens in float32; `encoding_bytes` adds the mask and the positions that go with
    them: what `encode` takes, beside the weights themselves. `possible_kinds` has more than one entry where names and
    shapes leave open what a layer is. Nothing here is as large as the network.
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
    return {"layers": layers, "kinds": kinds, "template": template, "total": total, "values_read": False}


def _layer_facts(layer: "LayerSpec", count: int, token_dim: int, shapes: "Shapes") -> dict[str, Any]:
    from hf_sane.core.layer_kinds import possible_kinds

    return {
        "name": layer.name,
        "kind": layer.kind,
        "possible_kinds": list(possible_kinds(layer.weight.name, shapes)),
        "shape": [list(spec.shape) for spec in layer.tensors],
        "dtype": layer.weight.dtype,
        "tokens": count,
        "padding": 1 - layer.num_weights / (count * token_dim),
    }


def _num_bytes(spec: "TensorSpec") -> int:
    import torch

    return spec.numel * getattr(torch, spec.dtype).itemsize


def _shown(value: Any) -> Any:
    """A cell for people: shapes as `16x3x3x3 + 16`, shares in per cent."""
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list):
        return " + ".join("x".join(map(str, shape)) or "scalar" for shape in value)
    return value
