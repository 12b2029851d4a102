"""`hf-sane regions`: where networks of one data set or task lie in weight space, and what lies between them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import RECORD, hide_loading_bars, new_output, print_table

if TYPE_CHECKING:
    import torch

    from hf_sane.analysis.region_results import RegionScores
    from hf_sane.analysis.region_zoos import LabelledNetworks
    from hf_sane.analysis.regions import RegionMap
    from hf_sane.zoo.dataset import Zoo


def regions(
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="New folder: run record and pictures.")],
    zoo: Annotated[
        list[str] | None, typer.Option(help="Zoos of one architecture (folders or Hub ids). Repeat it.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=SOURCE, in place of zoos: a LoRA adapter and what it was trained for. Repeat it."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model of the adapters, which those with DoRA, biases or whole modules need."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Which zoo, where there are several.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Levels: 'data_set', a level of --groups, a column of the zoos. Repeat it."),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help='JSON file of coarser levels: {"task": {"mnist": "digits", ...}}.')
    ] = None,
    splits: Annotated[str, typer.Option(help="Whose networks, separated by commas.")] = "train,validation,test",
    epoch: Annotated[int | None, typer.Option(help="Of every run; its last one if left out.")] = None,
    limit: Annotated[int | None, typer.Option(help="Networks per zoo at most.")] = None,
    align: Annotated[bool, typer.Option("--align/--no-align", help="Permute channels onto the first network.")] = True,
    metric: Annotated[
        Literal["euclidean", "cosine"] | None, typer.Option(help="Of distances; cosine for adapters if left out.")
    ] = None,
    sane: Annotated[str | None, typer.Option(help="SANE folder or Hub id: its latents as a second space.")] = None,
    num_points: Annotated[
        int, typer.Option(help="Points inside each region to run on the zoos' images; 0 for none.")
    ] = 0,
    method: Annotated[
        Literal["tsne", "umap", "pca"], typer.Option(help="Of the map; umap needs umap-learn.")
    ] = "tsne",
    plots: Annotated[bool, typer.Option(help="Draw pictures (needs matplotlib).")] = True,
    seed: Annotated[int, typer.Option(help="Of relabellings, points and the map.")] = 0,
) -> None:
    """Map networks by what they were trained for: distances, nearest regions, points inside, a picture."""
    from hf_sane.records.documents import read_document
    from hf_sane.records.run_record import RunRecord

    hide_loading_bars()
    if bool(zoo) == bool(adapter):
        raise ValueError("expected zoos (--zoo) or adapters (--adapter), one kind; name at least one")
    if zoo and base is not None:
        raise ValueError("--base is the base model of adapters (--adapter); leave it out")
    if plots and find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'hf_sane[analysis]', or give --no-plots")
    metric = metric or ("euclidean" if zoo else "cosine")
    levels = label or (["data_set"] if zoo else ["label"])
    settings: dict[str, Any] = {
        "zoos": zoo or [],
        "adapters": adapter or [],
        "base": base,
        "levels": levels,
        "splits": splits,
    }
    settings |= {"epoch": epoch, "limit": limit, "aligned": align and bool(zoo), "metric": metric, "sane": sane}
    record = RunRecord.start(seed=seed, arguments={**settings, "num_points": num_points, "method": method})
    scores: dict[str, RegionScores] = {}
    with new_output(output, "map of regions") as partial:
        if zoo:
            coarser: dict[str, dict[str, str]] = {}
            if groups is not None:
                coarser = read_document(groups, expected="groups by level").of_type(dict[str, dict[str, str]])
            chosen = {level: coarser[level] for level in levels if level in coarser}
            columns = [level for level in levels if level not in coarser and level != "data_set"]
            zoos, networks = read_networks(
                zoo, config, columns, chosen, splits=splits.split(","), epoch=epoch, limit=limit, align=align
            )
            maps = zoo_maps(networks, sane)
            if num_points:
                scored = [level for level in levels if level not in columns]
                scores = score_regions(zoos, networks, maps["weights"], scored, num_points=num_points, seed=seed)
        else:
            maps = {"weights": adapter_map(adapter or [], base)}
        results: dict[str, Any] = {
            space: {level: describe_level(found, level, space, metric, seed=seed) for level in levels}
            for space, found in maps.items()
        }
        if scores:
            print_scores(scores)
            results["interior"] = {name: found.to_dict() for name, found in scores.items()}
        if adapter:
            results["distances"] = maps["weights"].distances(metric).tolist()
        if plots:
            draw(maps, levels, scores, partial, method, seed=seed)
        record.data["networks"] = len(next(iter(maps.values())).points)
        record.finish(results).save(partial / RECORD)


def read_networks(
    sources: list[str],
    config: str | None,
    columns: list[str],
    groups: dict[str, dict[str, str]],
    *,
    splits: list[str],
    epoch: int | None,
    limit: int | None,
    align: bool,
) -> "tuple[list[Zoo], LabelledNetworks]":
    """Zoos and their networks, aligned to the first one if that is wanted."""
    from hf_sane.analysis.region_networks import align_networks
    from hf_sane.analysis.region_zoos import zoo_networks
    from hf_sane.zoo.dataset import Zoo

    if len({str(Path(source)) for source in sources}) < len(sources):
        raise ValueError(f"name each zoo once, got {', '.join(sources)}; its networks would count twice")
    zoos = [Zoo.load(source, config) for source in sources]
    names = [name.strip() for name in splits]
    found = zoo_networks(zoos, columns=columns, groups=groups, splits=names, epoch=epoch, limit=limit)
    if found.num_shared_starts:
        typer.echo(
            f"{found.num_shared_starts} networks started from the same weights as one of another data set, which draws these "
            "together; build zoos with different seeds\n"
        )
    return zoos, found.with_tensors(align_networks(found.tensors, found.spec)) if align else found


def zoo_maps(networks: "LabelledNetworks", sane: str | None) -> "dict[str, RegionMap]":
    """Maps of weight space and, with an autoencoder, of its latent space."""
    from hf_sane.analysis.region_networks import latent_points
    from hf_sane.analysis.regions import RegionMap
    from hf_sane.hub.publish import load_sane

    maps = {"weights": RegionMap.from_networks(networks.tensors, networks.labels, runs=networks.runs)}
    if sane is not None:
        points = latent_points(*load_sane(sane), networks.tensors)
        maps["latents"] = RegionMap(points, networks.labels, networks.runs)
    return maps


def adapter_map(pairs: list[str], base: str | None) -> "RegionMap":
    """A map of adapters given as LABEL=SOURCE.

    Raises:
        ValueError: If the label is missing, or an adapter comes twice.
    """
    from hf_sane.analysis.adapter_regions import adapter_points, equal_adapters, shared_modules
    from hf_sane.analysis.regions import RegionMap
    from hf_sane.tokenization.adapters import open_factors

    if bad := [pair for pair in pairs if not all(pair.partition("=")[::2])]:
        raise ValueError(f"expected adapters as LABEL=SOURCE, got {bad}; say what each was trained for")
    sources = {f"{index}: {pair}": pair.partition("=")[2] for index, pair in enumerate(pairs)}
    factors = {name: open_factors(source, base=base) for name, source in sources.items()}
    if twins := equal_adapters(factors):
        raise ValueError(
            f"these adapters are the same, weight by weight: {'; '.join(' and '.join(pair) for pair in twins)}. Distances "
            "within and between labels would count one adapter twice; name each of them once"
        )
    points = adapter_points(factors)
    num_shared = len(shared_modules(factors))
    for name, changes in factors.items():
        if len(changes) > num_shared:
            typer.echo(
                f"{name}: {len(changes) - num_shared} of its {len(changes)} layers are left out, since not all adapters change them"
            )
    return RegionMap(points, {"label": [pair.partition("=")[0] for pair in pairs]})


def describe_level(found: "RegionMap", level: str, space: str, metric: Any, *, seed: int) -> dict[str, Any]:
    """Distances within and between the groups of a level, and how often the nearest region is the right one; printed."""
    import torch

    labels = list(dict.fromkeys(found.labels[level]))
    counts = {name: list(found.labels[level]).count(name) for name in labels}
    if found.runs == () and max(counts.values()) < 2:
        typer.echo(f"{space}, {level}: every label has one network, so there are no regions; distances ({metric})")
        rows = [[name, *row] for name, row in zip(labels, found.distances(metric).tolist(), strict=True)]
        print_table((level, *labels), rows)
        return {"counts": counts, "skipped": "every label has one network"}
    distances = found.group_distances(level, metric=metric, generator=torch.Generator().manual_seed(seed))
    typer.echo(f"{space}, {level}: mean {metric} distance")
    print_table((level, "networks", *labels), [[n, counts[n], *distances.table[n].values()] for n in labels])
    typer.echo(
        f"within {distances.mean_within:.4g}, between {distances.mean_between:.4g}, ratio {distances.ratio:.3f} "
        f"(p {distances.p_value:.3g})"
    )
    results: dict[str, Any] = {"counts": counts, "distances": distances.to_dict()}
    if min(counts.values()) < 2:
        typer.echo("nearest region: skipped, some labels have one network\n")
        return results
    centroid, neighbour = (found.classify(level, rule=rule) for rule in ("centroid", "neighbour"))
    typer.echo(
        f"nearest region: by centroid {centroid.accuracy:.3f}, by neighbour {neighbour.accuracy:.3f}, chance "
        f"{centroid.chance:.3f}\n"
    )
    return results | {"nearest_centroid": centroid.to_dict(), "nearest_neighbour": neighbour.to_dict()}


def score_regions(
    zoos: "list[Zoo]",
    networks: "LabelledNetworks",
    found: "RegionMap",
    levels: list[str],
    *,
    num_points: int,
    seed: int,
) -> "dict[str, RegionScores]":
    """Run points inside every region on the test images of its data sets."""
    import torch

    from hf_sane.networks.images import load_zoo_images

    data = {zoo.facts.name: load_zoo_images(zoo.facts) for zoo in zoos}
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for level in levels:
        for name in dict.fromkeys(networks.labels[level]):
            pairs = zip(networks.labels[level], networks.labels["data_set"], strict=True)
            own = dict.fromkeys(data_set for label, data_set in pairs if label == name)

            def score(points: "torch.Tensor", own: dict[str, None] = own) -> "torch.Tensor":
                each = [
                    networks.accuracy(points, *data[key].split("test"), calibration=data[key].train_images)
                    for key in own
                ]
                return torch.stack(each).mean(dim=0)

            scores[f"{level}: {name}"] = found.score_region(
                level, name, score, num_points=num_points, generator=generator
            )
    return scores


def print_scores(scores: "dict[str, RegionScores]") -> None:
    """Print what points inside regions score."""
    header = ("test accuracy of", "networks", "line", "hull", "outside", "line beats outside", "hull beats outside")
    rows: list[list[Any]] = []
    for name, found in scores.items():
        means = [part.mean().item() if len(part) else None for part in (found.corners, found.line, found.hull)]
        outside = found.outside.mean().item() if len(found.outside) else None
        rows.append([name, *means, outside, found.better_than_outside("line"), found.better_than_outside("hull")])
    print_table(header, rows)


def draw(
    maps: "dict[str, RegionMap]",
    levels: list[str],
    scores: "dict[str, RegionScores]",
    partial: Path,
    method: Any,
    *,
    seed: int,
) -> None:
    """Write map.png and scores.png; a map needs four networks."""
    from hf_sane.analysis.projection import MIN_POINTS
    from hf_sane.analysis.region_plots import plot_maps, plot_scores

    if len(next(iter(maps.values())).points) < MIN_POINTS:
        typer.echo(f"no map: a picture needs at least {MIN_POINTS} networks")
    else:
        places = {space: found.project(method, seed=seed) for space, found in maps.items()}
        panels = {
            f"{space} by {level}": (places[space], found.labels[level])
            for space, found in maps.items()
            for level in levels
        }
        plot_maps(panels, partial / "map.png", method=method, columns=len(levels))
    if scores:
        plot_scores(scores, partial / "scores.png", quantity="test accuracy")
