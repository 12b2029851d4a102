"""The demo's report: its goals, measurements and baselines as tables, as JSON and as a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_sane.analysis._region_plots import plot_properties
from hf_sane.cards._rendering import render
from hf_sane.cards._tables import fact_text, markdown_table
from hf_sane.records._escaping import Markup
from hf_sane.records._files import write_atomically
from hf_sane.workflows.compare import comparison_table
from hf_sane.workflows.demo.plots import plot_finetuning, plot_overview
from hf_sane.workflows.results import Result, Table

LINEAR = ("linear_r2", "linear_accuracy_reconstructed")  # of the linear code
PROPERTY_TITLES = {
    "test_accuracy": "test accuracy",
    "epoch": "epoch",
    "generalization_gap": "generalisation gap",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal of the demo: the claim, the target, and the result (`None` or NaN if undefined)."""

    name: str
    wanted: float | None
    got: float | None
    strict: bool = False

    @property
    def reached(self) -> bool:
        """Whether `got` is at least `wanted` (greater, if `strict`); an undefined result does not reach its goal."""
        if self.got is None or self.wanted is None:  # NaN, as stored in JSON
            return False
        return self.got > self.wanted if self.strict else self.got >= self.wanted


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Compare the demo's results with its goals.

    Each goal compares two results of the same run, or a share with a generous bound, so that it holds on any
    processor: rounding differs between processors, which moves results by a few hundredths.

    Args:
        results: The `results` part of the demo's run record.

    Returns:
        One `Goal` per claim, in pipeline order.
    """
    reconstruction, sampling = results["reconstruction"], results["sampling"]
    start, first = sampling["epoch_0"], sampling["epoch_1"]
    found = [Goal("reconstruction R2 of test networks", 0.90, results["reconstruction_r2"])]
    found += [
        Goal(f"{name}: accuracy kept by reconstructed test networks", 0.90, part["accuracy_kept"])
        for name, part in reconstruction.items()
    ]
    for name, title in PROPERTY_TITLES.items():
        row = results["probe"][name]
        found.append(Goal(f"{title}: best SANE pooling against s(W), R2", row["layer_statistics"], row["sane_best"]))
        found.append(Goal(f"{title}: best SANE pooling against W, R2", row["weights"], row["sane_best"], strict=True))
    best = start["sane_subsampled"]
    found += [
        Goal("sampled, epoch 0: 0.85 of the anchors' accuracy", 0.85 * start["anchors"], best),
        Goal("sampled, epoch 0: above the anchor average", start["anchor_average"], best, strict=True),
        Goal("sampled, epoch 0: above anchor + noise at equal distance", start["anchor_noise"], best, strict=True),
        Goal(
            "sampled, epoch 0: above anchor + noise at equal distance, selected alike",
            start["anchor_noise_selected"],
            best,
            strict=True,
        ),
        Goal("sampled, epoch 1: above training from scratch", first["scratch"], first["sane_subsampled"], strict=True),
    ]
    return found


def _shown(value: float | None) -> str:
    return fact_text(math.nan if value is None else value)


def goals_table(found: Sequence[Goal]) -> Table:
    """Every goal: its target, the result, and whether it was reached."""
    rows = [
        [goal.name, f"{'>' if goal.strict else '>='} {_shown(goal.wanted)}", _shown(goal.got), goal.reached]
        for goal in found
    ]
    return Table(("goal", "wanted", "got", "reached"), rows, title="Goals")


def probe_table(details: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """One row per embedding: R2 and Kendall tau on test networks for each property."""
    header = ["embedding"] + [f"{PROPERTY_TITLES[p]} {m}" for p in details for m in ("R2", "tau")]
    names = list(next(iter(details.values())))
    rows = [[n] + [details[p][n][m] for p in details for m in ("r2", "kendall_tau")] for n in names]
    return Table(header, rows, title="Properties predicted from embeddings")


def sampling_table(sampling: Mapping[str, Any]) -> Table:
    """One row per method: accuracy at the reported epochs, and distances."""
    return replace(comparison_table(sampling), title="Networks generated without training")


def short_table(details: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """R2 on test networks, for the rows that the record lists."""
    rows = ("weights", "layer_statistics", "sane_mean", "sane_best")
    return {p: {name: row[name]["r2"] for name in rows} for p, row in details.items()}


def verdict(found: Sequence[Goal]) -> str:
    """Say whether all goals were reached, and otherwise which were not."""
    missed = [goal for goal in found if not goal.reached]
    if not missed:
        return "Every goal was reached."
    shown = (f"{goal.name} ({_shown(goal.got)}, wanted {_shown(goal.wanted)})" for goal in missed)
    return f"Not reached: {'; '.join(shown)}."


@dataclass(kw_only=True)
class DemoResult(Result):
    """Results of the demo; its record is `report.json`, with the results at the top level.

    Attributes:
        map: Coordinates `[M, 2]` of the test networks, and their properties by title.
        curves: Test accuracy by method, epoch and network.
    """

    JSON: ClassVar[Any] = dict[str, Any]
    JOB: ClassVar[str] = "demo"

    map: tuple[np.ndarray, Mapping[str, Any]] | None = None
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def summary(self) -> list[str]:
        """Whether the goals were reached."""
        return [verdict(goals(self.to_dict()))]

    def tables(self) -> list[Table]:
        """Goals, probes, and networks generated without training."""
        report = self.to_dict()
        return [
            goals_table(goals(report)),
            probe_table(report["probe_details"]),
            sampling_table(report["sampling"]),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        content = self.record.to_dict()
        return content | content.pop("results")

    def draw(self, partial: Path) -> None:
        """Draw the overview, the map of embeddings and the curves of fine-tuning."""
        if self.map is not None:
            plot_properties(*self.map, partial / "embedding_map.png")
            if self.curves:
                points, (accuracies, *_) = self.map[0], self.map[1].values()
                plot_overview(points, accuracies, self.curves, partial / "overview.png")
        if self.curves:
            plot_finetuning(self.curves, partial / "finetuning.png")

    def write(self, partial: Path) -> None:
        """Write `report.json`, `report.md`, and the tables of probes and sampled networks."""
        report = self.to_dict()
        pages = {
            "report.json": json.dumps(report, indent=2, allow_nan=False) + "\n",
            "probe_table.md": to_markdown(probe_table(report["probe_details"])) + "\n",
            "sampling_table.md": to_markdown(sampling_table(report["sampling"])) + "\n",
            "report.md": render_report(report),
        }
        for name, page in pages.items():
            with write_atomically(partial / name) as file:
                file.write_text(page, encoding="utf-8")


def render_report(record: Mapping[str, Any]) -> str:
    """Render the demo's page from its run record.

    Args:
        record: The JSON of the run record, as saved.

    Returns:
        Markdown that links only to files in the same folder.
    """
    found = goals(record)
    zoos = [
        [name, *(part[column] for column in ("networks", "excluded", "accuracy", "checkpoints"))]
        for name, part in record["zoos"].items()
    ]
    reconstruction = [
        [name, *(part.get(column) for column in ("r2", "accuracy_original", "accuracy_reconstructed", *LINEAR))]
        for name, part in record["reconstruction"].items()
    ]
    zoo_header = ("zoo", "networks", "left out", "mean final test accuracy", "checkpoints each")
    return render(
        "demo_report.md",
        record=record,
        verdict=verdict(found),
        goals=to_markdown(goals_table(found)),
        zoos=to_markdown(Table(zoo_header, zoos)),
        reconstruction=to_markdown(
            Table(
                (
                    *("zoo (test networks)", "R2", "accuracy before", "accuracy after"),
                    *("linear code: R2", "linear code: accuracy after"),
                ),
                reconstruction,
            )
        ),
        probes=to_markdown(probe_table(record["probe_details"])),
        sampling=to_markdown(sampling_table(record["sampling"])),
    )


def to_markdown(table: Table) -> Markup:
    """A table of numbers as Markdown, with missed goals in bold."""
    rows = [["**no**" if cell is False else fact_text(cell) for cell in row] for row in table.rows]
    return markdown_table(table.header, rows, numbers=True)


__all__: list[str] = []  # part of the command
