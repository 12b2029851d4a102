"""Implicit networks of images (SIREN): a network maps the position of a pixel to its value; its weights are the image.

Many are fitted at once, in a stack, with gradients written out: for networks of a thousand weights, that takes a
fraction of the time of automatic differentiation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hf_sane.core._layout import Layout
from hf_sane.networks._modules import ModuleArchitecture

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
STACK = 16  # networks whose activations fit the cache
LAST_RATE = 0.05  # share of the learning rate that is left at the last step


class SIREN(nn.Module):
    """A perceptron with sines, after Sitzmann et al. 2020 (arXiv:2006.09661): `sin(frequency (W x + b))`.

    Args:
        hidden_sizes: Widths of the hidden layers.
        num_channels: Values of a pixel.
        num_inputs: Coordinates of a pixel.
        frequency: Factor inside all sines.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (32, 32),
        num_channels: int = 1,
        num_inputs: int = 2,
        frequency: float = 30.0,
    ) -> None:
        super().__init__()
        widths = (num_inputs, *hidden_sizes)
        self.frequency = frequency
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], num_channels)
        for index, layer in enumerate([*self.hidden, self.output]):
            bound = 1 / layer.in_features if index == 0 else math.sqrt(6 / layer.in_features) / frequency
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, positions: Tensor) -> Tensor:
        """Values `[..., C]` at positions `[..., 2]` in [-1, 1]."""
        for layer in self.hidden:
            positions = torch.sin(self.frequency * layer(positions))
        return self.output(positions)


def pixel_positions(height: int, width: int) -> Tensor:
    """Centres of the pixels of an image, row by row: `[height * width, 2]` (x, y) from -1 to 1."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def starting_fields(make: Callable[[], nn.Module], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Newly initialised networks, one per seed: `{name: [M, *shape]}`; the global random state is not changed."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            states.append(make().state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


@torch.no_grad()
def fit_fields(
    start: Mapping[str, Tensor],
    positions: Tensor,
    values: Tensor,
    *,
    steps: int,
    learning_rate: float,
    batch_pixels: int | None = None,
    frequency: float = 30.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Fit one SIREN to each image, by Adam on the mean squared error, with a learning rate that falls as a cosine.

    Args:
        start: Tensors of the networks before, `{name: [M, *shape]}`, as from [`starting_fields`].
        positions: Positions of the pixels, `[P, 2]`.
        values: Their values in each image, `[M, P, C]`.
        steps: Number of steps.
        learning_rate: Learning rate at the first step.
        batch_pixels: Pixels of each step, drawn anew and the same for all networks; all if `None`.
        frequency: Factor inside the sines.
        seed: Random seed for the pixels.

    Returns:
        Tensors of the fitted networks; those of an image do not depend on the other images.
    """
    parts = []
    for rows in torch.arange(len(values)).split(STACK):
        stack, own = _Stack({name: tensor[rows] for name, tensor in start.items()}, frequency), values[rows]
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            chosen: Any = slice(None)
            if batch_pixels is not None and batch_pixels < len(positions):
                chosen = torch.randperm(len(positions), generator=generator)[:batch_pixels]
            gradient = stack.gradients(positions[chosen], own[:, chosen])
            share = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
            stack.update(gradient, learning_rate * share)
        parts.append(stack.tensors)
    return {name: torch.cat([part[name] for part in parts]) for name in start}


@torch.no_grad()
def field_images(tensors: Mapping[str, Tensor], positions: Tensor, *, frequency: float = 30.0) -> Tensor:
    """Values `[M, P, C]` of networks at positions `[P, 2]`."""
    parts = []
    for rows in torch.arange(len(next(iter(tensors.values())))).split(STACK):
        parts.append(_Stack({name: tensor[rows] for name, tensor in tensors.items()}, frequency).run(positions)[0])
    return torch.cat(parts)


def peak_signal_to_noise(found: Tensor, values: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `[M]` in dB of images `[M, P, C]` with values in [0, 1]."""
    return -10 * (found - values).square().mean(dim=(1, 2)).log10()


class _Stack:
    """Networks in training, whose parameters form a matrix `[m, P]` that few operations update."""

    def __init__(self, tensors: Mapping[str, Tensor], frequency: float) -> None:
        self.frequency = frequency
        self.parameters = torch.cat([tensor.flatten(1) for tensor in tensors.values()], dim=1)
        parts = self.parameters.split([tensor[0].numel() for tensor in tensors.values()], dim=1)
        self.tensors = {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
        depth = sum(name.startswith("hidden.") and name.endswith(".weight") for name in tensors)
        self.layers = [f"hidden.{i}" for i in range(depth)]
        self.done = 0
        self.first, self.second = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)

    def run(self, positions: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs `[m, P, C]`, arguments of the sines and inputs of the layers, `[m, P, width]` each."""
        inputs = [positions.expand(len(self.parameters), -1, -1)]
        arguments = []
        for name in self.layers:
            weight, bias = (self.frequency * self.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
            arguments.append(torch.baddbmm(bias.unsqueeze(1), inputs[-1], weight.mT))
            inputs.append(arguments[-1].sin())
        bias = self.tensors["output.bias"].unsqueeze(1)
        return torch.baddbmm(bias, inputs[-1], self.tensors["output.weight"].mT), arguments, inputs

    def gradients(self, positions: Tensor, values: Tensor) -> Tensor:
        """Gradients of the mean squared error of every network, `[m, P]`."""
        output, arguments, inputs = self.run(positions)
        error = (output - values) * (2 / values[0].numel())
        found = {}
        for name in ("output", *reversed(self.layers)):
            found[f"{name}.weight"], found[f"{name}.bias"] = error.mT @ inputs.pop(), error.sum(dim=1)
            if arguments:
                weight = self.frequency * self.tensors[f"{name}.weight"]
                error = (error @ weight).mul_(arguments.pop().cos_())
        return torch.cat([found[name].flatten(1) for name in self.tensors], dim=1)

    def update(self, gradient: Tensor, learning_rate: float) -> None:
        """One step of Adam."""
        self.done += 1
        first_bias, second_bias = (1 - beta**self.done for beta in ADAM_BETAS)
        self.first.lerp_(gradient, 1 - ADAM_BETAS[0])
        self.second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
        scale = self.second.sqrt().div_(math.sqrt(second_bias)).add_(ADAM_EPSILON)
        self.parameters.addcdiv_(self.first, scale, value=-learning_rate / first_bias)


def field_architecture(settings: Mapping[str, Any], layout: Layout) -> ModuleArchitecture | None:
    """The architecture of implicit networks, from their settings in a zoo; `None` for other networks.

    Args:
        settings: Name of the class and its arguments, as in the facts of a zoo.
        layout: Layout of the networks.
    """
    if settings.get("architectures") != [SIREN.__name__]:
        return None
    arguments = dict(settings.get("module_args") or {})
    return None if not arguments else _matching(siren_architecture(arguments), layout)


def siren_architecture(arguments: Mapping[str, Any]) -> ModuleArchitecture:
    """The architecture of SIRENs with these arguments."""

    def make() -> SIREN:
        return SIREN(**arguments)

    with torch.random.fork_rng(devices=[]):
        structure = make().eval()
    example = torch.zeros(1, arguments.get("num_inputs", 2))
    return ModuleArchitecture(SIREN.__name__, make, structure, (example,), arguments)


def _matching(architecture: ModuleArchitecture, layout: Layout) -> ModuleArchitecture | None:
    shapes = {(tensor.name, tuple(tensor.shape)) for layer in layout.layers for tensor in layer.tensors}
    return architecture if architecture.has(frozenset(shapes)) else None
