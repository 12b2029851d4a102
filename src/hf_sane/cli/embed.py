"""`hf-sane embed`: one vector per network of a zoo."""

from pathlib import Path
from typing import Annotated

import typer

from hf_sane.cli.features import POOLINGS_HELP, load_sane, parse_poolings, token_blocks
from hf_sane.cli.output import hide_loading_bars, new_folder, print_table, save_record


def embed(
    sane: Annotated[str, typer.Option(help="SANE folder or Hub repo id.")],
    zoo: Annotated[str, typer.Option(help="Zoo folder or Hub dataset id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder: one parquet file per split.")],
    poolings: Annotated[str, typer.Option(help=POOLINGS_HELP)] = "mean,layer_mean_std",
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
    aligned: Annotated[
        bool | None,
        typer.Option(help="Bring networks to the zoo's reference first; by default if the zoo is aligned."),
    ] = None,
    halo_size: Annotated[int, typer.Option(help="Context tokens on each side of a window.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Networks, and windows, at a time.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the SANE repo.")] = None,
) -> None:
    """Embed all networks of a zoo; `datasets.load_dataset(OUTPUT)` reads the result."""
    import datasets

    from hf_sane.core.run_record import RunRecord
    from hf_sane.probing.embeddings import embed_networks
    from hf_sane.zoo.dataset import Zoo

    hide_loading_bars()
    names = parse_poolings(poolings)
    population = Zoo.load(zoo, config)
    aligned = population.alignment is not None if aligned is None else aligned
    settings = {
        "sane": sane,
        "zoo": zoo,
        "config": config,
        "poolings": names,
        "aligned": aligned,
        "halo_size": halo_size,
    }
    record = RunRecord.start(arguments=settings)
    model, extractor = load_sane(sane, revision)
    new_folder(output)
    rows = []
    for split_name, split in population.splits.items():
        columns = {name: split.column(name) for name in split.table.scalar_columns if name != "layout"}
        embeddings: dict[str, list[list[float] | None]] = {name: [None] * len(split) for name in names}
        for members, layout, tokens in token_blocks(split, aligned=aligned):
            found = embed_networks(
                model, extractor, layout, tokens, poolings=names, halo_size=halo_size, batch_size=batch_size
            )
            for name, values in found.items():
                for index, value in zip(members.tolist(), values.tolist(), strict=True):
                    embeddings[name][index] = value
        datasets.Dataset.from_dict({**columns, **embeddings}).to_parquet(output / f"{split_name}.parquet")
        lengths = [sorted({len(vector or ()) for vector in values}) for values in embeddings.values()]
        shown = [found[0] if len(found) == 1 else f"{found[0]}-{found[-1]}" if found else "-" for found in lengths]
        rows.append([split_name, len(split), *shown])
    print_table(("split", "networks", *(f"{name} (scalars)" for name in names)), rows)
    save_record(record, output, {"networks": {name: count for name, count, *_ in rows}})
