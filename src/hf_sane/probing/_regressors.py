"""Alternatives to linear probes: logit-linear maps and gradient-boosted trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._metrics import r2_score
from hf_sane.probing._probes import (
    PENALTIES,
    RidgePath,
    RidgeProbe,
    Values,
    check_choices,
    check_features,
    checked_splits,
    conformal_margins,
)
from hf_sane.records._registry import Registry

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

RegressorName = Literal["ridge", "logit_linear", "gradient_boosting"]
MARGIN = 0.005  # least distance of targets from 0 and 1, where logits are infinite
# Candidates for trees: leaves, learning rate, rounds.
BOOSTING_GRID: tuple[tuple[int, float, int], ...] = tuple(product((7, 31), (0.03, 0.1), (100, 300)))


class Regressor(Protocol):
    """Interface of fitted regressors for tables of probes."""

    @property
    def num_features(self) -> int:
        """Number of features."""

    @property
    def validation_r2(self) -> tuple[float, ...]:
        """R2 of each property on the networks on which its settings were chosen."""

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """Chosen settings for each property."""

    @property
    def margins(self) -> tuple[float, ...]:
        """Half the width of 90% prediction intervals for each property, see [`conformal_margins`]."""

    def predict(self, features: Values) -> Tensor:
        """Predict properties `[M, T]` float64 from features `[M, F]`."""


@dataclass(frozen=True)
class LogitLinearProbe:
    """`y_hat = low + (high - low) sigmoid(x W + b)`: predictions stay within the range of the training targets.

    This is the L-Linear model of Unterthiner et al. (arXiv:2002.11448, section 4.2), which fits accuracies better than
    a straight line if many networks are near chance or near perfect. They minimise the squared error of the sigmoid by
    gradient descent; here, the ridge probe is fitted to the logits in closed form (with targets at least 0.005 of the
    range from its ends), and its penalty is chosen by the error after the sigmoid, on validation networks.

    Attributes:
        probe: Ridge probe of the logits; its `validation_r2` is computed after the sigmoid.
        low: `[T]` smallest training target.
        high: `[T]` largest training target.
    """

    probe: RidgeProbe
    low: Tensor
    high: Tensor

    @classmethod
    def fit(
        cls,
        features: Values,
        targets: Values,
        *,
        validation_features: Values,
        validation_targets: Values,
        penalties: Sequence[float] = PENALTIES,
        names: Sequence[str] = (),
    ) -> "LogitLinearProbe":
        """Fit on training networks, choose the penalty on validation networks; arguments as in [`RidgeProbe.fit`].

        Raises:
            ValueError: As in [`RidgeProbe.fit`], or if all training targets of a property are equal.
        """
        x, y, valid_x, valid_y = checked_splits(features, targets, validation_features, validation_targets)
        check_choices(valid_y, penalties, names)
        low, high = y.min(dim=0).values, y.max(dim=0).values
        if (low == high).any():
            raise ValueError("a logit-linear probe requires training targets that vary, got a property with all equal")
        shares = ((y - low) / (high - low)).clamp(MARGIN, 1 - MARGIN)
        path = RidgePath(x, torch.logit(shares), penalties)
        errors = low + (high - low) * torch.sigmoid(path.predict(valid_x)) - valid_y
        return cls(RidgeProbe.chosen(path, errors, valid_y, names), low, high)

    @property
    def num_features(self) -> int:
        """Number of features, `F`."""
        return self.probe.num_features

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """Penalty chosen for each property."""
        return self.probe.settings

    @property
    def validation_r2(self) -> tuple[float, ...]:
        """R2 after the sigmoid, per property."""
        return self.probe.validation_r2

    @property
    def margins(self) -> tuple[float, ...]:
        """Half the width of prediction intervals, from errors after the sigmoid."""
        return self.probe.margins

    def predict(self, features: Values) -> Tensor:
        """Predict properties: `[M, F]` to `[M, T]` float64.

        Raises:
            ValueError: If the number of features differs from the fitted one.
        """
        return self.low + (self.high - self.low) * torch.sigmoid(self.probe.predict(features))


@dataclass(frozen=True)
class BoostedTrees:
    """Gradient-boosted regression trees (scikit-learn's histogram implementation), one ensemble per property.

    This is the strongest regressor of Unterthiner et al. (arXiv:2002.11448), who used LightGBM. Leaves, learning rate
    and rounds are chosen on validation networks.

    Attributes:
        ensembles: `T` fitted ensembles.
        num_features: Number of features, `F`.
        validation_r2: R2 of each property on the validation networks.
        settings: Chosen leaves, learning rate and rounds for each property.
        margins: Half the width of 90% prediction intervals, from the errors on validation networks.
    """

    ensembles: "tuple[HistGradientBoostingRegressor, ...]"
    num_features: int
    validation_r2: tuple[float, ...]
    settings: tuple[dict[str, float], ...]
    margins: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        features: Values,
        targets: Values,
        *,
        validation_features: Values,
        validation_targets: Values,
        grid: Sequence[tuple[int, float, int]] = BOOSTING_GRID,
        seed: int = 0,
        **_ignored: Any,
    ) -> "BoostedTrees":
        """Fit on training networks, choose settings on validation networks.

        Args:
            features: `[M, F]`.
            targets: `[M]` or `[M, T]`.
            validation_features: `[V, F]`.
            validation_targets: `[V]` or `[V, T]`.
            grid: Candidates: leaves, learning rate, rounds.
            seed: Random seed of the binning.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: If shapes do not fit, values are not finite, all validation targets of a property are equal, or
                there is no candidate.
        """
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
        except ImportError as error:
            raise ImportError("boosted trees require scikit-learn: pip install 'hf_sane[analysis]'") from error
        if not grid:
            raise ValueError("expected at least one candidate (leaves, learning rate, rounds), got none")
        splits = checked_splits(features, targets, validation_features, validation_targets)
        train_x, train_y, valid_x, valid_y = (part.numpy() for part in splits)
        chosen = []
        for column in range(train_y.shape[1]):
            candidates = []
            for leaves, rate, rounds in grid:
                trees = HistGradientBoostingRegressor(
                    max_leaf_nodes=leaves, learning_rate=rate, max_iter=rounds, early_stopping=False, random_state=seed
                ).fit(train_x, train_y[:, column])
                settings = {"leaves": float(leaves), "learning_rate": rate, "rounds": float(rounds)}
                candidates.append((r2_score(trees.predict(valid_x), valid_y[:, column]), trees, settings))
            chosen.append(max(candidates, key=lambda candidate: candidate[0]))
        scores, ensembles, settings_found = zip(*chosen, strict=True)
        predicted = np.stack([trees.predict(valid_x) for trees in ensembles], axis=1)
        margins = conformal_margins(torch.from_numpy(predicted - valid_y))
        return cls(ensembles, train_x.shape[1], scores, settings_found, margins)

    def predict(self, features: Values) -> Tensor:
        """Predict properties: `[M, F]` to `[M, T]` float64.

        Raises:
            ValueError: If the number of features differs from the fitted one, or values are not finite.
        """
        x = np.asarray(torch.as_tensor(features).double().cpu())
        check_features(x, self.num_features)
        if not np.isfinite(x).all():  # trees would treat NaN as missing values
            raise ValueError("expected finite features, got NaN or infinite values; leave those networks out")
        return torch.from_numpy(np.stack([trees.predict(x) for trees in self.ensembles], axis=1))


FITTERS: Registry[Any] = Registry("regressor")
for _name, _kind in (("ridge", RidgeProbe), ("logit_linear", LogitLinearProbe), ("gradient_boosting", BoostedTrees)):
    FITTERS.add(_name, _kind.fit)
