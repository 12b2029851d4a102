"""Spectra in a zoo: during the training of one run, and against a property over all runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr

from hf_sane.analysis._report import SpectrumReport
from hf_sane.analysis._spectral import SpectrumSettings, analyze_spectrum
from hf_sane.core._metrics import kendall_tau
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


def _correlation(left: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    if left.min() == left.max() or right.min() == right.max():
        return {"pearson": None, "kendall_tau": None}
    return {"pearson": float(pearsonr(left, right)[0]), "kendall_tau": kendall_tau(left, right)}
