"""Predict labels and numbers from few networks: each network is predicted by probes fitted without its group."""

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
)  # fewer than those of a single probe, since they are chosen in every fold
Names = Sequence[object] | np.ndarray
BEST = "best"
# One matrix `[M, F]`, or several: `view_of` then gives the matrix for each network (see `predict_left_out`).
Views = Values | Sequence[Values]


@dataclass(frozen=True, slots=True)
class LeftOutPredictions:
    """Predictions of networks by probes fitted without their group.

    Attributes:
        values: Predictions by candidate, in the shape of the targets, float64; with several candidates also `best`,
            where each group is predicted from the candidate that was chosen without it.
        chosen: Candidate chosen for the first problem, for every group (and view) in order of first appearance.
    """

    values: dict[str, Tensor]
    chosen: list[str]

    def counts(self, name: str) -> dict[str, int]:
        """How often each candidate was chosen, for `best`; empty for a single candidate."""
        return dict(Counter(self.chosen)) if name == BEST else {}


@dataclass(frozen=True, slots=True)
class LeftOutLabels:
    """How well labels can be predicted from features, with every network predicted by probes without its group.

    Attributes:
        accuracy: Share of networks whose label was predicted correctly.
        interval: 95% interval of the accuracy (Wilson), as if networks were independent.
        chance: Accuracy of always predicting the most frequent label among the networks outside the group, where ties
            go to the first. With equally frequent labels it is below one over the number of labels, since the labels
            of the group are rarer among the others.
        permuted_mean: Mean accuracy over permuted labels; `None` without permutations, like the next two.
        permuted_high: 95% quantile of the accuracies with permuted labels.
        p_value: Share of permutations (including the true labels) with at least this accuracy.
        confusion: Number of networks, by true and predicted label.
        chosen: For the best candidate, the number of groups for which each was chosen; otherwise empty.
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
        """The results in a form that JSON supports."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LeftOutNumbers:
    """How well a number can be predicted from features, with every network predicted by probes without its group.

    Attributes:
        r2: R2 relative to the mean over all networks. An uninformed probe is below zero, since it predicts the mean of
            the other groups.
        kendall_tau: Rank correlation; NaN if one value is predicted for all. An uninformed probe is below zero, for
            the same reason.
        permuted_mean: Mean tau over permuted numbers; `None` without permutations, like the next two.
        permuted_high: 95% quantile of tau over permuted numbers.
        p_value: Share of permutations (including the true numbers) with at least this tau.
        chosen: For the best candidate, the number of groups for which each was chosen; otherwise empty.
    """

    r2: float
    kendall_tau: float
    permuted_mean: float | None
    permuted_high: float | None
    p_value: float | None
    chosen: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The results in a form that JSON supports."""
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

    Cross-validation is nested: the penalty, and the best of several candidates, are chosen within those other groups
    by leaving out one of *them* at a time ([`RidgeProbe.fit_runs`]), so that predicted networks affect neither fit nor
    choice. NaN entries, such as statistics of a layer that a network lacks, are replaced by the mean of the training
    networks that have them, which is zero after scaling. Features that no training network has are left out.

    Args:
        candidates: `{name: features}`. If features come from a model that was itself trained on some of the networks,
            a candidate is a list of matrices `[M, F]`, each from a model that did not see some of them.
        targets: `[M, C]`, or `[M, S, C]` for `S` problems of `C` columns that share everything but their targets; the
            candidate is chosen for each problem by the mean R2 of its columns.
        groups: `[M]`, at least three groups of networks that are left out together.
        view_of: `[M]`, index of the matrix from which each network is predicted; the first if `None`.
        penalties: Candidates for the penalty, see [`RidgeProbe.fit`].

    Raises:
        ValueError: If there are no candidates, one is called `best`, shapes do not fit, or there are fewer than three
            groups.
    """
    wanted = torch.as_tensor(targets).double().cpu()
    shape = wanted.shape
    wanted = wanted[:, None] if wanted.ndim == 2 else wanted
    members = _indices(groups)
    views = [0] * len(members) if view_of is None else list(view_of)
    if BEST in candidates:
        raise ValueError(
            f"expected candidates by other names than {BEST!r}, which is reserved for the chosen one; rename it"
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
    """Predict labels from features, one group left out at a time; see [`predict_left_out`].

    A ridge classifier with one column of ones and zeros per label, where the largest prediction wins. Its accuracy
    without any signal is measured by permuting labels, with everything else unchanged.

    Args:
        candidates: `{name: features}`; with several, the best is chosen inside every fold.
        labels: `[M]`.
        groups: `[M]`, groups of networks that are left out together.
        view_of: As in [`predict_left_out`].
        units: `[M]`, units of networks that keep a common label when labels are permuted; every network is a unit if
            `None`.
        strata: `[M]`, strata within which labels are permuted; one stratum if `None`.
        num_permutations: Number of permutations of the labels. Permutations in which a label occurs in one group only,
            which cannot be learned, are skipped.
        penalties: As in [`predict_left_out`].
        seed: Random seed of the permutations.

    Returns:
        `{candidate: result}`; with several candidates also `best`, which is chosen inside every fold.

    Raises:
        ValueError: If there are fewer than two labels, a label occurs in one group only, networks of one unit differ
            in label or stratum, or shapes do not fit.
    """
    names = [str(label) for label in labels]
    kinds = sorted(set(names))
    truth = torch.tensor([kinds.index(name) for name in names])
    members = _indices(groups)
    if len(members) != len(names):
        raise ValueError(f"expected one group name for each of {len(names)} networks, got {len(members)} names")
    if len(kinds) < 2:
        raise ValueError(f"expected at least two labels, got {kinds}")
    for index, kind in enumerate(kinds):
        if len(np.unique(members[truth.numpy() == index])) == 1:
            raise ValueError(
                f"the label {kind!r} occurs in one group only, so it cannot be learned without that group; leave "
                "these networks out, or choose smaller groups"
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
    """Predict a number from features, one group left out at a time; arguments as in [`classify_left_out`].

    Raises:
        ValueError: If shapes do not fit, or the numbers of all networks are equal.
    """
    wanted = torch.as_tensor(numbers).double().cpu()
    if wanted.ndim != 1 or (wanted == wanted[:1]).all():
        raise ValueError(f"expected numbers [M] that are not all equal, got shape {list(wanted.shape)}")
    orders = _permutations(range(len(wanted)), None, strata, num_permutations, seed)
    stacked = torch.stack([wanted, *(wanted[index] for index in orders)], dim=1)
    predicted = predict_left_out(candidates, stacked[..., None], groups=groups, view_of=view_of, penalties=penalties)
    results = {}
    for name, values in predicted.values.items():
        found, truth = values[..., 0].numpy(), stacked.numpy()
        # For comparison with permuted numbers, constant predictions, which give no order, count as chance.
        taus = [kendall_tau(*pair, without_order=0.0) for pair in zip(found.T, truth.T, strict=True)]
        results[name] = LeftOutNumbers(
            r2=r2_score(found[:, 0], truth[:, 0]),
            kendall_tau=kendall_tau(found[:, 0], truth[:, 0]),
            **_against_permuted(torch.tensor(taus, dtype=torch.float64)),
            chosen=predicted.counts(name),
        )
    return results


def _indices(names: Names) -> np.ndarray:
    """Names numbered in order of first appearance, `[M]` int."""
    order: dict[object, int] = {}
    values = names.tolist() if isinstance(names, np.ndarray) else names
    return np.array([order.setdefault(name, len(order)) for name in values], dtype=np.int64)


def _matrices(name: str, found: Views, count: int, views: Sequence[int]) -> list[Tensor]:
    """Float64 matrices of a candidate, checked against the number of networks and the requested views."""
    several = found if isinstance(found, list | tuple) else [found]
    matrices = [torch.as_tensor(matrix).double().cpu() for matrix in several]
    if any(matrix.ndim != 2 or len(matrix) != count for matrix in matrices) or max(views) >= len(matrices):
        raise ValueError(
            f"{name!r}: expected at least {max(views) + 1} matrices [{count}, F], got "
            f"{[list(m.shape) for m in matrices]}"
        )
    return matrices


def _parts(inside: np.ndarray, views: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Split the networks of a group by the view from which they are predicted: view and `[M]` bool."""
    of_each = np.asarray(views)
    for view in np.unique(of_each[inside]).tolist():
        yield view, inside & (of_each == view)


def _filled(features: Tensor, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    """Training and test rows, with NaN replaced by the mean of the training networks that have the feature."""
    known, asked = features[train], features[test]
    mean = known.nanmean(dim=0)
    there = ~mean.isnan()
    known, asked, mean = known[:, there], asked[:, there], mean[there]
    return torch.where(known.isnan(), mean, known), torch.where(asked.isnan(), mean, asked)


def _permutations(labels: Names, units: Names | None, strata: Names | None, count: int, seed: int) -> Iterator[Tensor]:
    """Network whose label each network gets, `[M]` int64; units share a label, and labels stay in their stratum."""
    members = _indices(range(len(labels)) if units is None else units)
    blocks = _indices([0] * len(labels) if strata is None else strata)
    values = _indices(labels)
    if not len(members) == len(blocks) == len(labels):
        raise ValueError(
            f"expected one unit and stratum for each of {len(labels)} networks, got {len(members)} and {len(blocks)}"
        )
    first = np.array([np.flatnonzero(members == unit)[0] for unit in range(members.max() + 1)])
    if units is not None and ((values != values[first][members]).any() or (blocks != blocks[first][members]).any()):
        raise ValueError("networks of one unit must have the same label and stratum; choose smaller units")
    random = np.random.default_rng(seed)
    for _ in range(count):
        source = np.arange(len(first))
        for block in range(blocks.max() + 1):
            inside = np.flatnonzero(blocks[first] == block)
            source[inside] = random.permutation(inside)
        yield torch.from_numpy(first[source][members])


def _learnable(targets: Tensor, members: np.ndarray) -> tuple[Tensor, Tensor]:
    """Problems `[M, S, C]` in which every label occurs in several groups, and a mask of these problems.

    The first problem, the true labels, is always included (checked before). A permutation of units of different sizes
    may assign a label to one group only, and a column without variation cannot be fitted.
    """
    usable = []
    for problem in range(targets.shape[1]):
        inside = [targets[members != group, problem] for group in range(members.max() + 1)]
        if all(bool((part.any(dim=0) & ~part.all(dim=0)).all()) for part in inside):
            usable.append(problem)
    index = torch.tensor(usable)
    return targets[:, index], index


def _confusion(kinds: Sequence[str], truth: Tensor, found: Tensor) -> dict[str, dict[str, int]]:
    """Number of networks, by true and predicted label."""
    table: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    for wanted, got in zip(truth.tolist(), found.tolist(), strict=True):
        table[kinds[wanted]][kinds[got]] = table[kinds[wanted]].get(kinds[got], 0) + 1
    return table


def _majority(truth: Tensor, members: np.ndarray) -> float:
    """Accuracy of predicting the most frequent label outside each group."""
    hits = 0
    for group in range(members.max() + 1):
        inside = torch.from_numpy(members == group)
        hits += int((truth[inside] == truth[~inside].bincount().argmax()).sum())
    return hits / len(truth)


def _against_permuted(scores: Tensor) -> dict[str, float | None]:
    """Compare the first score with the others, which are those of permutations."""
    if len(scores) == 1:
        return {"permuted_mean": None, "permuted_high": None, "p_value": None}
    others = scores[1:]
    return {
        "permuted_mean": float(others.mean()),
        "permuted_high": float(others.quantile(0.95)),
        "p_value": float((scores >= scores[0]).double().mean()),
    }
