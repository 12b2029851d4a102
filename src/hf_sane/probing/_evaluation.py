"""Tables of probes: every property predicted from every kind of features, scored on test networks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from hf_sane.core._metrics import regression_scores
from hf_sane.probing._probes import PENALTIES, RidgeProbe, Values
from hf_sane.probing._ranks import FITTED, rank_targets
from hf_sane.probing._regressors import FITTERS, Regressor, RegressorName
from hf_sane.records._progress import tracked

SPLITS = ("train", "validation", "test")
BESTS = {"sane_best": "sane_", "linear_best": "linear_"}  # rows, and the prefix of the features to choose from

ProbeTable = dict[str, dict[str, "ProbeResult"]]
Columns = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How well one property can be predicted from one kind of features.

    Attributes:
        features: Name of the features; for `sane_best`, the name of those chosen.
        r2: R2 on test networks; for a probe of ranks, R2 of normal scores.
        kendall_tau: Rank correlation on test networks, with the property itself; NaN if the probe predicts one value
            for all.
        mae: Mean absolute error on test networks, in units of the property; for a probe of ranks, in standard
            deviations.
        validation_r2: R2 by which the penalty and the best features are chosen: on the validation networks, or, if
            runs are given, on every run of the training and validation networks when it is left out.
        penalty: Chosen ridge penalty; `None` for regressors without one.
        num_features: Number of features per network.
        margin: Half the width of 90% prediction intervals, in the unit of `mae`; unknown with fewer than nine networks
            to choose settings on.
        coverage: Share of test networks within these intervals.
        regressor: Name of the regressor.
    """

    features: str
    r2: float
    kendall_tau: float
    mae: float
    validation_r2: float
    penalty: float | None
    num_features: int
    margin: float | None = None
    coverage: float | None = None
    regressor: str = "ridge"

    def to_dict(self) -> dict[str, Any]:
        """The results in a form that JSON supports."""
        return asdict(self)


def probe_table(
    features: Mapping[str, Mapping[str, Values]],
    targets: Mapping[str, Mapping[str, Values]],
    *,
    runs: Mapping[str, Sequence[object] | np.ndarray] | None = None,
    penalties: Sequence[float] = PENALTIES,
    regressor: RegressorName = "ridge",
    ranks: bool = False,
) -> ProbeTable:
    """Fit a probe for every pair of property and features.

    Training networks fit the probe; validation networks choose its penalty and, among the features of a code (with
    names that start with `sane_` or `linear_`), the best for each property; test networks are only scored. With
    `runs`, training and validation networks do both, by leaving out one run at a time, for all features alike; see
    [`RidgeProbe.fit_runs`].

    Args:
        features: `{name: {split: [M_split, F]}}` with the splits `train`, `validation` and `test`.
        targets: `{property: {split: [M_split]}}`, with networks in the same order.
        runs: `{split: [M_split]}`, the training run of each training and validation network.
        penalties: Candidates, see [`RidgeProbe.fit`].
        regressor: `"ridge"`, `"logit_linear"` or `"gradient_boosting"`, see [`regressors`]. Only ridge uses `runs`;
            the others are fitted on training networks and chosen on validation networks.
        ranks: Fit the normal scores of each property among training and validation networks instead of its values, to
            rank networks; see [`normal_scores`].

    Returns:
        `{property: {features: ProbeResult}}`, in the order of the arguments; the best of each code last, as
        `sane_best` and `linear_best`.

    Raises:
        ValueError: If there are no features or properties, shapes do not fit, values are not finite, or test targets
            are all equal.
        KeyError: If features, targets or runs lack a split.
    """
    check_splits(features, targets)
    columns = columns_of(targets)
    stacked, fitted = stacked_columns(columns, ranks=ranks)
    table: ProbeTable = {name: {} for name in targets}
    for kind, parts in tracked(features.items(), desc="probes", unit="probe"):
        probe = _fitted(parts, stacked, runs if regressor == "ridge" else None, penalties, list(targets), regressor)
        predictions = probe.predict(parts["test"])
        if len(predictions) != len(stacked["test"]):
            raise ValueError(
                f"{kind!r} has test features of {len(predictions)} networks, but targets of {len(stacked['test'])}"
            )
        for column, name in enumerate(targets):
            table[name][kind] = score_probe(
                predictions[:, column],
                fitted[name]["test"],
                columns[name]["test"],
                features=kind,
                regressor=regressor,
                validation_r2=probe.validation_r2[column],
                penalty=probe.settings[column].get("penalty"),
                num_features=probe.num_features,
                margin=probe.margins[column],
            )
    for row in table.values():
        add_best(row)
    return table


def check_splits(features: Mapping[str, Mapping[str, Any]], targets: Mapping[str, Mapping[str, Values]]) -> None:
    """Raise an error if there are no features or properties, or one lacks a split."""
    if not features or not targets:
        raise ValueError(
            f"expected at least one kind of features and one property, got {list(features)}, {list(targets)}"
        )
    for name, parts in [*features.items(), *targets.items()]:
        if missing := [split for split in SPLITS if split not in parts]:
            raise KeyError(f"{name!r} lacks the splits {missing}; a probe needs {', '.join(SPLITS)}")


def columns_of(targets: Mapping[str, Mapping[str, Values]]) -> Columns:
    """Properties `{property: {split: [M]}}` in float64."""
    return {name: {split: _column(parts[split]) for split in SPLITS} for name, parts in targets.items()}


def stacked_columns(columns: Columns, *, ranks: bool) -> tuple[dict[str, torch.Tensor], Columns]:
    """Properties, or the normal scores of their ranks, as `{split: [M, T]}` and by property, for probes to fit."""
    fitted = {name: rank_targets(parts, name=repr(name)) for name, parts in columns.items()} if ranks else columns
    stacked = {split: torch.stack([parts[split] for parts in fitted.values()], dim=1) for split in SPLITS}
    return stacked, fitted


def score_probe(
    predicted: torch.Tensor, wanted: torch.Tensor, ordered_by: torch.Tensor, *, margin: float, **facts: Any
) -> ProbeResult:
    """Score predictions `[M]` for test networks; `facts` are other fields of the result."""
    is_known = math.isfinite(margin)
    errors = np.abs(predicted.numpy() - wanted.numpy())
    scores: dict[str, Any] = {**regression_scores(predicted.numpy(), wanted.numpy(), ordered_by=ordered_by.numpy())}
    return ProbeResult(
        **scores,
        margin=margin if is_known else None,
        coverage=float((errors <= margin).mean()) if is_known else None,
        **facts,
    )


def add_best(row: dict[str, ProbeResult]) -> None:
    """Add the best features of each code to the results of a property."""
    for best, prefix in BESTS.items():
        if rivals := [result for kind, result in row.items() if kind.startswith(prefix)]:
            row[best] = replace(max(rivals, key=lambda result: result.validation_r2))


def table_to_dict(table: ProbeTable) -> dict[str, dict[str, dict[str, Any]]]:
    """A table of probes in a form that JSON supports."""
    return {name: {kind: result.to_dict() for kind, result in row.items()} for name, row in table.items()}


def _fitted(
    features: Mapping[str, Values],
    targets: Mapping[str, torch.Tensor],
    runs: Mapping[str, Sequence[object] | np.ndarray] | None,
    penalties: Sequence[float],
    names: Sequence[str],
    regressor: RegressorName,
) -> Regressor:
    fit = FITTERS.find(regressor)
    if runs is None:
        fitted: Regressor = fit(
            features["train"],
            targets["train"],
            validation_features=features["validation"],
            validation_targets=targets["validation"],
            penalties=penalties,
            names=names,
        )
        return fitted
    parts = [torch.as_tensor(features[split]).double().cpu() for split in FITTED]
    return RidgeProbe.fit_runs(
        torch.cat(parts),
        torch.cat([targets[split] for split in FITTED]),
        runs=np.concatenate([np.asarray(runs[split]) for split in FITTED]),
        penalties=penalties,
        names=names,
    )


def _column(values: Values) -> torch.Tensor:
    column = torch.as_tensor(values).double().cpu()
    if column.ndim != 1:
        raise ValueError(f"expected one target per network, [M], got {list(column.shape)}")
    return column
