"""A loss on the prediction of properties of training networks from latents by ridge regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._dataset import ZooSplit

PENALTY = 0.1  # ridge penalty in units of the mean sum of squares of a centred feature
MIN_SPREAD = 1e-6  # added to variances, for batches with a single value


def left_out_error(features: Tensor, targets: Tensor, *, penalty: float = PENALTY) -> Tensor:
    """Leave-one-out error of a ridge probe, relative to the error of predicting the mean of the other windows.

    `sum_i |y_i - y_hat_{-i}(x_i)|^2 / sum_i |y_i - y_bar_{-i}|^2` with `y_hat_{-i}` fitted without window i and with
    an intercept. The exact closed form is `y_i - y_hat_{-i}(x_i) = (y - H y)_i / (1 - H_ii)` with the hat matrix `H`
    (Allen 1974, PRESS). The probe has no parameters of its own, so nothing has to be stored to resume.

    Args:
        features: `[B, F]` float; their scale does not matter.
        targets: `[B, P]` float, without gradient.
        penalty: Ridge penalty, in units of the mean sum of squares of a centred feature.

    Returns:
        Scalar float32, differentiable with respect to `features`: 0 for perfect predictions, about 1 for uninformative
        features.

    Raises:
        ValueError: If there are fewer than three windows, or the numbers of windows differ.
    """
    count = len(features)
    if count < 3 or len(targets) != count:
        raise ValueError(
            f"expected features and targets of the same windows, at least 3, got {count} and {len(targets)}"
        )
    x, y = features.float(), targets.float()
    x, y = x - x.mean(0), y - y.mean(0)
    x = x / (x.square().sum(0).mean() + MIN_SPREAD**2).sqrt()  # constant features become zero
    solved = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], device=x.device), x.T)  # [F, B]
    left = 1 - 1 / count - (x * solved.T).sum(1)
    errors = ((y - x @ (solved @ y)) / left[:, None]).square().sum(0)
    spread = (y * count / (count - 1)).square().sum(0)
    return (errors / spread.clamp_min(MIN_SPREAD)).mean()


@dataclass(frozen=True)
class SupervisedLoss:
    """Loss that makes properties of a network predictable from the mean latent of a window.

    Attributes:
        properties: `[M, P]` float32 standardised properties of all training networks, on the training device.
        weight: Factor of this loss, which is added to the other losses.
    """

    properties: Tensor
    weight: float

    @classmethod
    def from_arguments(
        cls, arguments: PretrainSettings, splits: Sequence[ZooSplit], device: torch.device
    ) -> "SupervisedLoss | None":
        """Set up the loss, or return `None` if `supervised_weight` is 0.

        Raises:
            ValueError: If a property is unknown for a training network, or equal for all.
            KeyError: If the zoos have no such column.
        """
        if arguments.supervised_weight == 0:
            return None
        columns = []
        for name in arguments.supervised_properties:
            values = np.concatenate([split.column(name) for split in splits])
            known = np.isfinite(values) if np.issubdtype(values.dtype, np.number) else np.zeros(len(values), bool)
            if not known.all() or np.ptp(values) == 0:
                raise ValueError(
                    "expected supervised_properties that are known for every training network and differ between "
                    f"networks, got {name}: {known.sum()} of {len(values)} are finite numbers, "
                    f"{len(set(values[known]))} of them different; leave it out"
                )
            columns.append(torch.from_numpy((values - values.mean()) / values.std()))
        return cls(torch.stack(columns, dim=1).float().to(device), arguments.supervised_weight)

    def term(self, latents: Tensor, attention_mask: Tensor, indices: Tensor) -> Tensor:
        """Weighted loss of one batch.

        Args:
            latents: `[B, W, Z]` of the first view, or `[B, L, Z]` of whole networks.
            attention_mask: `[B, W]`, nonzero at real tokens.
            indices: `[B]` int64, positions in the joined training splits.

        Returns:
            Scalar float32.
        """
        real = (attention_mask != 0)[..., None]
        if latents.shape[1] != real.shape[1]:
            real = real.new_ones(*latents.shape[:2], 1)  # latents of whole networks are not padded
        mean = (latents.float() * real).sum(1) / real.sum(1).clamp_min(1)
        return self.weight * left_out_error(mean, self.properties[indices])
