"""`hf-sane probe`: what embeddings know about networks, beside the baselines W and s(W)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_sane.cli.features import POOLINGS_HELP, load_sane, parse_poolings, stacked_features, token_blocks
from hf_sane.cli.output import hide_loading_bars, new_folder, print_table, save_record

if TYPE_CHECKING:
    from torch import Tensor

    from hf_sane.zoo.dataset import Zoo

METRICS = {"r2": "R2", "kendall_tau": "Kendall tau", "mae": "mean absolute error"}


def probe(
    sane: Annotated[str, typer.Option(help="SANE folder or Hub repo id.")],
    zoo: Annotated[str, typer.Option(help="Zoo folder or Hub dataset id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder for results and run record.")
    ] = None,
    properties: Annotated[
        str, typer.Option(help="Columns of the zoo to predict, separated by commas.")
    ] = "test_accuracy,epoch,generalization_gap",
    poolings: Annotated[str, typer.Option(help=POOLINGS_HELP)] = "all",
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
    aligned: Annotated[
        bool | None,
        typer.Option(help="Bring networks to the zoo's reference first; by default if the zoo is aligned."),
    ] = None,
    spectral: Annotated[bool, typer.Option(help="Add spectra of weight matrices as one more baseline.")] = False,
    halo_size: Annotated[int, typer.Option(help="Context tokens on each side of a window.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Networks, and windows, at a time.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the SANE repo.")] = None,
) -> None:
    """Fit ridge probes on embeddings and baselines; report how well test networks are predicted."""
    import numpy as np

    from hf_sane.core.run_record import RunRecord
    from hf_sane.probing.evaluation import probe_table
    from hf_sane.zoo.dataset import Zoo

    hide_loading_bars()
    names, wanted = parse_poolings(poolings), [name.strip() for name in properties.split(",")]
    population = Zoo.load(zoo, config)
    aligned = population.alignment is not None if aligned is None else aligned
    settings = {
        "sane": sane,
        "zoo": zoo,
        "config": config,
        "poolings": names,
        "aligned": aligned,
        "spectral": spectral,
        "halo_size": halo_size,
    }
    record = RunRecord.start(arguments=settings)
    targets = {
        name: {key: split.column(name).astype(np.float64) for key, split in population.splits.items()}
        for name in wanted
    }
    options = {"poolings": names, "halo_size": halo_size, "batch_size": batch_size}
    features = zoo_features(*load_sane(sane, revision), population, options, aligned=aligned, spectral=spectral)
    if output is not None:
        new_folder(output)
    table = probe_table(features, targets, runs={key: split.run_ids for key, split in population.splits.items()})
    for metric, title in METRICS.items():
        typer.echo(f"{title} on test networks")
        rows = [[kind, *(getattr(table[name][kind], metric) for name in wanted)] for kind in table[wanted[0]]]
        print_table(("features", *wanted), rows)
        typer.echo()
    if output is not None:
        results = {name: {kind: result.to_dict() for kind, result in row.items()} for name, row in table.items()}
        record.data["networks"] = {name: len(split) for name, split in population.splits.items()}
        save_record(record, output, {"probe": results})


def zoo_features(
    model: Any, extractor: Any, zoo: "Zoo", options: dict[str, Any], *, aligned: bool, spectral: bool = False
) -> "dict[str, dict[str, Tensor]]":
    """W, s(W) and embeddings of every split: `{name: {split: [M, F]}}`.

    Args:
        model: SANE autoencoder.
        extractor: Its weight tokenizer.
        zoo: Of one architecture.
        options: Of `embed_networks`.
        aligned: Whether to bring networks to the zoo's reference first.
        spectral: Whether to add the spectra of weight matrices.
    """
    import numpy as np

    from hf_sane.probing.baselines import flattened_weights, layer_statistics
    from hf_sane.probing.embeddings import embed_networks
    from hf_sane.probing.spectra import spectral_features

    features: dict[str, dict[str, Tensor]] = {}
    for split_name, split in zoo.splits.items():
        parts: dict[str, list[Tensor]] = {}
        order = []
        for members, layout, tokens in token_blocks(split, aligned=aligned):
            order.append(members)
            parts.setdefault("weights", []).append(flattened_weights(tokens, layout))
            parts.setdefault("layer_statistics", []).append(layer_statistics(tokens, layout))
            if spectral:
                parts.setdefault("spectral_features", []).append(spectral_features(tokens, layout))
            for name, values in embed_networks(model, extractor, layout, tokens, **options).items():
                parts.setdefault(f"sane_{name}", []).append(values)
        place = np.argsort(np.concatenate(order))
        for name, found in parts.items():
            features.setdefault(name, {})[split_name] = stacked_features(found)[place]
    return features
