"""Probe tables: every property predicted from every kind of features, scored on test networks."""

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
BESTS = {"sane_best": "sane_", "linear_best": "linear_"}  # rows, and the features that compete for them

ProbeTable = dict[str, dict[str, "ProbeResult"]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How well one property is read off one kind of features.

    Attributes:
        features: Name of the features; of `sane_best`, the name of those chosen.
        r2: On test networks; of a probe of ranks, R2 of normal scores.
        kendall_tau: On test networks, against the property itself; NaN when the probe predicts one value for all.
        mae: Mean absolute error on test networks, in units of the property; of a probe of ranks, in standard
            deviations.
        validation_r2: R2 by which penalty and best features are chosen: on the validation networks, or with runs given
            on every run of the training and validation networks when it is left out.
        penalty: Ridge penalty chosen; `None` of a regressor without.
        num_features: Features per network.
    """

    features: str
    r2: float
    kendall_tau: float
    mae: float
    validation_r2: float
    penalty: float | None
    num_features: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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

    Training networks fit the probe, validation networks choose its penalty and, among the features of a code (whose
    names begin with `sane_` or `linear_`), the best for each property; test networks are only scored. With `runs`,
    training and validation networks do both, by leaving out one run at a time: see [`RidgeProbe.fit_runs`]. It serves
    all features alike.

    Args:
        features: `{name: {split: [M_split, F]}}` with the splits `train`, `validation` and `test`.
        targets: `{property: {split: [M_split]}}`, networks in the same order.
        runs: `{split: [M_split]}`, the training run of each training and validation network.
        penalties: Candidates, see [`RidgeProbe.fit`].
        regressor: `"ridge"`, `"logit_linear"` or `"gradient_boosting"`, see [`regressors`]. Only ridge uses `runs`:
            for the others training networks fit and validation networks choose.
        ranks: Fit the normal scores of each property among training and validation networks instead of its values, see
            [`normal_scores`]: for ordering networks.

    Returns:
        `{property: {features: ProbeResult}}`, in the order of the arguments; the best of each code last, as
        `sane_best` and `linear_best`.

    Raises:
        ValueError: Without features or properties, or if shapes do not fit, values are not finite, or test targets are
            all equal.
        KeyError: If a split is missing, of features, targets or runs.
    """
    if not features or not targets:
        raise ValueError(
            f"expected at least one kind of features and one property, got {list(features)}, {list(targets)}"
        )
    for name, parts in [*features.items(), *targets.items()]:
        if missing := [split for split in SPLITS if split not in parts]:
            raise KeyError(f"{name!r} lacks the splits {missing}; a probe needs {', '.join(SPLITS)}")
    columns = {name: {split: _column(parts[split]) for split in SPLITS} for name, parts in targets.items()}
    fitted = {name: rank_targets(parts, name=repr(name)) for name, parts in columns.items()} if ranks else columns
    stacked = {split: torch.stack([parts[split] for parts in fitted.values()], dim=1) for split in SPLITS}
    table: ProbeTable = {name: {} for name in targets}
    for kind, parts in tracked(features.items(), desc="probes", unit="probe"):
        probe = _fitted(parts, stacked, runs if regressor == "ridge" else None, penalties, list(targets), regressor)
        predictions = probe.predict(parts["test"]).numpy()
        if len(predictions) != len(stacked["test"]):
            raise ValueError(
                f"{kind!r} has test features of {len(predictions)} networks, the targets have {len(stacked['test'])}"
            )
        for column, name in enumerate(targets):
            table[name][kind] = ProbeResult(
                features=kind,
                **regression_scores(
                    predictions[:, column],
                    fitted[name]["test"].numpy(),
                    ordered_by=columns[name]["test"].numpy(),
                ),
                validation_r2=probe.validation_r2[column],
                penalty=probe.settings[column].get("penalty"),
                num_features=probe.num_features,
            )
    for row in table.values():
        for best, prefix in BESTS.items():
            if rivals := [result for kind, result in row.items() if kind.startswith(prefix)]:
                row[best] = replace(max(rivals, key=lambda result: result.validation_r2))
    return table


def table_to_dict(table: ProbeTable) -> dict[str, dict[str, dict[str, Any]]]:
    """A probe table as run records hold it."""
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
