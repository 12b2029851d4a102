"""Read facts about a network from its model card and the Hub, as typed columns of a zoo."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData, ModelInfo
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results
from yaml import YAMLError

from hf_sane.records._errors import InvalidFileError, reading, shorten
from hf_sane.zoo._column_names import plain_name
from hf_sane.zoo._records import METRIC_PREFIX

# A number, or "mean +/- spread" as in reinforcement learning. Percentages are ignored: 91% may mean 0.91 or 91.
NUMBER = re.compile(r"\s*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*(?:(?:\+/-|±).*)?", re.IGNORECASE)

MAX_CARD_BYTES = 2**20


@dataclass(frozen=True)
class CardFacts:
    """Facts about a repository that do not require its weights.

    Attributes:
        columns: Values of columns in `IMPORT_FEATURES`.
        base_models: Repositories that the network was made from.
        metrics: Metrics from the card, by column.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_info(cls, info: ModelInfo) -> "CardFacts":
        """Facts of a repository on the Hub."""
        facts = cls._from_data(info.card_data or ModelCardData())
        licenses = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        known = {
            "author": info.author or info.id.partition("/")[0],
            "license": facts.columns["license"] or (licenses[0] if licenses else None),
            "library_name": info.library_name or facts.columns["library_name"],
            "pipeline_tag": info.pipeline_tag or facts.columns["pipeline_tag"],
            "downloads": info.downloads,
            "likes": info.likes,
        }
        metrics = facts.metrics
        if not metrics and isinstance(info.model_index, list):
            metrics = read_metrics(model_index_to_eval_results(info.model_index)[1])
        return cls({**facts.columns, **known}, facts.base_models, metrics)

    @classmethod
    def from_file(cls, path: Path) -> "CardFacts":
        """Facts from a model card.

        Raises:
            InvalidFileError: If it is too large, or its front matter is not valid YAML.
        """
        remedy = "correct or remove the card"
        if (size := path.stat().st_size) > MAX_CARD_BYTES:
            raise InvalidFileError(
                path, expected=f"at most {MAX_CARD_BYTES:,} bytes of text", got=f"{size:,}", remedy=remedy
            )
        with reading(path, expected="a model card with YAML between --- lines", remedy=remedy, also=(YAMLError,)):
            return cls.from_readme(path.read_text(encoding="utf-8"))

    @classmethod
    def from_readme(cls, text: str) -> "CardFacts":
        """Facts from the text of a model card."""
        has_facts = REGEX_YAML_BLOCK.search(text) is not None  # without them, ModelCard logs a warning
        return cls._from_data(ModelCard(text, ignore_metadata_errors=True).data if has_facts else ModelCardData())

    @classmethod
    def _from_data(cls, data: CardData) -> "CardFacts":
        def text(name: str) -> str | None:
            value = data.get(name)
            joined = ", ".join(map(str, value)) if isinstance(value, list) else str(value) if value else ""
            return shorten(joined) or None

        bases = data.get("base_model") or ()
        license_name = text("license_name") if text("license") == "other" else None
        columns = {
            "base_model": text("base_model"),
            "license": license_name or text("license"),
            "library_name": text("library_name"),
            "pipeline_tag": text("pipeline_tag"),
        }
        names = tuple(str(base).strip() for base in (bases if isinstance(bases, list | tuple) else (bases,)))
        return cls(columns, names, read_metrics(data.get("eval_results") or []))


def read_metrics(results: list[EvalResult]) -> dict[str, float]:
    """Read a card's metrics as columns `metric_<metric>_<dataset>` (followed by configuration and split, if given).

    Values that are not finite numbers are left out; of several values for a column, the first is used.
    """
    found: dict[str, float] = {}
    for result in results:
        parts = (result.metric_type, result.dataset_type, result.dataset_config, result.dataset_split)
        name = METRIC_PREFIX + plain_name(" ".join(str(part) for part in parts if part))
        value = _number(result.metric_value)
        if value is not None:
            found.setdefault(name, value)
    return found


def _number(value: object) -> float | None:
    if isinstance(value, str) and (written := NUMBER.fullmatch(value)):
        value = float(written[1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
