"""`hf-sane embed`: one vector per network, of a zoo or of checkpoints anywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_sane.cli.features import POOLINGS_HELP, parse_poolings, token_blocks
from hf_sane.cli.output import RECORD, hide_loading_bars, new_output, print_table
from hf_sane.cli.weights import Key, Subfolder, Variant
from hf_sane.records.failures import describe_error, expected_errors

if TYPE_CHECKING:
    from hf_sane.models.modeling_sane import SANEModel
    from hf_sane.tokenization.checkpoints import Checkpoint
    from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
    from hf_sane.zoo.dataset import Zoo


def embed(
    sane: Annotated[str, typer.Option(help="SANE folder or Hub repo id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: one parquet file per split.")],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(help="Networks: safetensors files, folders, weights-only pickles, Hub repo ids."),
    ] = None,
    zoo: Annotated[str | None, typer.Option(help="Zoo folder or Hub dataset id, in place of checkpoints.")] = None,
    poolings: Annotated[str, typer.Option(help=POOLINGS_HELP)] = "mean,layer_mean_std",
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
    aligned: Annotated[
        bool | None,
        typer.Option(help="Bring networks to the zoo's reference first; by default if the zoo is aligned."),
    ] = None,
    halo_size: Annotated[int, typer.Option(help="Context tokens on each side of a window.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Networks, and windows, at a time.")] = 64,
    max_memory_bytes: Annotated[
        int | None,
        typer.Option(help="Checkpoints with more bytes of weights are read as a stream; 256 MiB by default."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the SANE repo.")] = None,
    subfolder: Subfolder = None,
    variant: Variant = None,
    key: Key = None,
) -> None:
    """Embed all networks of a zoo, or checkpoints; `datasets.load_dataset(OUTPUT)` reads the result.

    Checkpoints may be larger than memory: safetensors are then read a few megabytes at a time, for all poolings but
    concat and those that decode.
    """
    from hf_sane.hub.publish import load_sane
    from hf_sane.records.run_record import RunRecord
    from hf_sane.tokenization.checkpoints import Checkpoint
    from hf_sane.zoo.dataset import Zoo

    hide_loading_bars()
    names = parse_poolings(poolings)
    settings: dict[str, Any] = {"sane": sane, "poolings": names, "halo_size": halo_size}
    if bool(checkpoints) == (zoo is not None):
        raise ValueError(f"expected checkpoints or --zoo, got {'both' if zoo else 'neither'}; name one of them")
    options: dict[str, Any] = {"halo_size": halo_size, "batch_size": batch_size}
    with new_output(output, "embedding") as partial:
        record = RunRecord.start(arguments=settings)
        population = None if zoo is None else Zoo.load(zoo, config)
        model, extractor = load_sane(sane, revision=revision)
        if population is None:
            chosen = {"subfolder": subfolder, "variant": variant, "key": key}
            record.arguments |= {"checkpoints": checkpoints, **chosen}
            sources = [Checkpoint(checkpoint, **chosen) for checkpoint in checkpoints or ()]
            options |= {} if max_memory_bytes is None else {"max_memory_bytes": max_memory_bytes}
            found = _embed_checkpoints(model, extractor, sources, names, options, partial)
        else:
            aligned = population.alignment is not None if aligned is None else aligned
            record.arguments |= {"zoo": zoo, "config": config, "aligned": aligned}
            found = _embed_zoo(model, extractor, population, names, options, partial, aligned=aligned)
        record.finish(found).save(partial / RECORD)


def _embed_zoo(
    model: "SANEModel",
    extractor: "SANEFeatureExtractor",
    population: "Zoo",
    names: list[Any],
    options: dict[str, Any],
    partial: Path,
    *,
    aligned: bool,
) -> dict[str, Any]:
    """Write one file per split; what the record says of them."""
    import datasets

    from hf_sane.probing.embeddings import embed_networks

    rows = []
    for split_name, split in population.splits.items():
        columns = {name: split.column(name) for name in split.table.scalar_columns if name != "layout"}
        embeddings: dict[str, list[list[float] | None]] = {name: [None] * len(split) for name in names}
        for members, layout, tokens in token_blocks(split, aligned=aligned):
            found = embed_networks(model, extractor, layout, tokens, poolings=names, **options)
            for name, values in found.items():
                for index, value in zip(members.tolist(), values.tolist(), strict=True):
                    embeddings[name][index] = value
        datasets.Dataset.from_dict({**columns, **embeddings}).to_parquet(partial / f"{split_name}.parquet")
        rows.append([split_name, len(split), *(_lengths(values) for values in embeddings.values())])
    print_table(("split", "networks", *(f"{name} (scalars)" for name in names)), rows)
    return {"networks": {name: count for name, count, *_ in rows}}


def _embed_checkpoints(
    model: "SANEModel",
    extractor: "SANEFeatureExtractor",
    checkpoints: "Sequence[Checkpoint]",
    names: list[Any],
    options: dict[str, Any],
    partial: Path,
) -> dict[str, Any]:
    """Write one file with a row per checkpoint that can be embedded; what the record says of them.

    A checkpoint that cannot is reported and left out, unless no other one can.
    """
    import datasets

    from hf_sane.probing.streaming import embed_checkpoint

    columns: dict[str, list[Any]] = {name: [] for name in ("checkpoint", "weights", "tokens", *names)}
    skipped: dict[str, str] = {}
    for source in checkpoints:
        checkpoint = str(source)
        try:
            layout, found = embed_checkpoint(model, extractor, source, poolings=names, **options)
        except expected_errors() as error:
            if len(skipped) == len(checkpoints) - 1:  # nothing is left
                raise
            skipped[checkpoint] = describe_error(error)
            typer.echo(f"skipped {checkpoint}: {skipped[checkpoint]}", err=True)
            continue
        facts = {"checkpoint": checkpoint, "weights": layout.num_weights, "tokens": layout.num_tokens}
        for name, value in (facts | {name: vector.tolist() for name, vector in found.items()}).items():
            columns[name].append(value)
    datasets.Dataset.from_dict(columns).to_parquet(partial / "train.parquet")
    lengths = [[len(vector) for vector in columns[name]] for name in names]
    rows = zip(columns["checkpoint"], columns["weights"], columns["tokens"], *lengths, strict=True)
    print_table(("checkpoint", "weights", "tokens", *(f"{name} (scalars)" for name in names)), list(rows))
    return {"networks": len(columns["checkpoint"]), "tokens": sum(columns["tokens"]), "skipped": skipped}


def _lengths(vectors: list[list[float] | None]) -> Any:
    """How long the embeddings are: one number, or from-to."""
    found = sorted({len(vector or ()) for vector in vectors})
    return found[0] if len(found) == 1 else f"{found[0]}-{found[-1]}" if found else "-"
