"""Inspect a checkpoint's layers and tokens from its header."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_sane.core._layout import Layout
from hf_sane.core._layout_facts import describe_layout
from hf_sane.records._errors import shorten
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.workflows.results import Result, Table
from hf_sane.workflows.shared import SaneSettings, WeightsSettings

MAX_UNSURE = 20  # layers listed one by one
COLUMNS = ("name", "kind", "shape", "dtype", "tokens", "padding")
NOT_READ = "from headers only: values were not read, so NaN would not show; `hf-sane analyze` reads them"


@dataclass(kw_only=True)
class InfoSettings(WeightsSettings, SaneSettings):
    """Settings of [`info`]."""

    checkpoint: Source = setting("Safetensors file, folder, weights-only pickle, or Hub repo id.", positional=True)
    extractor: str | SANEFeatureExtractor | None = setting(
        "SANE folder or Hub repo id; its weight tokenizer replaces the next three options.", default=None
    )
    token_dim: int = setting("Scalars per token.", default=289, least=1)
    token_layout: Literal["rowwise", "dense"] = setting("How weights are arranged in tokens.", default="rowwise")
    batch_norm: Literal["tokens", "template"] = setting(
        "Whether BatchNorm tensors become tokens or are stored unchanged.", default="tokens"
    )
    revision: str | None = setting("Branch, tag or commit of the Hub repo.", default=None)


@dataclass(kw_only=True)
class InfoResult(Result):
    """Layers and tokens of a checkpoint.

    Attributes:
        layout: Layers and tensors, and the tokens that they are arranged in.
        facts: Description from [`describe_layout`].
    """

    layout: Layout
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Layers, kinds, tensors that are stored unchanged, and totals."""
        return dict(self.facts)

    def tables(self) -> list[Table]:
        """Layers, kinds, totals, tensors that are stored unchanged, and layers of uncertain kind."""
        facts = self.facts
        layers = [[_shown(layer[column]) for column in COLUMNS] for layer in facts["layers"]]
        kinds = [[name, *map(_shown, found.values())] for name, found in facts["kinds"].items()]
        total = [[name.replace("_", " "), _shown(value)] for name, value in facts["total"].items()]
        carried = [
            f"carried along, not tokens: {found['tensors']} tensors of {dtype}, {found['bytes']:,} bytes"
            for dtype, found in facts["template"].items()
        ]
        tables = [
            Table(COLUMNS, layers),
            Table(("kind", "layers", "weights", "tokens", "padding"), kinds),
            Table(("total", ""), total, caption="\n".join([NOT_READ, *carried])),
        ]
        if unsure := [layer for layer in facts["layers"] if len(layer["possible_kinds"]) > 1]:
            title = f"kind not certain from name and shape alone, {len(unsure)} layers (tokens do not depend on it):"
            lines = [f"  {shorten(layer['name'])}: {' or '.join(layer['possible_kinds'])}" for layer in unsure]
            more = [f"  and {len(unsure) - MAX_UNSURE} more: see --json"] if len(unsure) > MAX_UNSURE else []
            tables.append(Table(title=title, caption="\n".join([*lines[:MAX_UNSURE], *more])))
        return tables


def info(checkpoint: Source, **options: Any) -> InfoResult:
    """Describe the layers, tokens and memory of a network.

    ```python
    print(hf_sane.info("org/some-network", token_dim=289))
    ```

    Args:
        checkpoint: A module, state dict, path or Hub repo id; only the headers of files are read.
        **options: Other fields of [`InfoSettings`].
    """
    return run_info(InfoSettings(checkpoint=checkpoint, **options))


def run_info(settings: InfoSettings) -> InfoResult:
    """Show the layers, tokens and memory of a checkpoint from its headers; weights are neither read nor checked."""
    source: Any = settings.checkpoint
    record = RunRecord.start(arguments=as_arguments(settings))
    extractor = settings.extractor
    if extractor is None:
        extractor = SANEFeatureExtractor(
            settings.token_dim, settings.token_layout, settings.batch_norm, normalization="none"
        )
    elif isinstance(extractor, str):
        extractor = SANEFeatureExtractor.load(extractor, subfolder=settings.sane_subfolder)
    if isinstance(source, str | Path):
        source = read_meta_state_dict(
            CheckpointSource(source, settings.revision, settings.subfolder, settings.variant, settings.key)
        )
    layout = extractor.layout(source)
    return InfoResult(record=record.finish({}), layout=layout, facts=describe_layout(layout))


def _shown(value: Any) -> Any:
    """A human-readable cell: shapes as `16x3x3x3 + 16`, shares as percentages."""
    if isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, list):
        return " + ".join("x".join(map(str, shape)) or "scalar" for shape in value)
    return value


__all__ = ["InfoResult", "InfoSettings", "info"]
