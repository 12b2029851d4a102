"""Transfer probes between zoos: they are fitted on the networks of one data set and evaluated on another."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_sane.core._metrics import regression_scores
from hf_sane.probing._probes import PENALTIES, Values
from hf_sane.probing._ranks import rank_targets
from hf_sane.probing._regressors import BOOSTING_GRID, FITTERS, RegressorName
from hf_sane.records._progress import tracked

ZooFeatures = Mapping[str, Mapping[str, Mapping[str, Values]]]  # zoo, kind of features, split
ZooTargets = Mapping[str, Mapping[str, Values]]  # zoo, split


@dataclass(frozen=True, slots=True)
class TransferResult:
    """How well a probe of one zoo predicts the test networks of another.

    Attributes:
        r2: R2, in which a shift between zoos counts as error; below 0 if predicting their mean is better.
        kendall_tau: Rank correlation, which matters for choosing a network.
        mae: Mean absolute error, in units of the property.
    """

    r2: float
    kendall_tau: float
    mae: float

    def to_dict(self) -> dict[str, Any]:
        """The results in a form that JSON supports."""
        return asdict(self)


# Results by features, source zoo and target zoo.
TransferTable = dict[str, dict[str, dict[str, TransferResult]]]


def transfer_table(
    features: ZooFeatures,
    targets: ZooTargets,
    *,
    regressor: RegressorName = "ridge",
    penalties: Sequence[float] = PENALTIES,
    grid: Sequence[tuple[int, float, int]] = BOOSTING_GRID,
    ranks: bool = False,
) -> TransferTable:
    """Fit a probe on every zoo and test it on every zoo (Unterthiner et al., arXiv:2002.11448, section 5).

    The regressor is fitted on the training networks of the source zoo and its settings are chosen on the validation
    networks, without any networks of the target zoo. The diagonal holds ordinary probes.

    Args:
        features: `{zoo: {kind: {split: [M, F]}}}`; every zoo must have every kind with the same number of features.
        targets: `{zoo: {split: [M]}}`, one property.
        regressor: `"ridge"`, `"logit_linear"` or `"gradient_boosting"`.
        penalties: Candidates for the first two.
        grid: Candidates for the last: leaves, learning rate, rounds.
        ranks: Fit the normal scores of the property among the training and validation networks of each zoo, see
            [`normal_scores`], instead of its values; R2 and error then refer to scores within a zoo.

    Returns:
        `{kind: {source zoo: {target zoo: TransferResult}}}`.

    Raises:
        ValueError: If there are fewer than two zoos, the regressor is unknown, zoos have different features, or values
            are not finite.
    """
    if len(features) < 2 or features.keys() != targets.keys():
        raise ValueError(
            f"expected features and targets of the same zoos, at least two, got {list(features)}, {list(targets)}"
        )
    fit = FITTERS.find(regressor)
    wanted = {
        zoo: {split: torch.as_tensor(part).double().cpu() for split, part in found.items()}
        for zoo, found in targets.items()
    }
    fitted_to = {zoo: rank_targets(found, name=repr(zoo)) for zoo, found in wanted.items()} if ranks else wanted
    kinds = list(next(iter(features.values())))
    table: dict[str, dict[str, dict[str, TransferResult]]] = {}
    for kind in tracked(kinds, desc="probes across zoos", unit="probe"):
        widths = {zoo: {np.shape(part)[1] for part in found.get(kind, {}).values()} for zoo, found in features.items()}
        if len(set.union(*widths.values())) != 1 or not all(widths.values()):
            raise ValueError(f"{kind!r} differs between zoos: features {widths}; use those that all zoos share")
        for zoo, found in features.items():
            if not torch.as_tensor(found[kind]["test"]).isfinite().all():
                raise ValueError(
                    f"{kind!r} of the test networks of {zoo} is not finite (NaN or infinite); leave those networks out"
                )
        table[kind] = {}
        for source, found in features.items():
            choices: dict[str, Any] = {"grid": grid} if regressor == "gradient_boosting" else {"penalties": penalties}
            fitted = fit(
                found[kind]["train"], fitted_to[source]["train"], validation_features=found[kind]["validation"],
                validation_targets=fitted_to[source]["validation"], **choices,
            )  # fmt: skip
            table[kind][source] = {
                target: TransferResult(
                    **regression_scores(
                        fitted.predict(features[target][kind]["test"])[:, 0].numpy(),
                        fitted_to[target]["test"].numpy(),
                        ordered_by=wanted[target]["test"].numpy(),
                    )
                )
                for target in features
            }
    return table
