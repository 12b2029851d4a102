"""Linear probes by ridge regression in closed form, with penalties chosen on held-out networks."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_sane.core._metrics import r2_of_errors
from hf_sane.records._documents import read_document
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._outputs import check_finished, output_folder
from hf_sane.tokenization._checkpoints import read_safetensors

Values = Tensor | np.ndarray

LEVEL = 0.9  # share of new networks that prediction intervals should contain
PENALTIES = tuple(float(f"1e{exponent}") * factor for exponent in range(-6, 4) for factor in (1, 3))
AGAIN = "save the probe again"
SETTINGS = {"penalties": tuple[float, ...], "validation_r2": tuple[float, ...], "names": tuple[str, ...]}
MARGINS = "margins"
TENSORS_FILE, SETTINGS_FILE = "probe.safetensors", "probe.json"


@dataclass(frozen=True)
class RidgeProbe:
    """Ridge regression from features of a network to one or more properties.

    `y_hat = ((x - mean) / scale) W + intercept`, fitted by [`fit`]; all tensors are float64 on the CPU.

    Attributes:
        mean: `[F]` mean of the training features.
        scale: `[F]` standard deviation of the training features; 1 where it is zero.
        weight: `[F, T]`, one column per property.
        intercept: `[T]`.
        penalties: Penalty chosen for each of the `T` properties.
        validation_r2: R2 of each property on the networks on which its penalty was chosen.
        names: Names of the properties, for files; may be empty.
        margins: Half the width of 90% prediction intervals, for each property, see [`conformal_margins`]; empty in
            files of versions before 0.2.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    intercept: Tensor
    penalties: tuple[float, ...]
    validation_r2: tuple[float, ...]
    names: tuple[str, ...] = field(default=())
    margins: tuple[float, ...] = field(default=())

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
    ) -> "RidgeProbe":
        """Fit on training networks and choose the penalty on validation networks.

        `W = argmin 1/M |Y - X W|^2 + lambda |W|^2` with `X`, `Y` centred and `X` scaled to unit variance over the `M`
        training networks: `W = (X^T X / M + lambda I)^-1 X^T Y / M`, or in the equivalent dual form if there are more
        features than networks, `W = X^T (X X^T / M + lambda I)^-1 Y / M`. One eigendecomposition serves all penalties
        and properties. `lambda` is the `alpha / M` of scikit-learn's `Ridge`. Among penalties with equal R2, the
        largest is chosen.

        The published probe has fewer penalties, of unknown scale, and uses raw features. This one does not depend on
        the units of the features or on the number of networks.

        Args:
            features: `[M, F]`.
            targets: `[M]` for one property or `[M, T]`.
            validation_features: `[V, F]`.
            validation_targets: `[V]` or `[V, T]`.
            penalties: Candidates for `lambda`, > 0.
            names: Names of the properties.

        Raises:
            ValueError: If shapes do not fit, values are not finite, a penalty is not positive, or the validation
                targets of a property are all equal.
        """
        train_x, train_y, valid_x, valid_y = checked_splits(features, targets, validation_features, validation_targets)
        check_choices(valid_y, penalties, names)
        path = RidgePath(train_x, train_y, penalties)
        return cls.chosen(path, path.predict(valid_x) - valid_y, valid_y, names)

    @classmethod
    def fit_runs(
        cls,
        features: Values,
        targets: Values,
        *,
        runs: Sequence[object] | np.ndarray,
        penalties: Sequence[float] = PENALTIES,
        names: Sequence[str] = (),
    ) -> "RidgeProbe":
        """Fit on all networks; choose the penalty by predicting each training run from all other runs.

        Leave-one-run-out: checkpoints of one run resemble each other, so all of them are left out together. Refits
        are not necessary: with the hat matrix `H_lambda = 1 1^T / M + X (X^T X + M lambda I)^-1 X^T` and the residuals
        `r = Y - H Y`, the errors on a run `g` of a probe fitted without it are exactly `(I - H_gg)^-1 r_g`, for the
        same `M lambda` and the same centre and scale of the features. With few validation runs, this is more reliable
        than a single split.

        Args:
            features: `[M, F]`, of training and validation networks together.
            targets: `[M]` for one property or `[M, T]`.
            runs: `[M]`, the training run of each network; at least two runs.
            penalties: Candidates for `lambda`, > 0.
            names: Names of the properties.

        Raises:
            ValueError: As in [`fit`]; also if there are fewer than two runs, or the number of run names is wrong.
        """
        x, y = checked_pair(features, targets, "probed")
        members = np.unique(np.asarray(runs), return_inverse=True)[1]
        if members.ndim != 1 or len(members) != len(x) or members.max() == 0:
            count = len(np.unique(members))
            raise ValueError(
                f"expected the run of each of {len(x)} networks, and at least two runs, got {len(members)} names of "
                f"{count} run{'' if count == 1 else 's'}; with a single run, use fit() with validation networks"
            )
        check_choices(y, penalties, names)
        path = RidgePath(x, y, penalties)
        return cls.chosen(path, path.left_out_errors(torch.from_numpy(members)), y, names)

    @classmethod
    def chosen(cls, path: "RidgePath", errors: Tensor, wanted: Tensor, names: Sequence[str]) -> "RidgeProbe":
        """Choose for each property the penalty with the smallest errors `[P, V, T]` on targets `[V, T]`."""
        r2 = r2_of_errors(errors, wanted)  # [P, T]
        best = r2.argmax(dim=0)
        chosen = path.penalties[best]
        return cls(
            mean=path.mean,
            scale=path.scale,
            weight=path.weights(chosen),
            intercept=path.intercept,
            penalties=tuple(chosen.tolist()),
            validation_r2=tuple(r2.gather(0, best[None])[0].tolist()),
            names=tuple(names),
            margins=conformal_margins(errors[best, :, torch.arange(len(best))].T),
        )

    @property
    def settings(self) -> tuple[dict[str, float], ...]:
        """Penalty chosen for each property."""
        return tuple({"penalty": penalty} for penalty in self.penalties)

    @property
    def num_features(self) -> int:
        """Number of features, `F`."""
        return len(self.mean)

    def predict(self, features: Values) -> Tensor:
        """Predict the properties of networks.

        Args:
            features: `[M, F]`, from the same embedding as in [`fit`].

        Returns:
            `[M, T]` float64.

        Raises:
            ValueError: If the number of features differs from the fitted one.
        """
        x = torch.as_tensor(features).double().cpu()
        check_features(x, self.num_features)
        return ((x - self.mean) / self.scale) @ self.weight + self.intercept

    def score(self, features: Values, targets: Values) -> list[float]:
        """Compute R2 of each property; arguments as in [`fit`].

        Raises:
            ValueError: If shapes do not fit, or all targets of a property are equal.
        """
        x, y = checked_pair(features, targets, "scored")
        if (y == y[:1]).all(dim=0).any():
            raise ValueError("R2 requires targets that vary, got a property with all targets equal")
        return r2_of_errors(self.predict(x) - y, y).tolist()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `probe.safetensors` and `probe.json` to `folder`; an unchanged earlier probe is replaced.

        Raises:
            FileExistsError: If `folder` holds something else, or modified files.
        """
        tensors = {name: getattr(self, name).contiguous() for name in ("mean", "scale", "weight", "intercept")}
        settings: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS}
        settings |= {MARGINS: [margin if math.isfinite(margin) else None for margin in self.margins]}
        with output_folder(folder, "ridge probe", replace=True) as partial:
            save_file(tensors, partial / TENSORS_FILE)
            (partial / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "RidgeProbe":
        """Load a probe that was saved with [`save_pretrained`].

        Raises:
            FileNotFoundError: If a file is missing.
            InvalidFileError: If the folder is incomplete, files were removed or changed afterwards, or files are
                damaged or inconsistent.
        """
        folder = Path(folder)
        check_finished(folder)
        if missing := [name for name in (TENSORS_FILE, SETTINGS_FILE) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"no probe in {folder}: {missing} missing; pass a folder from save_pretrained()")
        document = read_document(folder / SETTINGS_FILE, expected="the settings of a probe", remedy=AGAIN)
        settings: dict[str, Any] = {name: document[name].of_type(wanted) for name, wanted in SETTINGS.items()}
        if MARGINS in document.mapping():
            margins = document[MARGINS].of_type(tuple[float | None, ...])
            settings[MARGINS] = tuple(math.inf if margin is None else margin for margin in margins)
        if foreign := sorted(document.mapping().keys() - {*SETTINGS, MARGINS}):
            document.fail(f"fields among {', '.join([*SETTINGS, MARGINS])}", got=foreign)
        path = folder / TENSORS_FILE
        tensors = read_safetensors(path)
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        with reading(path, expected="the tensors of a probe", remedy=AGAIN):
            features, targets = found["weight"]
        shapes = {"mean": [features], "scale": [features], "weight": [features, targets], "intercept": [targets]}
        if found != shapes or len(settings["penalties"]) != targets:
            expected = f"tensors {shapes}, and {targets} penalties in {SETTINGS_FILE}"
            raise InvalidFileError(path, expected=expected, got=found, remedy=AGAIN)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float64 or not tensor.isfinite().all():
                raise InvalidFileError(path, field=name, expected="finite float64", got=tensor.dtype, remedy=AGAIN)
        return cls(**{**tensors, **settings})


def conformal_margins(errors: Tensor, level: float = LEVEL) -> tuple[float, ...]:
    """Half the widths of prediction intervals from errors on networks that the probe was not fitted to.

    Split conformal prediction: an interval of `prediction +- margin` contains the property of a new network with
    probability `level` at least, if the networks are exchangeable and independent of the probe (Vovk et al., 2005;
    Lei et al., 2018). The margin is the `ceil((V + 1) level)`-th smallest absolute error. Here, the same errors also
    choose the settings, and networks of a run resemble each other, so the share of test networks within the intervals
    is reported as well.

    Args:
        errors: `[V, T]`.
        level: Wanted share of new networks.

    Returns:
        One margin for each of the `T` properties; infinite if there are too few errors.
    """
    count = len(errors)
    place = math.ceil(round((count + 1) * level, 9))
    if place > count:
        return (math.inf,) * errors.shape[1]
    return tuple(errors.abs().sort(dim=0).values[place - 1].tolist())


def checked_splits(
    features: Values, targets: Values, validation_features: Values, validation_targets: Values
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and validation features `[M, F]` and targets `[M, T]`, in float64 on the CPU.

    Raises:
        ValueError: If shapes do not fit, or values are not finite.
    """
    train_x, train_y = checked_pair(features, targets, "training")
    valid_x, valid_y = checked_pair(validation_features, validation_targets, "validation")
    if train_x.shape[1] != valid_x.shape[1] or train_y.shape[1] != valid_y.shape[1]:
        raise ValueError(
            f"training has {train_x.shape[1]} features and {train_y.shape[1]} properties, validation "
            f"{valid_x.shape[1]} and {valid_y.shape[1]}; embed both splits the same way"
        )
    return train_x, train_y, valid_x, valid_y


def check_features(x: Tensor | np.ndarray, num_features: int) -> None:
    """Raise an error if the number of features differs from that of the fitted probe."""
    if x.ndim != 2 or x.shape[1] != num_features:
        raise ValueError(f"the probe was fitted on {num_features} features, got {list(x.shape)}; use the same pooling")


def check_choices(wanted: Tensor, penalties: Sequence[float], names: Sequence[str]) -> None:
    """Check penalties and names, and that the targets `[V, T]` for choosing penalties are not all equal."""
    if not len(penalties) or min(penalties) <= 0:
        raise ValueError(f"expected at least one penalty, all positive, got {list(penalties)}")
    if names and len(names) != wanted.shape[1]:
        raise ValueError(f"expected one name for each of {wanted.shape[1]} properties, got {len(names)} names")
    if constant := (wanted == wanted[:1]).all(dim=0).nonzero().flatten().tolist():
        raise ValueError(
            f"the validation targets of properties {[names[i] if names else i for i in constant]} are all equal, so "
            "no penalty can be chosen; use more validation networks, or leave the property out"
        )


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[F]` of features `[M, F]`; 1 where a feature is constant."""
    mean, scale = x.mean(dim=0), x.std(dim=0, unbiased=False)
    return mean, torch.where(scale > 1e-12 * mean.abs(), scale, 1.0)


def checked_pair(features: Values, targets: Values, which: str) -> tuple[Tensor, Tensor]:
    """Check features `[M, F]` and targets `[M, T]` and convert them to float64."""
    x, y = (torch.as_tensor(values).double().cpu() for values in (features, targets))
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in (*x.shape, *y.shape):
        raise ValueError(
            f"expected {which} features [M, F] and targets [M] or [M, T] of at least one network, got "
            f"{list(x.shape)} and {list(y.shape)}"
        )
    for name, values in (("features", x), ("targets", y)):
        if bad := (~values.isfinite().all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"{which} {name} are not finite for networks {bad[:10]}; leave these networks out")
    return x, y


class RidgePath:
    """Ridge solutions for all penalties, largest first, from one eigendecomposition."""

    def __init__(self, features: Tensor, targets: Tensor, penalties: Sequence[float]) -> None:
        self.penalties = torch.tensor(sorted(penalties, reverse=True), dtype=torch.float64)  # [P]
        self.mean, self.scale = _moments(features)
        self.intercept = targets.mean(dim=0)
        x, y = (features - self.mean) / self.scale, targets - self.intercept
        num_networks, num_features = x.shape
        self.dual = num_features > num_networks
        gram = (x @ x.T if self.dual else x.T @ x) / num_networks
        values, vectors = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0)  # rounding
        right_side = (y if self.dual else x.T @ y) / num_networks
        self.coordinates = vectors.T @ right_side  # [r, T]
        self.basis = x.T @ vectors if self.dual else vectors  # [F, r]
        self.columns = vectors if self.dual else x @ vectors  # [M, r]
        self.y = y

    def predict(self, features: Tensor) -> Tensor:
        """Predict `[P, V, T]` from features `[V, F]`."""
        shrunk = self.coordinates / (self.values + self.penalties[:, None])[..., None]  # [P, r, T]
        return ((features - self.mean) / self.scale @ self.basis) @ shrunk + self.intercept

    def weights(self, penalties: Tensor) -> Tensor:
        """Weights `[F, T]` for one penalty per property."""
        return self.basis @ (self.coordinates / (self.values[:, None] + penalties))

    def left_out_errors(self, members: Tensor) -> Tensor:
        """Errors (prediction minus target) of every network when its run `[M]` is left out: `[P, M, T]`."""
        num_networks = len(self.columns)
        shrink = 1 / (self.values + self.penalties[:, None])  # [P, r]
        weights = shrink * self.values if self.dual else shrink / num_networks  # H = columns diag(weights) columns^T
        residuals = self.y - self.columns @ (weights[..., None] * (self.columns.T @ self.y))  # [P, M, T]
        errors = torch.empty_like(residuals)
        sizes = members.bincount()
        order = members.argsort(stable=True).split(sizes.tolist())
        for size in sizes.unique().tolist():  # runs of the same length are solved together
            places = torch.stack([run for run in order if len(run) == size])  # [G, s]
            of_runs = self.columns[places]  # [G, s, r]
            for index, weight in enumerate(weights):
                hat = (of_runs * weight) @ of_runs.mT + 1 / num_networks  # [G, s, s]
                left = torch.eye(size, dtype=hat.dtype) - hat
                errors[index, places] = -torch.linalg.solve(left, residuals[index, places])
        return errors
