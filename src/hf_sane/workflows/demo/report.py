"""Turn the demo's results into a page: what was measured, against what, and whether each goal was reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_sane.cards._rendering import render
from hf_sane.cards._tables import markdown_table
from hf_sane.records._escaping import Markup

PROPERTY_TITLES = {
    "test_accuracy": "test accuracy",
    "epoch": "epoch",
    "generalization_gap": "generalisation gap",
}
METHOD_TITLES = {
    "anchors": "anchors (trained networks)",
    "reconstructed_anchors": "anchors, encoded and decoded",
    "sane_kde": "SANE, KDE",
    "sane_subsampled": "SANE, subsampled",
    "sane_bootstrapped": "SANE, bootstrapped",
    "sane_prior": "SANE, from the prior",
    "anchor_noise": "anchor + noise, same distance",
    "anchor_noise_selected": "anchor + noise, same distance, selected alike",
    "anchor_average": "average of anchors",
    "scratch": "random initialisation",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal of the demo: what was asked, what came (`None` and NaN: undefined), and whether it suffices."""

    name: str
    wanted: float | None
    got: float | None
    strict: bool = False

    @property
    def reached(self) -> bool:
        """Whether `got` is at least `wanted` (above it when `strict`); what is undefined reaches nothing."""
        if self.got is None or self.wanted is None:  # NaN, as JSON holds it
            return False
        return self.got > self.wanted if self.strict else self.got >= self.wanted


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """Compare the demo's results with what it set out to reach.

    Each goal compares two results of the same run, or a share with a bound that has room to spare, so that it holds on
    any processor: other processors round otherwise, which moves results by some hundredths.

    Args:
        results: The `results` part of the demo's run record.

    Returns:
        One `Goal` per claim, in the order of the pipeline.
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


def shown(value: float | None) -> str:
    """A number with three decimals; None and NaN are undefined."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def probe_markdown(details: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Markup:
    """Probe table: one row per embedding, R2 and Kendall tau on test networks for each property."""
    names = list(next(iter(details.values())))
    header = ["embedding"] + [f"{PROPERTY_TITLES[p]} {m}" for p in details for m in ("R2", "tau")]
    rows = [[n] + [shown(details[p][n][m]) for p in details for m in ("r2", "kendall_tau")] for n in names]
    return markdown_table(header, rows, numbers=True)


def sampling_markdown(sampling: Mapping[str, Any]) -> Markup:
    """Sampling table: accuracy at each reported epoch and distance to the nearest training network, per method."""
    epochs = [key for key in sampling if key.startswith("epoch_")]
    distances = sampling["nearest_training_distance"]
    rows = [
        [METHOD_TITLES[name]]
        + [shown(sampling[epoch][name]) for epoch in epochs]
        + [shown(distances[name]) if name in distances else ""]
        for name in sampling[epochs[0]]
    ]
    return markdown_table(
        ["networks", *(e.replace("_", " ") for e in epochs), "nearest training distance"], rows, numbers=True
    )


def goals_markdown(found: Sequence[Goal]) -> Markup:
    """Goal table: wanted, got, reached or not."""
    rows = [
        [
            goal.name,
            f"{'>' if goal.strict else '>='} {shown(goal.wanted)}",
            shown(goal.got),
            "yes" if goal.reached else "**no**",
        ]
        for goal in found
    ]
    return markdown_table(["goal", "wanted", "got", "reached"], rows, numbers=True)


def render_report(record: Mapping[str, Any]) -> str:
    """Write the demo's page from its run record.

    Args:
        record: The JSON of the run record, as saved.

    Returns:
        Markdown; links only to files that lie beside it.
    """
    found = goals(record)
    missed = [f"{goal.name} ({shown(goal.got)}, wanted {shown(goal.wanted)})" for goal in found if not goal.reached]
    zoo_rows = [
        [name, str(part["networks"]), str(part["excluded"]), shown(part["accuracy"]), str(part["checkpoints"])]
        for name, part in record["zoos"].items()
    ]
    reconstruction_rows = [
        [name, *(shown(part[column]) for column in ("r2", "accuracy_original", "accuracy_reconstructed"))]
        for name, part in record["reconstruction"].items()
    ]
    return render(
        "demo_report.md",
        record=record,
        verdict=f"Not reached: {'; '.join(missed)}." if missed else "Every goal was reached.",
        goals=goals_markdown(found),
        zoos=markdown_table(
            ["zoo", "networks", "left out", "mean final test accuracy", "checkpoints each"], zoo_rows, numbers=True
        ),
        reconstruction=markdown_table(
            ["zoo (test networks)", "R2", "accuracy before", "accuracy after"], reconstruction_rows, numbers=True
        ),
        probes=probe_markdown(record["probe_details"]),
        sampling=sampling_markdown(record["sampling"]),
    )


__all__ = []
