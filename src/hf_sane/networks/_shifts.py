"""Shifts of training images, with one composition for each child of a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _either_way(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda generator: float(generator.choice([-1, 1]) * generator.uniform(low, high))


def _between(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda generator: float(generator.uniform(low, high))


# Distribution of the strength of each shift; none is so weak that it cannot be seen.
STRENGTHS: dict[str, Callable[[np.random.Generator], float]] = {
    "rotation": _either_way(15.0, 60.0),
    "scale": lambda generator: float(2.0 ** _either_way(0.25, 0.6)(generator)),
    "shear": _either_way(0.15, 0.5),
    "blur": _between(0.03, 0.07),
    "contrast": _between(0.15, 0.6),
}
KINDS = (*STRENGTHS, "classes")
UNSHIFTED = "none"  # combination of an ancestor
CLASS_SHARES = (0.3, 0.7)  # range of the share of classes that a network keeps
LEAST_CLASSES = 2  # that a network keeps
LEAST_KINDS = 3  # fewer have too few combinations to hold some out


@dataclass(frozen=True, slots=True)
class Shift:
    """Shift of the images of one network, applied in the order of the fields; the defaults change nothing.

    Attributes:
        rotation: Degrees, counterclockwise.
        scale: Factor of the size.
        shear: Horizontal shift per vertical distance.
        blur: Standard deviation of a Gaussian, as a share of the width.
        contrast: Factor of the deviations from the mean of an image.
        classes: Classes that the network sees; `None` for all.
    """

    rotation: float = 0.0
    scale: float = 1.0
    shear: float = 0.0
    blur: float = 0.0
    contrast: float = 1.0
    classes: tuple[int, ...] | None = None

    @classmethod
    def draw(cls, kinds: Sequence[str], labels: Sequence[int], generator: np.random.Generator) -> Self:
        """Draw a combination of one or more kinds, with equal probabilities, and the strength of each.

        Args:
            kinds: Names in `KINDS`.
            labels: Classes to choose from.
            generator: Source of randomness.

        Raises:
            ValueError: If there are too few classes to omit some.
        """
        if "classes" in kinds and len(labels) <= LEAST_CLASSES:
            raise ValueError(
                f"expected more than {LEAST_CLASSES} classes to omit some, got {len(labels)}; remove 'classes' from "
                "the shifts"
            )
        ordered = [kind for kind in KINDS if kind in kinds]
        number = int(generator.integers(1, 2 ** len(ordered)))
        chosen = [kind for bit, kind in enumerate(ordered) if number >> bit & 1]
        drawn: dict[str, Any] = {kind: STRENGTHS[kind](generator) for kind in chosen if kind in STRENGTHS}
        if "classes" in chosen:
            low, high = (round(share * len(labels)) for share in CLASS_SHARES)
            count = int(generator.integers(max(LEAST_CLASSES, low), max(LEAST_CLASSES, high) + 1))
            drawn["classes"] = tuple(sorted(generator.choice(labels, count, replace=False).tolist()))
        return cls(**drawn)

    @property
    def combination(self) -> str:
        """Names of the shifts, such as `"rotation+blur"`."""
        chosen = [kind for kind in KINDS if getattr(self, kind) != getattr(UNCHANGED, kind)]
        return "+".join(chosen) or UNSHIFTED

    @property
    def is_single(self) -> bool:
        """Whether there is at most one shift."""
        return "+" not in self.combination

    def properties(self) -> dict[str, Any]:
        """Columns of a zoo."""
        strengths = {f"shift_{kind}": getattr(self, kind) for kind in STRENGTHS}
        classes = None if self.classes is None else " ".join(map(str, self.classes))
        return {"combination": self.combination, **strengths, "shift_classes": classes}


UNCHANGED = Shift()


class StackedShifts:
    """Shifts of `m` networks, applied to all of their images together.

    Args:
        shifts: One per network.
        height: Height of the images.
        width: Width of the images.
        device: Device of the images.
    """

    def __init__(self, shifts: Sequence[Shift], height: int, width: int, device: torch.device | None = None) -> None:
        self.shifts = tuple(shifts)
        self.size, self.device = (height, width), device
        inverse = torch.tensor([_inverse(shift) for shift in shifts], device=device)
        self.grids = F.affine_grid(inverse, [len(self.shifts), 1, height, width], align_corners=False)
        self.blurs = [self._blur(length) for length in self.size]
        contrasts = [shift.contrast for shift in self.shifts]
        self.contrasts = torch.tensor(contrasts, device=device).view(-1, 1, 1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Shift images `[m, B, C, H, W]`, or `[B, C, H, W]` for all networks, to `[m, B, C, H, W]`.

        Pixels outside an image repeat its border.
        """
        if images.ndim == 4:
            images = images.expand(len(self.shifts), *images.shape)
        # As channels, the images of a network share its grid.
        flat = F.grid_sample(images.flatten(1, 2), self.grids, padding_mode="border", align_corners=False)
        vertical, horizontal = self.blurs
        blurred = (vertical.unsqueeze(1) @ flat @ horizontal.unsqueeze(1).mT).view(images.shape)
        mean = blurred.mean(dim=(2, 3, 4), keepdim=True)
        return torch.addcmul(mean, self.contrasts, blurred - mean)

    def select(self, rows: Sequence[int]) -> "StackedShifts":
        """The shifts of some networks."""
        return StackedShifts([self.shifts[row] for row in rows], *self.size, self.device)

    def sees(self, labels: Tensor) -> Tensor:
        """Whether each network is trained on the classes of examples with labels `[n]`: bool `[m, n]`."""
        every = torch.ones_like(labels, dtype=torch.bool)
        chosen = [
            every if shift.classes is None else torch.isin(labels, torch.tensor(shift.classes, device=labels.device))
            for shift in self.shifts
        ]
        return torch.stack(chosen)

    def _blur(self, length: int) -> Tensor:
        """Gaussian blur along an axis as matrices `[m, length, length]`, whose rows add up to one at borders, too."""
        distances = torch.arange(length).view(-1, 1) - torch.arange(length)
        stds = torch.tensor([max(shift.blur * self.size[1], 1e-6) for shift in self.shifts]).view(-1, 1, 1)
        return (-0.5 * (distances / stds).square()).softmax(dim=2).to(self.device)


def _inverse(shift: Shift) -> list[list[float]]:
    """Map from pixels of the shifted image to the original: the inverse of rotation, scale and shear, `[2, 3]`."""
    angle = math.radians(shift.rotation)
    # Row indices increase downwards, which reverses the direction of rotations.
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    forward = np.array([[1.0, shift.shear], [0.0, 1.0]]) @ (shift.scale * rotation)
    return np.hstack([np.linalg.inv(forward), np.zeros((2, 1))]).tolist()
