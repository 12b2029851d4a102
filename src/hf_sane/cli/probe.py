"""`hf-sane probe`: what embeddings know about networks, beside the baselines W and s(W)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.features import POOLINGS_HELP, parse_poolings, stacked_features, token_blocks
from hf_sane.cli.output import RECORD, hide_loading_bars, optional_output, print_table

if TYPE_CHECKING:
    import numpy as np
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
    regressor: Annotated[
        Literal["ridge", "logit_linear", "gradient_boosting"], typer.Option(help="From features to properties.")
    ] = "ridge",
    ranks: Annotated[
        bool, typer.Option(help="Fit ranks of the properties, not their values: for choosing networks.")
    ] = False,
    transfer: Annotated[
        list[str] | None,
        typer.Option(help="More zoos (folders or Hub ids, or FOLDER:CONFIG): fit on each, test on each. Repeat it."),
    ] = None,
    halo_size: Annotated[int, typer.Option(help="Context tokens on each side of a window.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Networks, and windows, at a time.")] = 64,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the SANE repo.")] = None,
) -> None:
    """Fit ridge probes on embeddings and baselines; report how well test networks are predicted."""
    from hf_sane.hub.publish import load_sane
    from hf_sane.probing.evaluation import probe_table
    from hf_sane.records.run_record import RunRecord

    hide_loading_bars()
    names, wanted = parse_poolings(poolings), [name.strip() for name in properties.split(",")]
    settings: dict[str, Any] = {"sane": sane, "zoo": zoo, "config": config, "poolings": names, "spectral": spectral}
    settings |= {"regressor": regressor, "ranks": ranks, "transfer": transfer or [], "halo_size": halo_size}
    record = RunRecord.start(arguments=settings)
    with optional_output(output, "probe") as partial:
        populations = open_zoos([zoo, *(transfer or [])], config, wanted)
        model, extractor = load_sane(sane, revision=revision)
        options = {"poolings": names, "halo_size": halo_size, "batch_size": batch_size}

        def read(population: "Zoo") -> ZooInputs:
            return read_zoo(population, wanted, model, extractor, options, aligned=aligned, spectral=spectral)

        label, *others = populations
        inputs = read(populations[label])
        table = probe_table(inputs.features, inputs.targets, runs=inputs.runs, regressor=regressor, ranks=ranks)
        for metric, title in METRICS.items():
            of_scores = " of normal scores" if ranks and metric != "kendall_tau" else ""
            typer.echo(f"{title}{of_scores} on test networks")
            rows = [[kind, *(getattr(table[name][kind], metric) for name in wanted)] for kind in table[wanted[0]]]
            print_table(("features", *wanted), rows)
            typer.echo()
        results: dict[str, Any] = {
            "probe": {name: {kind: result.to_dict() for kind, result in row.items()} for name, row in table.items()}
        }
        if others:
            zoos = {label: inputs, **{other: read(populations[other]) for other in others}}
            results["transfer"] = {name: print_transfer(zoos, name, regressor, ranks=ranks) for name in wanted}
        if partial is not None:
            record.arguments["aligned"] = inputs.is_aligned
            record.data["networks"] = inputs.counts
            record.finish(results).save(partial / RECORD)


@dataclass(frozen=True)
class ZooInputs:
    """What probes of one zoo take.

    Attributes:
        features: `{name: {split: [M, F]}}`.
        targets: `{property: {split: [M]}}`.
        runs: `{split: [M]}`, the training run of each network.
        is_aligned: Whether networks were brought to the zoo's reference.
    """

    features: "dict[str, dict[str, Tensor]]"
    targets: "dict[str, dict[str, np.ndarray]]"
    runs: dict[str, list[str]]
    is_aligned: bool

    @property
    def counts(self) -> dict[str, int]:
        """Networks per split."""
        return {split: len(found) for split, found in self.runs.items()}


def open_zoos(sources: list[str], config: str | None, wanted: list[str]) -> "dict[str, Zoo]":
    """Open zoos by what records call them, before anything is computed.

    Args:
        sources: Folders or Hub ids, the first as it was given; others may be `FOLDER:CONFIG`.
        config: Which zoo, where there are several and a source does not say.
        wanted: Properties that every zoo must have.

    Raises:
        ValueError: If a zoo comes twice.
        KeyError: If it lacks a property.
    """
    from hf_sane.zoo.dataset import Zoo

    opened: dict[str, Zoo] = {}
    for source in sources:
        place, named = split_config(source)
        part = named or config
        label = place if part is None else f"{place}:{part}"
        if label in opened:
            raise ValueError(f"expected different zoos to compare, got {label} twice; name its zoos as FOLDER:CONFIG")
        opened[label] = Zoo.load(place, part)
        for split in opened[label].splits.values():
            for name in wanted:
                split.column(name)
    return opened


def split_config(source: str) -> tuple[str, str | None]:
    """Folder or dataset id, and configuration, of `SOURCE` or `SOURCE:CONFIG`; what exists as a path is one."""
    place, colon, config = source.rpartition(":")
    is_path = Path(source).exists() or "/" in config or "\\" in config
    return (source, None) if is_path or not place or not colon or not config else (place, config)


def read_zoo(
    population: "Zoo",
    wanted: list[str],
    model: Any,
    extractor: Any,
    options: dict[str, Any],
    *,
    aligned: bool | None,
    spectral: bool,
) -> ZooInputs:
    """Features and properties of the networks of a zoo whose properties are all known; arguments as of the verb."""
    import numpy as np

    is_aligned = population.alignment is not None if aligned is None else aligned
    targets = {
        name: {key: split.column(name).astype(np.float64) for key, split in population.splits.items()}
        for name in wanted
    }
    known = known_networks(targets)
    targets = {name: {key: found[known[key]] for key, found in values.items()} for name, values in targets.items()}
    population = replace(population, splits={key: population.splits[key].select(rows) for key, rows in known.items()})
    features = zoo_features(model, extractor, population, options, aligned=is_aligned, spectral=spectral)
    return ZooInputs(features, targets, {key: split.run_ids for key, split in population.splits.items()}, is_aligned)


def print_transfer(zoos: dict[str, ZooInputs], name: str, regressor: Any, *, ranks: bool = False) -> dict[str, Any]:
    """Fit on each zoo, test on each: prints R2 and Kendall tau of one property, returns all as JSON holds it."""
    from hf_sane.probing.transfer import transfer_table

    shared = set.intersection(*(set(inputs.features) for inputs in zoos.values()))
    features = {
        zoo: {kind: found for kind, found in inputs.features.items() if kind in shared} for zoo, inputs in zoos.items()
    }
    targets = {zoo: inputs.targets[name] for zoo, inputs in zoos.items()}
    table = transfer_table(features, targets, regressor=regressor, ranks=ranks)
    for metric in ("r2", "kendall_tau"):
        typer.echo(f"{METRICS[metric]} of {name}: fitted on a row's zoo, tested on a column's")
        rows = [
            [f"{kind}: {source}", *(getattr(result, metric) for result in row.values())]
            for kind, found in table.items()
            for source, row in found.items()
        ]
        print_table(("features: fitted on", *zoos), rows)
        typer.echo()
    return {
        kind: {source: {target: result.to_dict() for target, result in row.items()} for source, row in found.items()}
        for kind, found in table.items()
    }


def zoo_features(
    model: Any, extractor: Any, zoo: "Zoo", options: dict[str, Any], *, aligned: bool, spectral: bool = False
) -> "dict[str, dict[str, Tensor]]":
    """W, s(W) and embeddings of every split: `{name: {split: [M, F]}}`.

    What has another length for every architecture is left out, as long as something remains.

    Args:
        model: SANE autoencoder.
        extractor: Its weight tokenizer.
        zoo: Whose networks.
        options: Of `embed_networks`.
        aligned: Whether to bring networks to the zoo's reference first.
        spectral: Whether to add the spectra of weight matrices.
    """
    import numpy as np

    from hf_sane.probing.baselines import flattened_weights, layer_statistics
    from hf_sane.probing.embeddings import embed_networks
    from hf_sane.probing.spectra import spectral_features

    collected: dict[str, dict[str, list[Tensor]]] = {}
    places = {}
    for split_name, split in zoo.splits.items():
        parts: dict[str, list[Tensor]] = {}
        order = [np.zeros(0, dtype=np.int64)]
        for members, layout, tokens in token_blocks(split, aligned=aligned):
            order.append(members)
            parts.setdefault("weights", []).append(flattened_weights(tokens, layout))
            parts.setdefault("layer_statistics", []).append(layer_statistics(tokens, layout))
            if spectral:
                parts.setdefault("spectral_features", []).append(spectral_features(tokens, layout))
            for name, values in embed_networks(model, extractor, layout, tokens, **options).items():
                parts.setdefault(f"sane_{name}", []).append(values)
        places[split_name] = np.argsort(np.concatenate(order))
        for name, found in parts.items():
            collected.setdefault(name, {})[split_name] = found
    kept = {name: found for name, found in collected.items() if len(_lengths(found)) == 1} or collected
    if left_out := [name for name in collected if name not in kept]:
        typer.echo(f"left out, since their length depends on the architecture: {', '.join(left_out)}\n")
    return {
        name: {split: stacked_features(parts)[places[split]] for split, parts in found.items()}
        for name, found in kept.items()
    }


def _lengths(found: "dict[str, list[Tensor]]") -> set[int]:
    return {part.shape[1] for parts in found.values() for part in parts}


def known_networks(targets: "dict[str, dict[str, np.ndarray]]") -> "dict[str, np.ndarray]":
    """Networks of each split of which all properties are known: `{split: [m]}`, positions.

    Raises:
        ValueError: If there are none in a split.
    """
    import numpy as np

    splits = next(iter(targets.values()))
    known = {key: np.isfinite([values[key] for values in targets.values()]).all(axis=0) for key in splits}
    if empty := [key for key, mask in known.items() if not mask.any()]:
        counts = {name: [int(np.isfinite(values[key]).sum()) for key in splits] for name, values in targets.items()}
        raise ValueError(
            f"expected networks with all of {', '.join(targets)} in every split, got none in {', '.join(empty)}; known in "
            f"{', '.join(splits)}: {counts}; name other properties (--properties)"
        )
    if missing := sum(int((~mask).sum()) for mask in known.values()):
        typer.echo(f"{missing} networks left out, of which not all properties are known\n")
    return {key: np.flatnonzero(mask) for key, mask in known.items()}
