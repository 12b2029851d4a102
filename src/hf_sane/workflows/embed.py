"""Embed each network of a zoo, or checkpoints on disk or on the Hub, as one vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict

import datasets
import numpy as np
import torch

from hf_sane.analysis._projection import MIN_POINTS, project
from hf_sane.analysis._region_plots import plot_properties
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._poolings import POOLINGS, choose_poolings
from hf_sane.probing._streaming import embed_checkpoint
from hf_sane.records._errors import describe_skipped
from hf_sane.records._failures import describe_error, expected_errors
from hf_sane.records._processes import divided
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.probe import POOLINGS_HELP
from hf_sane.workflows.results import Result, Table, joined_output
from hf_sane.workflows.sane import SANE, GivenSaneSettings, open_sane
from hf_sane.workflows.shared import (
    CodecSettings,
    PlotSettings,
    WeightsSettings,
    WorkerSettings,
    ZooAlignmentSettings,
)
from hf_sane.workflows.show_zoo import is_zoo, load_zoo
from hf_sane.zoo._alignment import layout_blocks, read_block
from hf_sane.zoo._column_names import plain_name
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._settings import ZooSourceSettings

COLORS = ("test_accuracy", "validation_accuracy", "epoch", "weights")  # properties that can colour the map


@dataclass(kw_only=True)
class EmbedSettings(
    WeightsSettings,
    CodecSettings,
    GivenSaneSettings,
    ZooSourceSettings,
    ZooAlignmentSettings,
    WorkerSettings,
    PlotSettings,
):
    """Settings of [`embed`]."""

    output: Path | None = setting("New folder for one parquet file per split, a map and a run record.", short="-o")
    checkpoints: list[Source] = setting(
        "Checkpoints: files, folders of one network or of several files or subfolders with networks, or Hub repo ids.",
        factory=list,
        positional=True,
    )
    zoo: str | Path | Zoo | None = setting("Zoo (folder or Hub repo id), instead of checkpoints.", default=None)
    poolings: list[str] = setting(
        f"{POOLINGS_HELP} By default mean and layer_mean_std, or concat for latents of whole networks.",
        factory=list,
        choices=lambda: ("all", *POOLINGS),
    )
    max_memory_bytes: int | None = setting(
        "Stream checkpoints with more bytes of weights than this; 256 MiB by default.", default=None
    )
    color: str | None = setting(
        "Property that colours the map; by default the first known of accuracy, epoch and size.",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.checkpoints) == (self.zoo is not None):
            given = "both" if self.zoo else "neither"
            raise ValueError(f"expected checkpoints or a zoo (--zoo), got {given}; name one of them")


class EmbedJson(TypedDict):
    """The JSON object that `--json` prints; the embeddings are in the output folder.

    Attributes:
        networks: Number of embedded networks, or their number in each split of a zoo.
        tokens: Number of tokens of all checkpoints.
        skipped: Checkpoints that could not be embedded, with the reason.
    """

    networks: int | dict[str, int]
    tokens: NotRequired[int]
    skipped: NotRequired[dict[str, str]]


@dataclass(kw_only=True)
class EmbedResult(Result):
    """Embeddings of networks.

    Attributes:
        splits: `{split: {column: [M]}}`: properties and embeddings of all networks; checkpoints form the split
            `train`.
        skipped: Checkpoints that could not be embedded, with the reason.
        map: Title, coordinates `[M, 2]` and colours `[M]` of the map, if there is one.
    """

    JSON: ClassVar[Any] = EmbedJson
    JOB: ClassVar[str] = "embedding"

    splits: Mapping[str, Mapping[str, Sequence[Any]]]
    skipped: dict[str, str] = field(default_factory=dict)
    map: tuple[str, np.ndarray, list[float]] | None = None

    def tables(self) -> list[Table]:
        """Number of networks, and length of their embeddings."""
        names = self.record.arguments["poolings"]
        lengths = [f"{name} (scalars)" for name in names]
        if self.record.arguments["zoo"] is None:
            found = self.splits["train"]
            columns = [found["checkpoint"], found["weights"], found["tokens"]]
            rows = zip(*columns, *([len(vector) for vector in found[name]] for name in names), strict=True)
            return [Table(("checkpoint", "weights", "tokens", *lengths), list(map(list, rows)))]
        rows_of_splits = [
            [split, len(found[names[0]]), *(_lengths(found[name]) for name in names)]
            for split, found in self.splits.items()
        ]
        return [Table(("split", "networks", *lengths), rows_of_splits)]

    def write(self, partial: Path) -> None:
        """Write one parquet file per split, for `datasets.load_dataset(folder)`."""
        for name, columns in self.splits.items():
            datasets.Dataset.from_dict(dict(columns)).to_parquet(partial / f"{name}.parquet")
        super().write(partial)

    def draw(self, partial: Path) -> None:
        """Draw map.png."""
        if self.map is not None:
            title, points, values = self.map
            plot_properties(points, {title: values}, partial / "map.png")


def embed(networks: Source | Zoo | Sequence[Source], sane: str | Path | SANE, **options: Any) -> EmbedResult:
    """Embed the networks of a zoo, or checkpoints, with several poolings at once.

    For one vector per network, as a tensor, see `SANE.embed`.

    Args:
        networks: A module, state dict, path (also of a folder of several networks) or Hub repo id; a list of these; a
            zoo or its folder.
        sane: A SANE, its folder or its Hub repo id.
        **options: Other fields of [`EmbedSettings`].
    """
    chosen: dict[str, Any] = {"zoo" if is_zoo(networks) else "checkpoints": networks}
    return run_embed(EmbedSettings(sane=sane, **{"output": None, **chosen, **options}))


def run_embed(settings: EmbedSettings) -> EmbedResult:
    """Embed all networks of a zoo, or checkpoints; `datasets.load_dataset(OUTPUT)` reads the result.

    Checkpoints may be larger than memory: large safetensors files are read a few megabytes at a time, which all
    poolings support except concat and those that decode. map.png shows the networks on two principal components of
    their embeddings, coloured by a property (--no-plots leaves it out).
    """
    if settings.output is not None:
        settings.check_matplotlib()
    with joined_output(settings.output, EmbedResult.JOB) as output:
        record = RunRecord.start(arguments=as_arguments(settings))
        zoo = None if settings.zoo is None else load_zoo(settings.zoo, **settings.zoo_place)
        sane = open_sane(settings.sane, **settings.sane_place)
        by_token = sane.model.config.num_latents is None
        names = settings.poolings or (["mean", "layer_mean_std"] if by_token else ["concat"])
        names = record.arguments["poolings"] = choose_poolings(names, sane.model)
        if zoo is None:
            result = _embed_checkpoints(sane, settings, names, record)
        else:
            result = _embed_zoo(sane, zoo, settings, names, record)
        if settings.plots:
            try:
                result.map = _draw(result.splits, names, settings.color)
            except UndrawableError as reason:
                result.notes.append(f"no map: {reason}")
        return output.write(result)


class UndrawableError(ValueError):
    """The embeddings cannot be drawn as a map."""


def _draw(
    splits: Mapping[str, Mapping[str, Sequence[Any]]], poolings: Sequence[str], color: str | None
) -> tuple[str, np.ndarray, list[float]]:
    """Two principal components of all embeddings, and the property that colours them.

    Raises:
        UndrawableError: If there are fewer than four networks, or embeddings have different lengths.
        ValueError: If the requested property is unknown or not a number.
    """
    columns = {
        name: [value for split in splits.values() for value in split[name]] for name in next(iter(splits.values()))
    }
    known = {name: values for name, values in columns.items() if name not in poolings and _tell_apart(values)}
    if color is not None and color not in known:
        color = plain_name(color) or color  # as columns of imported zoos are named
    if color is not None and color not in known:
        raise ValueError(
            f"expected a property with several values to colour by, among {', '.join(known)}, got {color!r}"
        )
    pooling = next((name for name in poolings if len({len(vector or ()) for vector in columns[name]}) == 1), None)
    if pooling is None:
        raise UndrawableError("the networks have embeddings of different lengths; use --poolings mean")
    vectors = torch.tensor(columns[pooling], dtype=torch.float64)
    if len(vectors) < MIN_POINTS or vectors.shape[1] < 2 or not known:
        raise UndrawableError(f"it needs {MIN_POINTS} networks with different properties")
    scale = vectors.std(dim=0)
    points = project((vectors - vectors.mean(dim=0)) / torch.where(scale > 0, scale, 1.0), "pca")
    chosen = color or next((name for name in COLORS if name in known), next(iter(known)))
    return f"{pooling} by {chosen}", points.numpy(), known[chosen]


def _tell_apart(values: Sequence[Any]) -> bool:
    """Whether these are numbers with at least two different values."""
    return all(isinstance(value, Real) for value in values) and len({v for v in values if v == v}) > 1


def _embed_zoo(sane: SANE, zoo: Zoo, settings: EmbedSettings, names: list[Any], record: RunRecord) -> EmbedResult:
    aligned = zoo.alignment is not None if settings.align is None else settings.align
    record.arguments["aligned"] = aligned

    def work(part: tuple[str, np.ndarray]) -> dict[str, Any]:
        layout, tokens = read_block(zoo.splits[part[0]], part[1], aligned=aligned)
        found = embed_networks(sane.model, sane.extractor, layout, tokens, poolings=names, **settings.windows)
        return {name: values.tolist() for name, values in found.items()}

    parts = [
        (name, block) for name, split in zoo.splits.items() for block in layout_blocks(split, settings.batch_size)
    ]
    splits: dict[str, dict[str, Any]] = {}
    for split_name, split in zoo.splits.items():
        columns = {name: split.column(name) for name in split.table.scalar_columns if name != "layout"}
        splits[split_name] = columns | {name: [None] * len(split) for name in names}
    embedded = divided(work, parts, workers=settings.workers, desc="embedding", unit="batch")
    for (split_name, block), found in zip(parts, embedded, strict=True):
        for name, values in found.items():
            for index, value in zip(block.tolist(), values, strict=True):
                splits[split_name][name][index] = value
    record.finish({"networks": {name: len(split) for name, split in zoo.splits.items()}})
    return EmbedResult(record=record, splits=splits)


def _embed_checkpoints(sane: SANE, settings: EmbedSettings, names: list[Any], record: RunRecord) -> EmbedResult:
    """Embed checkpoints, one row each; report and skip those that cannot be embedded, unless all fail."""
    options = settings.windows
    if settings.max_memory_bytes is not None:
        options["max_memory_bytes"] = settings.max_memory_bytes

    def embed_one(given: Source) -> dict[str, Any]:
        source = CheckpointSource(given, **settings.weights) if isinstance(given, str | Path) else given
        layout, found = embed_checkpoint(sane.model, sane.extractor, source, poolings=names, **options)
        facts = {"weights": layout.num_weights, "tokens": layout.num_tokens}
        return facts | {name: vector.tolist() for name, vector in found.items()}

    def work(given: Source) -> dict[str, Any] | str:
        try:
            return embed_one(given)
        except expected_errors() as error:
            return describe_error(error)

    columns: dict[str, list[Any]] = {name: [] for name in ("checkpoint", "weights", "tokens", *names)}
    skipped: dict[str, str] = {}
    checkpoints = [found for given in settings.checkpoints for found in networks_in(given, settings, with_empty=True)]
    rows = divided(work, checkpoints, workers=settings.workers, desc="embedding", unit="checkpoint")
    for index, (given, row) in enumerate(zip(checkpoints, rows, strict=True)):
        checkpoint = str(given) if isinstance(given, str | Path | CheckpointSource) else f"network_{index}"
        if isinstance(row, str):
            skipped[checkpoint] = row
            continue
        for name, value in ({"checkpoint": checkpoint} | row).items():
            columns[name].append(value)
    if not columns["checkpoint"]:
        embed_one(checkpoints[-1])  # raises its error
    notes = [describe_skipped(*item) for item in skipped.items()]
    count = len(columns["checkpoint"])
    record.finish({"networks": count, "tokens": sum(columns["tokens"]), "skipped": skipped})
    return EmbedResult(record=record, notes=notes, splits={"train": columns}, skipped=skipped)


def _lengths(vectors: Sequence[Sequence[float] | None]) -> Any:
    """Length of the embeddings, as a number or a range."""
    found = sorted({len(vector or ()) for vector in vectors})
    return found[0] if len(found) == 1 else f"{found[0]}-{found[-1]}" if found else "-"


__all__ = ["EmbedResult", "embed"]
