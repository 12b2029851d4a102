"""Prediction of labels and numbers from few networks: each network is predicted by probes fitted without its group."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hf_sane.core._metrics import kendall_tau, r2_score
from hf_sane.probing._probes import RidgeProbe, Values

PENALTIES = tuple(
    10.0**exponent for exponent in range(-3, 4)
)  # fewer than a probe's own: they are chosen in every fold
Names = Sequence[object] | np.ndarray
BEST = "best"
# One matrix `[M, F]`, or several of which each network is predicted from its own (see `predict_left_out`).
Views = Values | Sequence[Values]


@dataclass(frozen=True, slots=True)
class LeftOutPredictions:
    """Predictions of networks by probes fitted without their group.

    Attributes:
        values: Candidate to predictions in the shape of the targets, float64; with several candidates also `best`,
            where each group is predicted from the candidate that was chosen without it.
        chosen: Candidate chosen for the first problem, for every group (and view) in order of first appearance.
    """

    values: dict[str, Tensor]
    chosen: list[str]

    def counts(self, name: str) -> dict[str, int]:
        """How often each candidate was chosen, for `best`; nothing for a candidate by itself."""
        return dict(Counter(self.chosen)) if name == BEST else {}


@dataclass(frozen=True, slots=True)
class LeftOutLabels:
    """How well labels are read off features, every network judged by probes without its group.

    Attributes:
        accuracy: Share of networks whose label was found.
        interval: 95% interval of the accuracy (Wilson), as if networks were independent.
        chance: Accuracy of the most frequent label among the networks outside the group, the first in order of equally
            frequent ones. With as many networks of every label it is below one in the number of labels: what is left
            out is then rarer among the others.
        permuted_mean: Mean accuracy over permuted labels; `None` without permutations, like the next two.
        permuted_high: 95% quantile of the accuracies with permuted labels.
        p_value: Share of permutations (and the labels themselves) with an accuracy as high as this.
        confusion: True label to predicted label to count.
        chosen: For the best candidate, for how many groups each was chosen; otherwise empty.
    """

    accuracy: float
    interval: tuple[float, float]
    chance: float
    permuted_mean: float | None
    permuted_high: float | None
    p_value: float | None
    confusion: dict[str, dict[str, int]]
    chosen: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LeftOutNumbers:
    """How well a number is read off features, every network judged by probes without its group.

    Attributes:
        r2: Against the mean over all networks. A probe that knows nothing is below zero: it predicts the mean of the
            others.
        kendall_tau: NaN if one value is predicted for all. A probe that knows nothing is below zero, for the same
            reason.
        permuted_mean: Mean tau over permuted numbers; `None` without permutations, like the next two.
        permuted_high: Their 95% quantile.
        p_value: Share of permutations (and the numbers themselves) with a tau as high as this.
        chosen: For the best candidate, for how many groups each was chosen; otherwise empty.
    """

    r2: float
    kendall_tau: float
    permuted_mean: float | None
    permuted_high: float | None
    p_value: float | None
    chosen: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predict_left_out(
    candidates: Mapping[str, Views],
    targets: Values,
    *,
    groups: Names,
    view_of: Sequence[int] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> LeftOutPredictions:
    """Predict every network by a ridge probe fitted on the networks of all other groups.

    Nested: penalty, and which of several candidates, are chosen within those other groups by leaving out one of *them*
    at a time ([`RidgeProbe.fit_runs`]), so that nothing is fitted or chosen on what is predicted. Entries that are
    NaN, such as statistics of a layer that a network lacks, take the mean of the training networks that have them:
    after scaling that is zero, as for a network of which nothing is known. Features that no training network has are
    left out.

    Args:
        candidates: `{name: features}`. Where features come from a model that was itself trained on some of the
            networks, a candidate is a list of matrices `[M, F]`, each from a model that did not see some of them.
        targets: `[M, C]`, or `[M, S, C]` for `S` problems of `C` columns that share everything but their targets; the
            candidate is chosen for each problem by the mean R2 of its columns.
        groups: `[M]`, what is left out together; three at least.
        view_of: `[M]`, the matrix of each list that a network is to be predicted from; the first when `None`.
        penalties: Candidates for the penalty, see [`RidgeProbe.fit`].

    Raises:
        ValueError: Without candidates, if one is called `best`, shapes do not fit, or there are fewer than three
            groups.
    """
    wanted = torch.as_tensor(targets).double().cpu()
    shape = wanted.shape
    wanted = wanted[:, None] if wanted.ndim == 2 else wanted
    members = _indices(groups)
    views = [0] * len(members) if view_of is None else list(view_of)
    if BEST in candidates:
        raise ValueError(
            f"expected candidates by other names than {BEST!r}, which is the one that is chosen; rename it"
        )
    if not candidates or wanted.ndim != 3 or not len(wanted) == len(members) == len(views) or members.max() < 2:
        raise ValueError(
            "expected candidates, targets [M, C] or [M, S, C], a view for each network, and a group for each, of "
            f"at least three, got {list(candidates)}, {list(shape)}, {len(views)} views and {len(members)} names of "
            f"{members.max() + 1} groups"
        )
    matrices = {name: _matrices(name, found, len(wanted), views) for name, found in candidates.items()}
    values = {name: torch.empty_like(wanted) for name in (*matrices, BEST)}
    chosen = []
    for group in range(members.max() + 1):
        for view, test in _parts(members == group, views):
            train = members != group
            y = wanted[train].flatten(1)
            best = torch.full((wanted.shape[1],), -torch.inf, dtype=torch.float64)
            first = ""
            for name, found in matrices.items():
                known, asked = _filled(found[view], train, test)
                probe = RidgeProbe.fit_runs(known, y, runs=members[train], penalties=penalties)
                scores = torch.tensor(probe.validation_r2, dtype=torch.float64).view(wanted.shape[1:]).mean(dim=1)
                values[name][test] = probe.predict(asked).view(-1, *wanted.shape[1:])
                better = scores > best
                first = name if better[0] else first
                best = torch.where(better, scores, best)
                values[BEST][test] = torch.where(better[:, None], values[name][test], values[BEST][test])
            chosen.append(first)
    kept = list(values) if len(matrices) > 1 else list(matrices)
    return LeftOutPredictions({name: values[name].view(shape) for name in kept}, chosen)


def classify_left_out(
    candidates: Mapping[str, Views],
    labels: Names,
    *,
    groups: Names,
    view_of: Sequence[int] | None = None,
    units: Names | None = None,
    strata: Names | None = None,
    num_permutations: int = 0,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> dict[str, LeftOutLabels]:
    """Read labels off features, one group left out at a time; see [`predict_left_out`].

    A ridge classifier: one column of ones and zeros per label, the largest prediction wins. What accuracy the same
    procedure reaches with nothing to find is measured with permuted labels, everything else unchanged.

    Args:
        candidates: `{name: features}`; with several, the best is chosen inside every fold.
        labels: `[M]`.
        groups: `[M]`, what is left out together.
        view_of: As in [`predict_left_out`].
        units: `[M]`, networks that keep one label in common when labels are permuted; every network by itself when
            `None`.
        strata: `[M]`: labels are permuted within each; among all networks when `None`.
        num_permutations: Number of permutations of the labels. Those that leave a label to one group alone, which
            cannot be learned, are passed over.
        penalties: As in [`predict_left_out`].
        seed: Random seed of the permutations.

    Returns:
        `{candidate: result}`; with several candidates also `best`, the one chosen inside every fold.

    Raises:
        ValueError: If there are fewer than two labels, or one is found in one group only, networks of one unit differ
            in their label or stratum, or shapes do not fit.
    """
    names = [str(label) for label in labels]
    kinds = sorted(set(names))
    truth = torch.tensor([kinds.index(name) for name in names])
    members = _indices(groups)
    if len(members) != len(names):
        raise ValueError(f"expected the group of each of {len(names)} networks, got {len(members)}; give one for each")
    if len(kinds) < 2:
        raise ValueError(f"expected at least two labels to tell apart, got {kinds}")
    for index, kind in enumerate(kinds):
        if len(np.unique(members[truth.numpy() == index])) == 1:
            raise ValueError(
                f"the label {kind!r} is found in one group only: without that group it cannot be learned; leave these "
                "networks out, or choose smaller groups"
            )
    orders = _permutations(names, units, strata, num_permutations, seed)
    shuffled = [truth, *(truth[order] for order in orders)]
    stacked = torch.stack(shuffled, dim=1)  # [M, S]
    targets = torch.nn.functional.one_hot(stacked, len(kinds)).double()
    targets, usable = _learnable(targets, members)
    predicted = predict_left_out(candidates, targets, groups=groups, view_of=view_of, penalties=penalties)
    results = {}
    for name, values in predicted.values.items():
        found = values.argmax(dim=2)
        hits = int((found[:, 0] == truth).sum())
        interval = stats.binomtest(hits, len(truth)).proportion_ci(method="wilson")
        results[name] = LeftOutLabels(
            accuracy=hits / len(truth),
            interval=(float(interval.low), float(interval.high)),
            chance=_majority(truth, members),
            **_against_permuted((found == stacked[:, usable]).double().mean(dim=0)),
            confusion=_confusion(kinds, truth, found[:, 0]),
            chosen=predicted.counts(name),
        )
    return results


def regress_left_out(
    candidates: Mapping[str, Views],
    numbers: Values,
    *,
    groups: Names,
    view_of: Sequence[int] | None = None,
    strata: Names | None = None,
    num_permutations: int = 0,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> dict[str, LeftOutNumbers]:
    """Read a number off features, one group left out at a time; arguments as in [`classify_left_out`].

    Raises:
        ValueError: If shapes do not fit, or the numbers of all networks are equal.
    """
    wanted = torch.as_tensor(numbers).double().cpu()
    if wanted.ndim != 1 or (wanted == wanted[:1]).all():
        raise ValueError(f"expected numbers [M] that differ, got shape {list(wanted.shape)}; nothing can be predicted")
    orders = _permutations(range(len(wanted)), None, strata, num_permutations, seed)
    stacked = torch.stack([wanted, *(wanted[index] for index in orders)], dim=1)
    predicted = predict_left_out(candidates, stacked[..., None], groups=groups, view_of=view_of, penalties=penalties)
    results = {}
    for name, values in predicted.values.items():
        found, truth = values[..., 0].numpy(), stacked.numpy()
        # For comparison with permuted numbers: one value for all orders nothing, and counts as much as chance.
        taus = [kendall_tau(*pair, without_order=0.0) for pair in zip(found.T, truth.T, strict=True)]
        results[name] = LeftOutNumbers(
            r2=r2_score(found[:, 0], truth[:, 0]),
            kendall_tau=kendall_tau(found[:, 0], truth[:, 0]),
            **_against_permuted(torch.tensor(taus, dtype=torch.float64)),
            chosen=predicted.counts(name),
        )
    return results


def _indices(names: Names) -> np.ndarray:
    """`[M]` int: names numbered in order of first appearance."""
    order: dict[object, int] = {}
    values = names.tolist() if isinstance(names, np.ndarray) else names
    return np.array([order.setdefault(name, len(order)) for name in values], dtype=np.int64)


def _matrices(name: str, found: Views, count: int, views: Sequence[int]) -> list[Tensor]:
    """Float64 matrices of a candidate, checked against the number of networks and the views asked for."""
    several = found if isinstance(found, list | tuple) else [found]
    matrices = [torch.as_tensor(matrix).double().cpu() for matrix in several]
    if any(matrix.ndim != 2 or len(matrix) != count for matrix in matrices) or max(views) >= len(matrices):
        raise ValueError(
            f"{name!r}: expected at least {max(views) + 1} matrices [{count}, F], got "
            f"{[list(m.shape) for m in matrices]}"
        )
    return matrices


def _parts(inside: np.ndarray, views: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The networks of a group by the view that they are predicted from: view and `[M]` bool."""
    of_each = np.asarray(views)
    for view in np.unique(of_each[inside]).tolist():
        yield view, inside & (of_each == view)


def _filled(features: Tensor, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Training and test rows with NaN replaced by the mean of the training networks that have the feature."""
    known, asked = features[train], features[test]
    mean = known.nanmean(dim=0)
    there = ~mean.isnan()
    known, asked, mean = known[:, there], asked[:, there], mean[there]
    return torch.where(known.isnan(), mean, known), torch.where(asked.isnan(), mean, asked)


def _permutations(labels: Names, units: Names | None, strata: Names | None, count: int, seed: int) -> Iterator[Tensor]:
    """`[M]` int64: whose label each network gets; networks of one unit share theirs, units stay in their stratum."""
    members = _indices(range(len(labels)) if units is None else units)
    blocks = _indices([0] * len(labels) if strata is None else strata)
    values = _indices(labels)
    if not len(members) == len(blocks) == len(labels):
        raise ValueError(
            f"expected unit and stratum of each of {len(labels)} networks, got {len(members)} and {len(blocks)}"
        )
    first = np.array([np.flatnonzero(members == unit)[0] for unit in range(members.max() + 1)])
    if units is not None and ((values != values[first][members]).any() or (blocks != blocks[first][members]).any()):
        raise ValueError("networks of one unit must share label and stratum; choose smaller units")
    random = np.random.default_rng(seed)
    for _ in range(count):
        source = np.arange(len(first))
        for block in range(blocks.max() + 1):
            inside = np.flatnonzero(blocks[first] == block)
            source[inside] = random.permutation(inside)
        yield torch.from_numpy(first[source][members])


def _learnable(targets: Tensor, members: np.ndarray) -> tuple[Tensor, Tensor]:
    """Problems `[M, S, C]` in which no label is in one group only, and which those are.

    The first problem, the labels themselves, is always among them (checked before). A permutation of units of
    different sizes may give all networks of a label to one group; a column without variation cannot be fitted.
    """
    usable = []
    for problem in range(targets.shape[1]):
        inside = [targets[members != group, problem] for group in range(members.max() + 1)]
        if all(bool((part.any(dim=0) & ~part.all(dim=0)).all()) for part in inside):
            usable.append(problem)
    index = torch.tensor(usable)
    return targets[:, index], index


def _confusion(kinds: Sequence[str], truth: Tensor, found: Tensor) -> dict[str, dict[str, int]]:
    """True label to predicted label to count."""
    table: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    for wanted, got in zip(truth.tolist(), found.tolist(), strict=True):
        table[kinds[wanted]][kinds[got]] = table[kinds[wanted]].get(kinds[got], 0) + 1
    return table


def _majority(truth: Tensor, members: np.ndarray) -> float:
    """Accuracy of the most frequent label outside each group."""
    hits = 0
    for group in range(members.max() + 1):
        inside = torch.from_numpy(members == group)
        hits += int((truth[inside] == truth[~inside].bincount().argmax()).sum())
    return hits / len(truth)


def _against_permuted(scores: Tensor) -> dict[str, float | None]:
    """The first score against all others, those of permutations."""
    if len(scores) == 1:
        return {"permuted_mean": None, "permuted_high": None, "p_value": None}
    others = scores[1:]
    return {
        "permuted_mean": float(others.mean()),
        "permuted_high": float(others.quantile(0.95)),
        "p_value": float((scores >= scores[0]).double().mean()),
    }
