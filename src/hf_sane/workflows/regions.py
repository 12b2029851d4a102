"""Map networks in weight space by the task they were trained for, and evaluate points between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired, TypedDict

import torch

from hf_sane.analysis._adapter_regions import adapter_map
from hf_sane.analysis._projection import MIN_POINTS
from hf_sane.analysis._region_networks import latent_points
from hf_sane.analysis._region_plots import plot_maps, plot_scores
from hf_sane.analysis._region_results import GroupDistances, RegionAccuracy, RegionScores
from hf_sane.analysis._region_zoos import LabelledNetworks, score_zoo_regions, zoo_networks
from hf_sane.analysis._regions import RegionMap
from hf_sane.networks._modules import ModuleSettings
from hf_sane.networks._tasks import Task
from hf_sane.records._documents import read_document
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, as_list, setting
from hf_sane.workflows.judging import JudgeSettings
from hf_sane.workflows.results import Result, Table, optional_output
from hf_sane.workflows.sane import SANE, open_sane
from hf_sane.workflows.shared import PlotSettings, RunSettings, SaneSettings, SourceSettings
from hf_sane.workflows.show_zoo import load_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings

SPLITS = ("train", "validation", "test")
SCORE_HEADER = ("networks", "line", "hull", "outside", "line better than outside", "hull better than outside")


@dataclass(kw_only=True)
class RegionsSettings(
    SourceSettings, SaneSettings, ZooSourceSettings, RunSettings, ModuleSettings, JudgeSettings, PlotSettings
):
    """Settings of [`map_regions`]."""

    output: Path | None = setting("New folder for the run record and plots.", short="-o", formerly="--out")
    zoo: list[str | Path | Zoo] = setting(
        "Zoos of one architecture (folders or Hub repo ids). Repeat the option for several.", factory=list, split=False
    )
    adapter: list[str] = setting(
        "LoRA adapters instead of zoos, as LABEL=SOURCE, where LABEL names what the adapter was trained for. "
        "Repeat the option for several.",
        factory=list,
        split=False,
    )
    base: str | None = setting(
        "Base model of the adapters; required for DoRA, trained biases and modules that are saved in full.",
        default=None,
    )
    label: list[str] = setting(
        "Levels by which to group networks: 'data_set', a level of --groups, or a column of the zoos. Repeat the "
        "option for several.",
        factory=list,
        split=False,
    )
    groups: Path | None = setting('JSON file of coarser levels: {"task": {"mnist": "digits", ...}}.', default=None)
    splits: list[str] = setting(
        "Splits whose networks are mapped.", factory=lambda: list(SPLITS), choices=lambda: SPLITS
    )
    limit: int | None = setting("Use at most this many networks per zoo.", default=None, least=1)
    metric: Literal["euclidean", "cosine"] | None = setting(
        "Distance metric; by default euclidean for zoos and cosine for adapters.", default=None
    )
    sane: str | SANE | None = setting(
        "SANE (folder or Hub repo id) whose latent space is mapped as well.", default=None
    )
    num_points: int = setting(
        "Number of points inside each region to evaluate on the zoos' images or with --evaluate.", default=0
    )
    method: Literal["tsne", "umap", "pca"] = setting(
        "Projection of the map; umap requires umap-learn.", default="tsne"
    )
    seed: int = setting("Random seed for permutation tests, points and the map.", default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.zoo) == bool(self.adapter):
            raise ValueError("expected either zoos (--zoo) or adapters (--adapter); name at least one")
        if self.zoo and self.base is not None:
            raise ValueError("--base is the base model of adapters (--adapter); leave it out")
        if self.evaluate is not None and not (self.zoo and self.num_points):
            raise ValueError(
                "expected zoos and a number of points for a function (--evaluate); pass --zoo and --num-points 20"
            )
        if self.zoo and self.weights:
            raise ValueError("--subfolder and --variant are for adapters (--adapter), got zoos; leave them out")
        self.check_matplotlib()
        self.metric = self.metric or ("euclidean" if self.zoo else "cosine")
        self.label = self.label or (["data_set"] if self.zoo else ["label"])


class LevelJson(TypedDict):
    """Groups of one level.

    Attributes:
        counts: Number of networks of each label.
        distances: Distances within and between labels.
        nearest_centroid: How often the region with the nearest mean is the correct one.
        nearest_neighbour: How often the region of the nearest network is the correct one.
        skipped: Reason why nothing was measured.
    """

    counts: dict[str, int]
    distances: NotRequired[GroupDistances]
    nearest_centroid: NotRequired[RegionAccuracy]
    nearest_neighbour: NotRequired[RegionAccuracy]
    skipped: NotRequired[str]


class RegionsJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        weights: Groups in weight space, by level.
        latents: Groups in the latent space of a SANE, by level.
        interior: Scores inside and outside regions, by label: corners, line, hull, outside.
        distances: Distances between all pairs of adapters.
    """

    weights: dict[str, LevelJson]
    latents: NotRequired[dict[str, LevelJson]]
    interior: NotRequired[dict[str, Any]]
    distances: NotRequired[list[list[float]]]


@dataclass(kw_only=True)
class RegionsResult(Result):
    """Regions of weight space.

    Attributes:
        maps: Maps of `weights` and, if there is an autoencoder, of `latents`.
        levels: Properties by which networks are grouped.
        scores: Test accuracies inside regions, `{"level: label": scores}`, if requested.
        pictures: Whether to draw plots.
    """

    JSON: ClassVar[Any] = RegionsJson
    JOB: ClassVar[str] = "map of regions"

    maps: dict[str, RegionMap]
    levels: list[str]
    scores: dict[str, RegionScores] = field(default_factory=dict)
    pictures: bool = False

    def tables(self) -> list[Table]:
        """Distances within and between labels, and accuracy of the nearest region, for each space and level."""
        found = [self._level(space, level) for space in self.maps for level in self.levels]
        rows = [_score_row(name, scores) for name, scores in self.scores.items()]
        return [*found, Table((f"{self._measured} of", *SCORE_HEADER), rows)] if rows else found

    @property
    def _measured(self) -> str:
        """Human-readable name of the scores."""
        return str(self.record.arguments.get("measured", "test_accuracy")).replace("_", " ")

    def _level(self, space: str, level: str) -> Table:
        measured, metric = self.record.results[space][level], self.record.arguments["metric"]
        counts: dict[str, int] = measured["counts"]
        if "skipped" in measured:
            rows = zip(counts, self.maps[space].distances(metric).tolist(), strict=True)
            title = f"{space}, {level}: no regions, since {measured['skipped']}; distances ({metric})"
            return Table((level, *counts), [[name, *row] for name, row in rows], title=title)
        distances = measured["distances"]
        table = distances["table"]
        lines = [
            f"within {distances['mean_within']:.4g}, between {distances['mean_between']:.4g}, ratio "
            f"{distances['ratio']:.3f} (p {distances['p_value']:.3g})",
            "nearest region: skipped, since some labels have only one network",
        ]
        if "nearest_centroid" in measured:
            centroid, neighbour = measured["nearest_centroid"], measured["nearest_neighbour"]
            lines[1] = (
                f"nearest region: by centroid {centroid['accuracy']:.3f}, by neighbour {neighbour['accuracy']:.3f}, "
                f"chance {centroid['chance']:.3f}"
            )
        return Table(
            (level, "networks", *counts),
            [[name, count, *table[name].values()] for name, count in counts.items()],
            title=f"{space}, {level}: mean {metric} distance",
            caption="\n".join(lines),
        )

    def draw(self, partial: Path) -> None:
        """Draw map.png (for at least four networks) and scores.png."""
        method: Any = self.record.arguments["method"]
        if self.pictures and _can_draw(self.maps):
            places = {space: found.project(method, seed=self.record.seed or 0) for space, found in self.maps.items()}
            panels = {
                f"{space} by {level}": (places[space], found.labels[level])
                for space, found in self.maps.items()
                for level in self.levels
            }
            plot_maps(panels, partial / "map.png", method=method, columns=len(self.levels))
        if self.pictures and self.scores:
            plot_scores(self.scores, partial / "scores.png", quantity=self._measured)


def map_regions(
    networks: str | Path | Zoo | Sequence[str | Path | Zoo] | Mapping[str, str | Path | Sequence[str | Path]],
    **options: Any,
) -> RegionsResult:
    """Map networks by what they were trained for: distances, nearest regions, points inside regions.

    ```python
    print(hf_sane.map_regions(["org/zoo-mnist", "org/zoo-svhn"]))
    hf_sane.map_regions({"cats": ["cats_lora_a", "cats_lora_b"], "dogs": ["dogs_lora"]}).save("regions")
    ```

    Args:
        networks: Zoos of one architecture, their folders or Hub repo ids; or LoRA adapters as `{label: [sources]}`.
        **options: Other fields of [`RegionsSettings`].

    Raises:
        ValueError: If a zoo or adapter is given twice, or a level has only one label.
    """
    if isinstance(networks, Mapping):
        pairs = [f"{label}={source}" for label, sources in networks.items() for source in as_list(sources)]
        chosen: dict[str, Any] = {"adapter": pairs}
    else:
        chosen = {"zoo": networks}
    return run_regions(RegionsSettings(**{"output": None, **chosen, **options}))


def run_regions(settings: RegionsSettings) -> RegionsResult:
    """Map networks by what they were trained for: distances, nearest regions, points inside regions, plots."""
    settings.register()
    task = settings.judgement()
    given = as_arguments(settings)
    record = RunRecord.start(
        seed=settings.seed,
        arguments={
            "zoos": given["zoo"],
            "adapters": given["adapter"],
            "base": given["base"],
            "levels": given["label"],
            "splits": ",".join(settings.splits),
            **{name: given[name] for name in ("epoch", "limit", "metric", "sane", "num_points", "method")},
            "aligned": settings.align and bool(settings.zoo),
            **settings.weights,
            **({} if task is None else {"measured": task.label("test")}),
        },
    )
    with optional_output(settings.output, RegionsResult.JOB) as output:
        if settings.zoo:
            maps, scores, notes = _map_zoos(settings, task)
        else:
            found, notes = adapter_map(settings.adapter, base=settings.base, **settings.weights)
            maps, scores = {"weights": found}, {}
        metric: Any = settings.metric
        results: dict[str, Any] = {
            space: {level: _describe(found, level, metric, seed=settings.seed) for level in settings.label}
            for space, found in maps.items()
        }
        if scores:
            results["interior"] = {name: found.to_dict() for name, found in scores.items()}
        if settings.adapter:
            results["distances"] = maps["weights"].distances(metric).tolist()
        if settings.plots and not _can_draw(maps):
            notes.append(f"no map: it needs at least {MIN_POINTS} networks")
        record.data["networks"] = len(next(iter(maps.values())).points)
        result = RegionsResult(
            record=record.finish(results),
            notes=notes,
            maps=maps,
            levels=settings.label,
            scores=scores,
            pictures=settings.plots,
        )
        return output.write(result)


def _map_zoos(
    settings: RegionsSettings, task: Task | None
) -> tuple[dict[str, RegionMap], dict[str, RegionScores], list[str]]:
    """Maps of weight space and, with an autoencoder, of its latent space; scores of regions; and notes."""
    coarser: dict[str, dict[str, str]] = {}
    if settings.groups is not None:
        coarser = read_document(settings.groups, expected="groups by level").of_type(dict[str, dict[str, str]])
    columns = [level for level in settings.label if level not in coarser and level != "data_set"]
    zoos, networks = _read_networks(
        settings, columns, {level: coarser[level] for level in settings.label if level in coarser}
    )
    notes = []
    if networks.num_shared_starts:
        notes.append(
            f"{networks.num_shared_starts} networks started from the same weights as a network of another data set, "
            f"which "
            "makes their regions appear closer; build zoos with different seeds"
        )
    maps = {"weights": RegionMap.from_networks(networks.distinct, networks.labels, runs=networks.runs)}
    if settings.sane is not None:
        sane = open_sane(settings.sane, **settings.sane_place)
        points = latent_points(sane.model, sane.extractor, networks.distinct)
        maps["latents"] = RegionMap(points, networks.labels, networks.runs)
    if not settings.num_points:
        return maps, {}, notes
    notes += [] if task is None else task.notes
    # For columns, it is unknown which images belong to a label.
    levels = [level for level in settings.label if task is not None or level not in columns]
    scores = score_zoo_regions(
        zoos, networks, maps["weights"], levels, num_points=settings.num_points, seed=settings.seed, task=task
    )
    return maps, scores, notes


def _read_networks(
    settings: RegionsSettings, columns: list[str], groups: dict[str, dict[str, str]]
) -> tuple[list[Zoo], LabelledNetworks]:
    """Zoos and their networks, aligned to the first network if requested."""
    named = [source.source or id(source) if isinstance(source, Zoo) else str(Path(source)) for source in settings.zoo]
    if len(set(named)) < len(named):
        raise ValueError(f"expected different zoos, got {', '.join(map(str, named))}; name each only once")
    zoos = [load_zoo(source, **settings.zoo_place) for source in settings.zoo]
    found = zoo_networks(
        zoos, columns=columns, groups=groups, splits=settings.splits, epoch=settings.epoch, limit=settings.limit
    )
    return zoos, found.aligned() if settings.align else found


def _describe(found: RegionMap, level: str, metric: Any, *, seed: int) -> dict[str, Any]:
    """Distances within and between the groups of a level, and how often the nearest region is correct."""
    labels = list(found.labels[level])
    counts = {name: labels.count(name) for name in dict.fromkeys(labels)}
    if found.runs == () and max(counts.values()) < 2:
        return {"counts": counts, "skipped": "every label has only one network"}
    distances = found.group_distances(level, metric=metric, generator=torch.Generator().manual_seed(seed))
    results: dict[str, Any] = {"counts": counts, "distances": distances.to_dict()}
    if min(counts.values()) < 2:
        return results
    centroid, neighbour = (found.classify(level, rule=rule) for rule in ("centroid", "neighbour"))
    return results | {"nearest_centroid": centroid.to_dict(), "nearest_neighbour": neighbour.to_dict()}


def _can_draw(maps: Mapping[str, RegionMap]) -> bool:
    return len(next(iter(maps.values())).points) >= MIN_POINTS


def _score_row(name: str, found: RegionScores) -> list[Any]:
    parts = (found.corners, found.line, found.hull, found.outside)
    means = [part.mean().item() if len(part) else None for part in parts]
    return [name, *means, found.better_than_outside("line"), found.better_than_outside("hull")]


__all__ = ["RegionsResult", "map_regions"]
