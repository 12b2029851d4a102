"""Alternatives to linear probes: logit-linear maps and gradient-boosted trees."""

from collections.abc import Callable, Sequence
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
    checked_pair,
    checked_splits,
    conformal_margins,
)
from hf_sane.probing._runs import fold_of_runs
from hf_sane.records._registry import Registry

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

RegressorName = Literal["ridge", "logit_linear", "gradient_boosting"]  # of vectors; see `_choice` for others
MARGIN = 0.005  # least distance of targets from 0 and 1, where logits are infinite
# Candidates for trees: leaves, learning rate, rounds.
BOOSTING_GRID: tuple[tuple[int, float, int], ...] = tuple(product((7, 31), (0.03, 0.1), (100, 300)))
# The same for choices by runs: leaves and learning rate; the number of rounds is a multiple of ROUND_STEP.
RUN_GRID: tuple[tuple[int, float], ...] = ((7, 0.1), (15, 0.1))
MAX_ROUNDS, ROUND_STEP = 150, 10
HELD_OUT = 4  # one of so many parts of the runs chooses settings
MAX_COLUMNS = 256  # of features, for trees that are chosen by runs, since their time grows with it


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
        columns: Features that the ensemble of each property uses; all if empty.
    """

    ensembles: "tuple[HistGradientBoostingRegressor, ...]"
    num_features: int
    validation_r2: tuple[float, ...]
    settings: tuple[dict[str, float], ...]
    margins: tuple[float, ...]
    columns: tuple[np.ndarray, ...] = ()

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
        make = _tree_maker(seed)
        if not grid:
            raise ValueError("expected at least one candidate (leaves, learning rate, rounds), got none")
        splits = checked_splits(features, targets, validation_features, validation_targets)
        train_x, train_y, valid_x, valid_y = (part.numpy() for part in splits)
        chosen = []
        for column in range(train_y.shape[1]):
            candidates = []
            for leaves, rate, rounds in grid:
                trees = make(leaves, rate, rounds).fit(train_x, train_y[:, column])
                settings = {"leaves": float(leaves), "learning_rate": rate, "rounds": float(rounds)}
                candidates.append((r2_score(trees.predict(valid_x), valid_y[:, column]), trees, settings))
            chosen.append(max(candidates, key=lambda candidate: candidate[0]))
        scores, ensembles, settings_found = zip(*chosen, strict=True)
        predicted = np.stack([trees.predict(valid_x) for trees in ensembles], axis=1)
        margins = conformal_margins(torch.from_numpy(predicted - valid_y))
        return cls(ensembles, train_x.shape[1], scores, settings_found, margins)

    @classmethod
    def fit_runs(
        cls,
        features: Values,
        targets: Values,
        *,
        runs: Sequence[object] | np.ndarray,
        grid: Sequence[tuple[int, float]] = RUN_GRID,
        max_rounds: int = MAX_ROUNDS,
        max_columns: int = MAX_COLUMNS,
        seed: int = 0,
    ) -> "BoostedTrees":
        """Choose settings on a quarter of the training runs, then fit all networks.

        If there are many features, the trees of a property use those that correlate most with it, in absolute value,
        among the networks to which they are fitted.

        Args:
            features: `[M, F]`.
            targets: `[M]` or `[M, T]`.
            runs: `[M]`, the training run of each network; at least four runs.
            grid: Candidates: leaves, learning rate.
            max_rounds: Number of rounds that are tried at most, a multiple of ten.
            max_columns: Number of features that an ensemble uses at most.
            seed: Random seed of the binning, and of the choice of runs.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: As in [`fit`], or if there are too few runs.
        """
        make = _tree_maker(seed)
        x, y = (part.numpy() for part in checked_pair(features, targets, "probed"))
        held = fold_of_runs(runs, HELD_OUT, seed=seed) == 0
        check_choices(torch.from_numpy(y[held]), PENALTIES, ())
        rounds = range(ROUND_STEP, max_rounds + 1, ROUND_STEP)
        ensembles, scores, settings, columns, errors = [], [], [], [], []
        for column in range(y.shape[1]):
            wanted = y[:, column]
            used = _correlated(x[~held], wanted[~held], max_columns)
            best = (-np.inf, (0, 0.0, 0), np.empty(0))
            for leaves, rate in grid:
                trees = make(leaves, rate, max_rounds).fit(x[~held][:, used], wanted[~held])
                staged = list(trees.staged_predict(x[held][:, used]))
                for count in rounds:
                    score = r2_score(staged[count - 1], wanted[held])
                    best = max(best, (score, (leaves, rate, count), staged[count - 1]), key=lambda found: found[0])
            score, (leaves, rate, count), predicted = best
            columns.append(_correlated(x, wanted, max_columns))
            ensembles.append(make(leaves, rate, count).fit(x[:, columns[-1]], wanted))
            settings.append({"leaves": float(leaves), "learning_rate": rate, "rounds": float(count)})
            scores.append(score)
            errors.append(predicted - wanted[held])
        margins = conformal_margins(torch.from_numpy(np.stack(errors, axis=1)))
        return cls(tuple(ensembles), x.shape[1], tuple(scores), tuple(settings), margins, tuple(columns))

    def predict(self, features: Values) -> Tensor:
        """Predict properties: `[M, F]` to `[M, T]` float64.

        Raises:
            ValueError: If the number of features differs from the fitted one, or values are not finite.
        """
        x = np.asarray(torch.as_tensor(features).double().cpu())
        check_features(x, self.num_features)
        if not np.isfinite(x).all():  # trees would treat NaN as missing values
            raise ValueError("expected finite features, got NaN or infinite values; leave those networks out")
        columns = self.columns or (np.arange(self.num_features),) * len(self.ensembles)
        found = [trees.predict(x[:, used]) for trees, used in zip(self.ensembles, columns, strict=True)]
        return torch.from_numpy(np.stack(found, axis=1))


def _tree_maker(seed: int) -> Callable[[int, float, int], "HistGradientBoostingRegressor"]:
    """Make ensembles from leaves, learning rate and rounds."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as error:
        raise ImportError("boosted trees require scikit-learn: pip install 'hf_sane[analysis]'") from error

    def make(leaves: int, rate: float, rounds: int) -> "HistGradientBoostingRegressor":
        return HistGradientBoostingRegressor(
            max_leaf_nodes=leaves, learning_rate=rate, max_iter=rounds, early_stopping=False, random_state=seed
        )

    return make


def _correlated(x: np.ndarray, y: np.ndarray, limit: int) -> np.ndarray:
    """Columns of `[M, F]` that correlate most with `[M]`, in ascending order; all if there are no more."""
    if x.shape[1] <= limit:
        return np.arange(x.shape[1])
    centred = x - x.mean(axis=0)
    spread = np.sqrt(np.square(centred).sum(axis=0))
    correlation = np.abs((y - y.mean()) @ centred) / np.where(spread > 0, spread, np.inf)
    return np.sort(np.argsort(-correlation, kind="stable")[:limit])


FITTERS: Registry[Any] = Registry("regressor")
for _name, _kind in (("ridge", RidgeProbe), ("logit_linear", LogitLinearProbe), ("gradient_boosting", BoostedTrees)):
    FITTERS.add(_name, _kind.fit)
