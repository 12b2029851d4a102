"""Describe a zoo: splits, architectures, tokens, accuracy and excluded runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict

import numpy as np

from hf_sane.analysis._zoo_plots import plot_accuracies
from hf_sane.records._errors import name_some
from hf_sane.records._run_files import ALIGNMENT_REPORT
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import as_arguments, setting
from hf_sane.workflows.results import Result, Table
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import FILE_NAME, IMPORTED, PROPERTIES_KEY
from hf_sane.zoo._settings import ZooSourceSettings
from hf_sane.zoo._writing import JOB

MAX_SHOWN = 10  # architectures and layouts to print
LATER = f" (not aligned when this report was written; hf-sane zoo align writes {ALIGNMENT_REPORT} beside it)"
OTHER_SCORES = ("psnr",)
SHOWN_PROPERTIES = ("test_accuracy", "validation_accuracy", "generalization_gap")


@dataclass(kw_only=True)
class NamedZooSettings(ZooSourceSettings):
    """Settings of workflows whose argument is a zoo."""

    zoo: str | Path | Zoo = setting("Zoo (folder or Hub repo id).", positional=True, formerly="--zoo")
    zoo_revision: str | None = setting(
        "Branch, tag or commit of the zoo on the Hub.", default=None, formerly="--revision"
    )


@dataclass(kw_only=True)
class ShowZooSettings(NamedZooSettings):
    """Settings of [`show_zoo`]."""


class TokensJson(TypedDict):
    """Tokens of networks of one layout.

    Attributes:
        tokens: Number of tokens of a network.
        token_dim: Number of scalars per token.
        token_layout: Name of the token layout.
    """

    tokens: int
    token_dim: int
    token_layout: str


class SplitJson(TypedDict):
    """A split of a zoo.

    Attributes:
        networks: Number of networks, at all epochs.
        runs: Number of training runs.
        epochs: Stored epochs.
        final: Smallest, median and largest value of properties at the last epoch; null if unknown.
    """

    networks: int
    runs: int
    epochs: list[int]
    final: dict[str, list[float] | None]


class ZooJson(TypedDict):
    """The JSON object that `--json` prints of a zoo.

    Attributes:
        name: Name of the zoo.
        architectures: Settings of each architecture.
        layouts: Tokens of each layout of networks.
        excluded: Runs that were left out, with the reason.
        is_aligned: Whether permutations that align the networks to a reference are stored.
        splits: Networks by split.
    """

    name: str
    architectures: dict[str, dict[str, Any]]
    layouts: dict[str, TokensJson]
    excluded: list[dict[str, Any]]
    is_aligned: bool
    splits: dict[str, SplitJson]


@dataclass(kw_only=True)
class ResultWithZoo(Result):
    """A result whose outcome is a zoo, which is what [`save`] saves.

    Attributes:
        zoo: The zoo.
    """

    JOB: ClassVar[str] = JOB

    zoo: Zoo

    def save(self, folder: str | Path) -> Self:
        """Save the zoo; see `Zoo.save` for errors."""
        self.zoo.save(folder)
        self.output = Path(folder)
        return self

    def draw(self, partial: Path) -> None:
        """Draw accuracies.png, if accuracies are known and matplotlib is installed."""
        _draw_accuracies(self.zoo, partial)


@dataclass(kw_only=True)
class ZooResult(ResultWithZoo):
    """A zoo and its description.

    Attributes:
        zoo: The zoo, which [`save`] saves.
    """

    JSON: ClassVar[Any] = ZooJson

    def to_dict(self) -> dict[str, Any]:
        """Splits, architectures, layouts and excluded runs."""
        return describe_zoo(self.zoo)

    def summary(self) -> list[str]:
        """Name, architectures and tokens."""
        return self._lines("" if self.zoo.alignment else " (not aligned)")

    def report_summary(self) -> list[str]:
        """The summary, in words that stay true when `hf-sane zoo align` aligns the zoo, which keeps its report."""
        return self._lines("" if self.zoo.alignment else LATER)

    def _lines(self, state: str) -> list[str]:
        facts = describe_zoo(self.zoo)
        lines = [f"zoo {facts['name']}{state}"]
        for settings in list(facts["architectures"].values())[:MAX_SHOWN]:
            lines.append(f"  architecture {settings['model_type']}: {describe_architecture(settings)}")
        for layout in list(facts["layouts"].values())[:MAX_SHOWN]:
            lines.append(f"  {layout['tokens']:,} {layout['token_layout']} tokens of {layout['token_dim']} weights")
        if (more := max(len(facts["architectures"]), len(facts["layouts"])) - MAX_SHOWN) > 0:
            lines.append(f"  and {more} more (--json lists all)")
        if columns := self.zoo.facts.data.get(PROPERTIES_KEY, {}).get("columns"):
            lines.append(f"  imported properties: {name_some(columns, MAX_SHOWN)}")
        return [*lines, f"  {len(facts['excluded'])} runs excluded"]

    def tables(self) -> list[Table]:
        """One row per split."""
        splits = describe_zoo(self.zoo)["splits"]
        found = {name: split["final"] | _final_scores(self.zoo.splits[name]) for name, split in splits.items()}
        known = dict.fromkeys(score for final in found.values() for score, q in final.items() if q is not None)
        names = [f"final {name.replace('_', ' ')}" for name in known]
        rows = []
        for name, split in splits.items():
            spreads = [
                None if (q := found[name].get(score)) is None else f"{q[0]:.3f} / {q[1]:.3f} / {q[2]:.3f}"
                for score in known
            ]
            rows.append([name, split["runs"], split["networks"], ",".join(map(str, split["epochs"])), *spreads])
        header = ("split", "runs", "networks", "epochs", *names)
        return [Table(header, rows, caption="(final: smallest / median / largest)" if names else "")]

    def details(self) -> list[Table]:
        """Runs that were left out, with the reason."""
        rows = [[run["run_id"], run.get("epoch"), run["reason"]] for run in self.zoo.facts.excluded]
        return [Table(("excluded run", "epoch", "reason"), rows)] if rows else []


def load_zoo(source: str | Path | Zoo, config: str | None = None, *, revision: str | None = None) -> Zoo:
    """Open a zoo from a folder or the Hub; return an open zoo unchanged.

    ```python
    zoo = hf_sane.load_zoo("org/zoo")
    ```

    Args:
        source: Folder, or repo id of a dataset, `owner/name` or `owner/name@revision`.
        config: Name of the zoo, if there are several.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If the folder holds no zoo.
        ValueError: If `config` is unknown, or missing although there are several zoos.
        InvalidFileError: If the zoo is incomplete, or files were removed or changed.
    """
    return source if isinstance(source, Zoo) else Zoo.load(source, config, revision=revision)


def open_zoos(
    sources: Sequence[str | Path | Zoo] | Mapping[str, str | Path | Zoo],
    config: str | None = None,
    *,
    revision: str | None = None,
) -> dict[str, Zoo]:
    """Open zoos, by the names that records use for them; `FOLDER:CONFIG` selects one of several in a folder.

    Raises:
        ValueError: If a zoo is given twice.
    """
    if isinstance(sources, Mapping):
        return {label: load_zoo(source, config, revision=revision) for label, source in sources.items()}
    opened: dict[str, Zoo] = {}
    for source in sources:
        if isinstance(source, Zoo):
            label, zoo = source.source or source.facts.name, source
        else:
            place, named = split_config(str(source))
            part = named or config
            label = place if part is None else f"{place}:{part}"
            zoo = opened[label] if label in opened else Zoo.load(place, part, revision=revision)
        if label in opened:
            raise ValueError(
                f"expected different zoos, got {label} twice; name zoos of the same folder as FOLDER:CONFIG"
            )
        opened[label] = zoo
    return opened


def split_config(source: str) -> tuple[str, str | None]:
    """Split `SOURCE:CONFIG` into folder or repo id and configuration; an existing path is not split."""
    place, colon, config = source.rpartition(":")
    is_path = Path(source).exists() or "/" in config or "\\" in config
    return (source, None) if is_path or not place or not colon or not config else (place, config)


def is_zoo(source: object) -> bool:
    """Whether a source is a zoo or the folder of one."""
    return isinstance(source, Zoo) or (isinstance(source, str | Path) and Path(source, FILE_NAME).is_file())


def show_zoo(zoo: str | Path | Zoo, **options: Any) -> ZooResult:
    """Describe a zoo.

    Args:
        zoo: A zoo, its folder or its Hub repo id.
        **options: Other fields of [`ShowZooSettings`].
    """
    return run_show_zoo(ShowZooSettings(zoo=zoo, **options))


def run_show_zoo(settings: ShowZooSettings) -> ZooResult:
    """Show the splits, architectures, tokens, accuracy and excluded runs of a zoo."""
    record = RunRecord.start(arguments=as_arguments(settings))
    zoo = load_zoo(settings.zoo, **settings.zoo_place)
    return ZooResult(record=record.finish({}), zoo=zoo)


def describe_zoo(zoo: Zoo) -> dict[str, Any]:
    """Facts about a zoo, in a form that JSON supports."""
    splits: dict[str, Any] = {}
    for name, split in zoo.splits.items():
        final = split.final_epochs()
        splits[name] = {
            "networks": len(split),
            "runs": len(final),
            "epochs": [epoch for epoch in sorted(set(split.column("epoch").tolist())) if epoch == epoch],
            "final": {column: _spread(final.column(column)) for column in SHOWN_PROPERTIES},
        }
    return {
        "name": zoo.facts.name,
        "architectures": dict(zoo.facts.architectures),
        "layouts": {
            key: {"tokens": layout.num_tokens, "token_dim": layout.token_dim, "token_layout": layout.token_layout}
            for key, layout in zoo.facts.parsed_layouts.items()
        },
        "excluded": list(zoo.facts.excluded),
        "is_aligned": zoo.alignment is not None,
        "splits": splits,
    }


def _final_scores(split: ZooSplit) -> dict[str, list[float] | None]:
    """Spread of scores of networks that do not classify."""
    final = split.final_epochs()
    return {name: _spread(final.column(name)) for name in OTHER_SCORES if name in split.table.scalar_columns}


def _draw_accuracies(zoo: Zoo, partial: Path) -> None:
    """Draw the accuracies of a zoo as accuracies.png into a folder, if they are known and matplotlib is installed."""
    known = {}
    for name, split in zoo.splits.items():
        accuracy = split.column(SHOWN_PROPERTIES[0])
        if (is_known := np.isfinite(accuracy)).any():
            final = split.final_epochs().column(SHOWN_PROPERTIES[0])
            known[name] = final, split.column("epoch")[is_known], accuracy[is_known]
    if known and find_spec("matplotlib") is not None:
        plot_accuracies(known, partial / "accuracies.png")


def describe_architecture(settings: Mapping[str, Any]) -> str:
    """Settings of an architecture in one line; for an imported architecture, its name in the repository."""
    if settings["model_type"] == IMPORTED:
        config = settings["config"]
        return ", ".join(map(str, config.get("architectures") or [config.get("model_type", "no configuration")]))
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "model_type")


def _spread(values: np.ndarray) -> list[float] | None:
    """Smallest, median and largest of the known values."""
    known = values[np.isfinite(values)]
    return np.quantile(known, (0, 0.5, 1)).tolist() if len(known) else None


__all__ = ["ZooResult", "load_zoo", "show_zoo"]
