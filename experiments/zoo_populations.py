"""Spectra in a zoo: during the training of one run, and against a property over all runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from hf_sane.analysis._pictures import BLUE, GREEN, GREY, label_ends, make_figure, save_picture
from hf_sane.analysis._report import SpectrumReport
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.core._metrics import kendall_tau
from hf_sane.records._escaping import plot_text
from hf_sane.zoo._dataset import ZooSplit

SUMMARIES = (
    "mean_alpha",
    "mean_alpha_weighted",
    "mean_log_frobenius_norm",
    "mean_log_spectral_norm",
    "mean_log_alpha_norm",
    "mean_stable_rank",
    "mean_weight_correlation",
)


def analyze_networks(split: ZooSplit, settings: SpectrumSettings | None = None) -> Iterator[SpectrumReport]:
    """Analyse every network of a split, in order.

    Args:
        split: Networks.
        settings: The defaults if `None`; since zoo networks are small, `min_values` and `min_tail` may have to be
            lowered.
    """
    for index in range(len(split)):
        yield analyze_spectrum(split.state_dict(index), settings)


def spectra_through_training(split: ZooSplit, run_id: str, settings: SpectrumSettings | None = None) -> dict[str, Any]:
    """Alpha of every layer at every stored epoch of one run.

    Args:
        split: Split that contains the run.
        run_id: Name of the run.
        settings: See [`analyze_networks`].

    Returns:
        `{"run_id", "epoch": [E], "test_accuracy": [E], "alpha": {layer: [E]}, "phase": {layer: [E]}}` for layers that
        are large enough, epochs ascending.

    Raises:
        KeyError: If the split has no such run.
        ValueError: If no layer has an alpha.
    """
    members = np.flatnonzero(np.array(split.run_ids) == run_id)
    if not len(members):
        raise KeyError(f"no run {run_id!r} in this split; its runs are {', '.join(sorted(set(split.run_ids))[:10])}")
    part = split.select(members[np.argsort(split.column("epoch")[members])])
    reports = list(analyze_networks(part, settings))
    names = [layer.name for layer in reports[0].layers if all(r[layer.name].alpha is not None for r in reports)]
    if not names:
        raise ValueError(f"no layer of run {run_id} has an alpha at every epoch; lower min_values")
    return {
        "run_id": run_id,
        "epoch": part.column("epoch").tolist(),
        "test_accuracy": part.column("test_accuracy").tolist(),
        "alpha": {name: [report[name].alpha for report in reports] for name in names},
        "phase": {name: [report[name].phase for report in reports] for name in names},
    }


def spectra_against_property(
    splits: Sequence[ZooSplit], settings: SpectrumSettings | None = None, *, column: str = "test_accuracy"
) -> dict[str, Any]:
    """Correlate summaries of spectra with a property over a population.

    A correlation over a population says nothing about a single network, and a correlation over networks at several
    epochs mostly reflects training time: pass one network per run, `split.final_epochs()`.

    Args:
        splits: Splits with at least three networks in total.
        settings: See [`analyze_networks`].
        column: The property.

    Returns:
        `{"networks", column: [M], "summaries": {name: [M]}, "correlation": {name: {"pearson", "kendall_tau"}}}`,
        without summaries that are missing for some network; a correlation with a constant is `None`.

    Raises:
        ValueError: If there are fewer than three networks.
    """
    if (count := sum(map(len, splits))) < 3:
        raise ValueError(f"expected at least three networks to correlate over, got {count}")
    values = np.concatenate([split.column(column).astype(np.float64) for split in splits])
    found = [report.summary() for split in splits for report in analyze_networks(split, settings)]
    summaries = {
        name: [row[name] for row in found] for name in SUMMARIES if all(row[name] is not None for row in found)
    }
    return {
        "networks": count,
        column: values.tolist(),
        "summaries": summaries,
        "correlation": {name: _correlation(np.array(row), values) for name, row in summaries.items()},
    }


def plot_training(curves: Mapping[str, Any], path: Path) -> None:
    """Plot alpha of every layer, and test accuracy, during the training of one run.

    Args:
        curves: Result of [`spectra_through_training`].
        path: PNG to write.
    """
    figure, (upper, lower) = make_figure(7.2, 5, 2, sharex=True)
    mean = np.mean(list(curves["alpha"].values()), axis=0)
    upper.plot(curves["epoch"], mean, color=BLUE, linewidth=2.2)
    ends = [("mean", curves["epoch"][-1], float(mean[-1]), BLUE)]
    for name, alpha in curves["alpha"].items():
        upper.plot(curves["epoch"], alpha, marker="o", markersize=3, color=GREY, linewidth=1)
        ends.append((plot_text(name, 80), curves["epoch"][-1], alpha[-1], GREY))
    upper.set(ylabel="alpha")
    upper.set_title(f"run {curves['run_id']}", fontsize=9)
    label_ends(upper, ends, size=7)
    lower.plot(curves["epoch"], curves["test_accuracy"], marker="o", markersize=3, color=GREEN)
    lower.set(xlabel="epoch", ylabel="test accuracy")
    save_picture(figure, path)


def plot_correlations(
    found: Mapping[str, Any],
    path: Path,
    *,
    names: Sequence[str] = ("mean_alpha", "mean_alpha_weighted", "mean_weight_correlation"),
    column: str = "test_accuracy",
) -> None:
    """Plot summaries of spectra against a property, with one dot per network.

    Args:
        found: Results of [`spectra_against_property`].
        path: PNG to write.
        names: Names of summaries; missing ones are skipped.
        column: The property.

    Raises:
        ValueError: If none of the summaries is known.
    """
    shown = [name for name in names if name in found["summaries"]]
    if not shown:
        raise ValueError(f"none of {', '.join(names)} is known for every network; lower min_values, or min_tail")
    figure, panels = make_figure(4.2 * len(shown), 3.8, columns=len(shown), sharey=True)
    for axes, name in zip(panels, shown, strict=True):
        axes.scatter(found["summaries"][name], found[column], s=14, color=BLUE, linewidths=0, alpha=0.7)
        tau = found["correlation"][name]["kendall_tau"]
        title = "constant" if tau is None else f"Kendall tau {tau:.2f}"
        axes.set(xlabel=name.replace("_", " "), title=f"{title}, {found['networks']} networks")
    panels[0].set_ylabel(column.replace("_", " "))
    save_picture(figure, path)


def _correlation(left: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    if left.min() == left.max() or right.min() == right.max():
        return {"pearson": None, "kendall_tau": None}
    return {"pearson": float(pearsonr(left, right)[0]), "kendall_tau": kendall_tau(left, right)}
