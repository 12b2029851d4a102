"""Probes of several kinds, and the choice between them by leaving out training runs, with choices inside as well."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._metrics import r2_of_errors
from hf_sane.probing._evaluation import (
    ProbeResult,
    ProbeTable,
    add_best,
    check_splits,
    columns_of,
    score_probe,
    stacked_columns,
)
from hf_sane.probing._probes import RidgeProbe, Values, conformal_margins
from hf_sane.probing._ranks import FITTED
from hf_sane.probing._regressors import BoostedTrees, Regressor
from hf_sane.probing._runs import fold_of_runs
from hf_sane.probing._set_transformer import SetTransformerProbe, SetTransformerSettings
from hf_sane.probing._token_sets import TokenSets
from hf_sane.records._progress import tracked

SetRegressorName = Literal["set_transformer", "best"]  # regressors that use tokens
SET_REGRESSORS: tuple[SetRegressorName, ...] = get_args(SetRegressorName)
FOLDS = 4  # parts of the runs that are left out in turn
CODES = ("sane_", "linear_")  # features of a code begin with its name

Runs = Mapping[str, Sequence[object] | np.ndarray]
Fit = Callable[[Any, Tensor, np.ndarray], Any]


@dataclass(frozen=True)
class Candidate:
    """A regressor and the features that it uses.

    Attributes:
        regressor: `"ridge"`, `"gradient_boosting"` or `"set_transformer"`.
        features: Name of the features.
        parts: Features by split: vectors `[M, F]`, or token sets.
        fit: Fits the regressor to features, targets `[M, T]` and the run of each network, and chooses its settings by
            leaving out some of these runs.
    """

    regressor: str
    features: str
    parts: Mapping[str, Any]
    fit: Fit

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.features}, {self.regressor}"

    @property
    def fitted(self) -> Any:
        """Features of training and validation networks."""
        first, second = (self.parts[split] for split in FITTED)
        if isinstance(first, TokenSets):
            return TokenSets.joined([first, second])
        return torch.cat([torch.as_tensor(part).double().cpu() for part in (first, second)])

    def left_out(self, targets: Tensor, runs: np.ndarray, folds: np.ndarray) -> Tensor:
        """Predictions `[M, T]`, each by a regressor that was fitted, and its settings chosen, without the fold."""
        features, found = self.fitted, torch.empty_like(targets)
        for fold in range(int(folds.max()) + 1):
            out = torch.from_numpy(folds == fold)
            probe = self.fit(features[~out], targets[~out], runs[folds != fold])
            found[out] = probe.predict(features[out])
        return found


def make_candidates(
    features: Mapping[str, Mapping[str, Values]],
    tokens: Mapping[str, Mapping[str, TokenSets]],
    *,
    settings: SetTransformerSettings | None = None,
    trees: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """Ridge and gradient boosting on all vectors, and the set transformer on all token sets.

    Args:
        features: `{name: {split: [M_split, F]}}`.
        tokens: `{name: {split: TokenSets}}`.
        settings: Size and training of the set transformer.
        trees: Arguments of [`BoostedTrees.fit_runs`].
    """

    def transformer(x: TokenSets, y: Tensor, runs: np.ndarray) -> SetTransformerProbe:
        return SetTransformerProbe.fit_runs(x, y, runs=runs, settings=settings)

    of_vectors: dict[str, Fit] = {
        "ridge": lambda x, y, runs: RidgeProbe.fit_runs(x, y, runs=runs),
        "gradient_boosting": lambda x, y, runs: BoostedTrees.fit_runs(x, y, runs=runs, **(trees or {})),
    }
    vectors = [
        Candidate(name, kind, parts, fit) for kind, parts in features.items() for name, fit in of_vectors.items()
    ]
    return [*vectors, *(Candidate("set_transformer", kind, parts, transformer) for kind, parts in tokens.items())]


def choice_table(
    candidates: Sequence[Candidate],
    targets: Mapping[str, Mapping[str, Values]],
    *,
    runs: Runs,
    ranks: bool = False,
    nested: bool = True,
    folds: int = FOLDS,
    seed: int = 0,
    on_test: Callable[[str, Tensor], object] | None = None,
) -> ProbeTable:
    """Fit and score candidates, and choose the best by leaving out runs.

    The runs of training and validation networks are divided into folds. The networks of each fold are predicted by a
    candidate that is fitted to the others, where its settings (penalties, rounds, epochs) are chosen by leaving out
    runs of those others. By these predictions, the best candidate is chosen for each property; their errors are also
    the source of its prediction intervals. Then the candidate is fitted to all training and validation networks. Test
    networks are only scored.

    Args:
        candidates: From [`make_candidates`].
        targets: `{property: {split: [M_split]}}`, with networks in the order of the features.
        runs: `{split: [M_split]}`, the training run of each training and validation network.
        ranks: Fit normal scores, as in [`probe_table`].
        nested: Whether to leave out folds. Otherwise, R2 and intervals come from the errors by which each candidate
            chose its settings.
        folds: Number of folds.
        seed: Random seed of the folds.
        on_test: Called with the row and the predictions `[M, T]` for test networks of every candidate.

    Returns:
        `{property: {row: ProbeResult}}`: one row per candidate, then the best features of each code, of those without
        a code (`weights_best`), and of all (`best`).

    Raises:
        ValueError: If there are no candidates or properties, there are fewer runs than folds, or as in
            [`probe_table`].
        KeyError: If features, targets or runs lack a split.
    """
    check_splits({candidate.name: candidate.parts for candidate in candidates}, targets)
    columns = columns_of(targets)
    stacked, fitted = stacked_columns(columns, ranks=ranks)
    y = torch.cat([stacked[split] for split in FITTED])
    names = np.concatenate([np.asarray(runs[split]) for split in FITTED])
    parts = fold_of_runs(names, folds, seed=seed) if nested else None
    table: ProbeTable = {name: {} for name in targets}
    for candidate in tracked(candidates, desc="probes", unit="probe"):
        probe: Regressor = candidate.fit(candidate.fitted, y, names)
        margins, scores = probe.margins, probe.validation_r2
        if parts is not None:
            errors = candidate.left_out(y, names, parts) - y
            margins, scores = conformal_margins(errors), tuple(r2_of_errors(errors[None], y)[0].tolist())
        predicted = probe.predict(candidate.parts["test"])
        if on_test is not None:
            on_test(candidate.name, predicted)
        for column, name in enumerate(targets):
            table[name][candidate.name] = score_probe(
                predicted[:, column],
                fitted[name]["test"],
                columns[name]["test"],
                features=candidate.features,
                regressor=candidate.regressor,
                validation_r2=scores[column],
                penalty=probe.settings[column].get("penalty"),
                num_features=probe.num_features,
                margin=margins[column],
            )
    for row in table.values():
        add_best(row)
        _add_chosen(row)
    return table


def _add_chosen(row: dict[str, ProbeResult]) -> None:
    """Add the best without a code, and the best of all."""
    found = [result for name, result in row.items() if not name.endswith("_best")]
    without = [result for result in found if not result.features.startswith(CODES)]
    for name, rivals in (("weights_best", without), ("best", found)):
        if rivals:
            row[name] = max(rivals, key=lambda result: result.validation_r2)
