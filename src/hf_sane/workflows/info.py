"""Inspect a checkpoint's layers and tokens from its header."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

from torch import Tensor, nn

from hf_sane.core._layout import Layout
from hf_sane.core._layout_facts import describe_layout
from hf_sane.core._token_settings import TokenSettings
from hf_sane.records._errors import name_some, shorten
from hf_sane.records._failures import describe_error
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.records._sources import HubRepo, parse_source
from hf_sane.screening._checkpoints import targets_in
from hf_sane.tokenization._checkpoints import CheckpointSource, Source, load_state_dict, weights_path
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor, not_finite
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.workflows.folders import networks_in
from hf_sane.workflows.results import FINDING, Result, Table
from hf_sane.workflows.sane import SANE
from hf_sane.workflows.schemas import Fields
from hf_sane.workflows.shared import CheckpointSettings, SaneSettings
from hf_sane.workflows.show_zoo import is_zoo

MAX_UNSURE = 20  # layers to list one by one
COLUMNS = ("name", "kind", "shape", "dtype", "tokens", "padding")
READ_BYTES = 2**26  # size of files whose values are read, too
NOT_READ = "read from headers only, so NaN values would not be found; `hf-sane scan` reads the values"
FINITE = "all values are finite"


@dataclass(kw_only=True)
class InfoSettings(CheckpointSettings, TokenSettings, SaneSettings):
    """Settings of [`info`]."""

    checkpoint: Source = setting(
        "Checkpoint: safetensors file, folder, weights-only pickle, or Hub repo id; or a folder of checkpoints.",
        positional=True,
    )
    sane: str | SANE | SANEFeatureExtractor | None = setting(
        "SANE (folder or Hub repo id) whose weight tokenizer replaces the three options on tokens.",
        default=None,
        formerly="--extractor",
    )
    token_dim: int = setting("Scalars per token.", default=289, least=1)


class LayerJson(TypedDict):
    """A layer.

    Attributes:
        name: Name of the layer.
        kind: Kind of the layer.
        possible_kinds: Kinds that its names and shapes allow.
        shape: Shapes of its tensors.
        dtype: Type of its weights.
        tokens: Number of its tokens.
        padding: Share of padding in these tokens.
    """

    name: str
    kind: str
    possible_kinds: list[str]
    shape: list[list[int]]
    dtype: str
    tokens: int
    padding: float


class TotalJson(TypedDict):
    """Totals of a network.

    Attributes:
        layers: Number of layers.
        weights: Number of weights that become tokens.
        tokens: Number of tokens.
        token_dim: Number of scalars per token.
        padding: Share of padding in the tokens.
        weight_bytes: Size of the weights in bytes.
        token_bytes: Size of the tokens in float32, in bytes.
        encoding_bytes: Size of the tokens with masks and positions, in bytes.
        template_tensors: Number of tensors that are stored unchanged.
        template_bytes: Size of these tensors in bytes.
        shared_tensors: Number of tensors that are stored once under several names.
        uncertain_kinds: Number of layers whose kind is uncertain.
    """

    layers: int
    weights: int
    tokens: int
    token_dim: int
    padding: float
    weight_bytes: int
    token_bytes: int
    encoding_bytes: int
    template_tensors: int
    template_bytes: int
    shared_tensors: int
    uncertain_kinds: int


class InfoJson(TypedDict):
    """The JSON object that `--json` prints of one checkpoint.

    Attributes:
        layers: Layers of the checkpoint.
        kinds: Numbers of layers, weights and tokens, and the share of padding, of each kind of layer.
        template: Numbers of tensors and bytes that are stored unchanged, by type.
        total: Totals of the checkpoint.
        values_read: Whether values were read, as in small files, or only the header.
        not_finite: Number of NaN and infinite values by tensor; null if values were not read.
    """

    layers: list[LayerJson]
    kinds: dict[str, dict[str, float]]
    template: dict[str, dict[str, int]]
    total: TotalJson
    values_read: bool
    not_finite: dict[str, int] | None


@dataclass(kw_only=True)
class InfoResult(Result):
    """Layers and tokens of a checkpoint.

    Attributes:
        layout: Layers, tensors, and how they are arranged in tokens.
        facts: Description from [`describe_layout`]; `not_finite` counts NaN and infinite values by tensor; it is
            `None` if values were not read.
    """

    JSON: ClassVar[Any] = InfoJson

    layout: Layout
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 if there are NaN or infinite values."""
        return FINDING if self.facts["not_finite"] else 0

    def to_dict(self) -> dict[str, Any]:
        """Layers, kinds, tensors stored unchanged, and totals."""
        return dict(self.facts)

    def tables(self) -> list[Table]:
        """Layers, kinds, totals, tensors stored unchanged, and layers of uncertain kind."""
        facts = self.facts
        layers = [[_shown(layer[column]) for column in COLUMNS] for layer in facts["layers"]]
        kinds = [[name, *map(_shown, found.values())] for name, found in facts["kinds"].items()]
        total = [[name.replace("_", " "), _shown(value)] for name, value in facts["total"].items()]
        carried = [
            f"stored unchanged, not as tokens: {_tensors(found['tensors'], dtype)}, {found['bytes']:,} bytes"
            for dtype, found in facts["template"].items()
        ]
        tables = [
            Table(COLUMNS, layers),
            Table(("kind", "layers", "weights", "tokens", "padding"), kinds),
            Table(("total", ""), total, caption="\n".join([_values(facts["not_finite"]), *carried])),
        ]
        if unsure := [layer for layer in facts["layers"] if len(layer["possible_kinds"]) > 1]:
            title = f"{len(unsure)} layers whose kind is uncertain (tokens do not depend on it):"
            lines = [f"  {shorten(layer['name'])}: {' or '.join(layer['possible_kinds'])}" for layer in unsure]
            more = [f"  and {len(unsure) - MAX_UNSURE} more: see --json"] if len(unsure) > MAX_UNSURE else []
            tables.append(Table(title=title, caption="\n".join([*lines[:MAX_UNSURE], *more])))
        return tables


class UnreadJson(TypedDict):
    """A file that was not read.

    Attributes:
        reason: Reason.
    """

    reason: str


class FolderInfoJson(TypedDict):
    """The JSON object that `--json` prints of a folder of checkpoints.

    Attributes:
        checkpoints: Totals by path, or why there are none.
    """

    checkpoints: dict[str, Annotated[TotalJson, Fields(not_finite=dict[str, int] | None)] | UnreadJson]


@dataclass(kw_only=True)
class FolderInfoResult(Result):
    """The checkpoints of a folder.

    Attributes:
        checkpoints: For each path, the totals of a checkpoint, or why it was not read.
    """

    JSON: ClassVar[Any] = FolderInfoJson

    checkpoints: dict[str, dict[str, Any]]

    @property
    def exit_code(self) -> int:
        """1 if there are NaN or infinite values in one of them."""
        return FINDING if any(found.get("not_finite") for found in self.checkpoints.values()) else 0

    def to_dict(self) -> dict[str, Any]:
        """Totals by path."""
        return {"checkpoints": self.checkpoints}

    def tables(self) -> list[Table]:
        """A row for each file, and for each folder that is one checkpoint."""
        columns = ("layers", "weights", "tokens")
        rows = [
            [path, *(found.get(column) for column in columns), found.get("reason") or _values(found["not_finite"])]
            for path, found in self.checkpoints.items()
        ]
        return [Table(("checkpoint", *columns, ""), rows)]


def info(checkpoint: Source, **options: Any) -> InfoResult | FolderInfoResult:
    """Describe the layers, tokens and memory of a network, or of each network in a folder.

    ```python
    print(hf_sane.info("org/some-network", token_dim=289))
    ```

    Args:
        checkpoint: A module, state dict, path or Hub repo id. Only the headers of files are read, and the values of
            small files, to find NaN.
        **options: Other fields of [`InfoSettings`].
    """
    return run_info(InfoSettings(checkpoint=checkpoint, **options))


def run_info(settings: InfoSettings) -> InfoResult | FolderInfoResult:
    """Show the layers, tokens and memory of a checkpoint from its headers, and find NaN values in small ones.

    For a folder of checkpoints, every file gets a row. The exit code is 1 if there are NaN or infinite values.
    """
    record = RunRecord.start(arguments=as_arguments(settings))
    extractor = _extractor(settings)
    if inside := _checkpoints_in(settings):
        found = {str(path): _outline(extractor, settings.place(path)) for path in inside}
        return FolderInfoResult(record=record.finish({}), checkpoints=found)
    layout, facts = _describe(extractor, settings.selected(settings.checkpoint))
    return InfoResult(record=record.finish({}), layout=layout, facts=facts)


def _checkpoints_in(settings: InfoSettings) -> list[Path]:
    """The checkpoints in a folder of several; empty for any other source."""
    source = settings.checkpoint
    if not isinstance(source, str | Path) or is_zoo(source):
        return []
    place = parse_source(source, revision=settings.revision)
    if not isinstance(place, Path) or not place.is_dir():
        return []
    chosen = settings.subfolder is not None or settings.variant is not None
    inside = [*map(Path, networks_in(place, settings))] if chosen else list(targets_in(place))
    return [] if inside == [place] else inside


def _extractor(settings: InfoSettings) -> SANEFeatureExtractor:
    given = settings.sane
    if given is None:
        return SANEFeatureExtractor(
            settings.token_dim, settings.token_layout, settings.batch_norm, normalization="none"
        )
    if isinstance(given, str):
        return SANEFeatureExtractor.load(given, **settings.sane_place)
    return given.extractor if isinstance(given, SANE) else given


def _describe(extractor: SANEFeatureExtractor, source: Any) -> tuple[Layout, dict[str, Any]]:
    """Layout and description of one network."""
    tensors = read_meta_state_dict(source) if isinstance(source, CheckpointSource) else source
    layout = extractor.layout(tensors)
    counts = _not_finite(source, layout)
    return layout, describe_layout(layout) | {"values_read": counts is not None, "not_finite": counts}


def _outline(extractor: SANEFeatureExtractor, source: CheckpointSource) -> dict[str, Any]:
    """Totals of a checkpoint, or why it was not read."""
    try:
        layout, facts = _describe(extractor, source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return {"reason": describe_error(error)}
    return {"layers": len(layout.layers)} | facts["total"] | {"not_finite": facts["not_finite"]}


def _not_finite(source: Any, layout: Layout) -> dict[str, int] | None:
    """NaN and infinite values by tensor; `None` for files that are large or on the Hub."""
    if isinstance(source, CheckpointSource):
        is_small = 4 * layout.num_weights <= READ_BYTES
        if not is_small or isinstance(parse_source(source.source, revision=source.revision), HubRepo):
            return None
        source = load_state_dict(weights_path(source), key=source.key)
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    values = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if any(x.is_meta for x in values.values()):
        return None
    return {name: count for name, x in values.items() if (count := not_finite(x))}


def _values(counts: dict[str, int] | None) -> str:
    """Number of values that are not finite, if they were read."""
    if not counts:
        return NOT_READ if counts is None else FINITE
    return f"NaN or infinite: {name_some([f'{count:,} in {name}' for name, count in counts.items()])}"


def _tensors(count: int, dtype: str) -> str:
    return f"{count} {dtype} {'tensor' if count == 1 else 'tensors'}"


def _shown(value: Any) -> Any:
    """A human-readable table cell: shapes as `16x3x3x3 + 16`, shares as percentages."""
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list):
        return " + ".join("x".join(map(str, shape)) or "scalar" for shape in value)
    return value


__all__ = ["FolderInfoResult", "InfoResult", "info"]
