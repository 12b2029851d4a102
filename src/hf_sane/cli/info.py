"""`hf-sane info`: what a checkpoint looks like as tokens, from its header alone."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import print_table

if TYPE_CHECKING:
    from hf_sane.core.layout import Layout


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the layers, tokens and memory of a checkpoint without loading its weights."""
    from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.tokenization.headers import read_meta_state_dict

    if extractor is not None:
        tokenizer = SANEFeatureExtractor.from_pretrained(extractor)
    else:
        tokenizer = SANEFeatureExtractor(token_dim, token_layout, batch_norm, normalization="none")
    layout = tokenizer.layout(read_meta_state_dict(checkpoint, revision=revision))
    facts = describe_layout(layout)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    columns = ("name", "kind", "shape", "dtype", "tokens", "padding")
    print_table(columns, [[_shown(layer[column]) for column in columns] for layer in facts["layers"]])
    typer.echo()
    print_table(("total", ""), [[name.replace("_", " "), value] for name, value in facts["total"].items()])


def describe_layout(layout: "Layout") -> dict[str, Any]:
    """Layers and totals of a layout, as JSON holds them.

    `token_bytes` is the memory of the tokens in float32; `encoding_bytes` adds the mask and the positions that go with
    them.
    """
    import torch

    layers = []
    for layer, tokens in zip(layout.layers, layout.token_slices, strict=True):
        count = tokens.stop - tokens.start
        shape = [list(layer.weight.shape)] + ([list(layer.bias.shape)] if layer.bias else [])
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": shape,
                "dtype": layer.weight.dtype,
                "tokens": count,
                "padding": 1 - layer.num_weights / (count * layout.token_dim),
            }
        )
    specs = [spec for layer in layout.layers for spec in layer.tensors]
    scalars = layout.num_tokens * layout.token_dim
    total = {
        "layers": len(layers),
        "weights": layout.num_weights,
        "tokens": layout.num_tokens,
        "token_dim": layout.token_dim,
        "padding": layout.padding_share,
        "weight_bytes": sum(spec.numel * getattr(torch, spec.dtype).itemsize for spec in specs),
        "token_bytes": 4 * scalars,
        "encoding_bytes": 5 * scalars + 3 * 8 * layout.num_tokens,
        "template_tensors": len(layout.template),
        "shared_tensors": len(layout.aliases),
    }
    return {"layers": layers, "total": total}


def _shown(value: Any) -> Any:
    """A cell for people: shapes as `16x3x3x3 + 16`, shares in per cent."""
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list):
        return " + ".join("x".join(map(str, shape)) or "scalar" for shape in value)
    return value
