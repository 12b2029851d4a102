"""Train many networks at once, each with its own hyper-parameters, for zoos and for fine-tuning."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import CNNConfig, MLPConfig, ZooConfig
from hf_sane.networks._hyperparameters import HyperParameters, Optimizer, data_subset, image_order, one_cycle_factor
from hf_sane.networks._images import ImageData
from hf_sane.networks._shifts import Shift, StackedShifts
from hf_sane.networks._stacked import (
    Forward,
    StackedNetworks,
    call_arguments,
    check_logits,
    cross_entropy,
    empty_model,
    logits_of,
    running_on,
    stack_size,
    stacked_forward,
    tied_tensors,
)
from hf_sane.networks._tasks import LabelledData
from hf_sane.networks._threads import map_on_threads
from hf_sane.records._progress import tracked

Schedule = Literal["constant", "one_cycle"]
StateCallback = Callable[[int, Callable[[], dict[str, Tensor]]], None]
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
DROPOUT_STREAM = 2**32 + 1  # larger than any epoch; seeds what is drawn for a whole run


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All networks after one epoch, on the CPU.

    Attributes:
        epoch: Number of trained epochs; 0 is the initialisation.
        tensors: `{name: [M, *shape]}`.
        train_loss: `[M]` mean cross-entropy over the training images that a network may see (its data subset).
        train_accuracy: `[M]`, over the same images.
        validation_loss: `[M]`.
        validation_accuracy: `[M]`.
        test_loss: `[M]`.
        test_accuracy: `[M]`.
    """

    epoch: int
    tensors: dict[str, Tensor]
    train_loss: Tensor
    train_accuracy: Tensor
    validation_loss: Tensor
    validation_accuracy: Tensor
    test_loss: Tensor
    test_accuracy: Tensor


def train_stacked(
    config: ZooConfig | nn.Module,
    tensors: Mapping[str, Tensor],
    data: LabelledData,
    hyper_parameters: HyperParameters,
    *,
    epochs: int,
    keep_epochs: Iterable[int] | None = None,
    batch_size: int = 32,
    momentum: float = 0.9,
    schedule: Schedule = "constant",
    train_evaluation_limit: int | None = None,
    on_epoch: Callable[[int], None] | None = None,
    on_state: StateCallback | None = None,
    start: Mapping[str, Tensor] | None = None,
    generic: bool = False,
    shifts: Sequence[Shift] | None = None,
) -> Iterator[Snapshot]:
    """Train `M` networks and yield them at chosen epochs.

    Every network trains exactly as it would alone with `torch.optim.Adam` or `torch.optim.SGD`, with its own learning
    rate, weight decay, dropout, and order of images, which depends only on its seed. (Dropout masks are drawn jointly
    for networks that run together, so with dropout a network also depends on the others.)

    An epoch has `n // batch_size` updates for every network, where `n` is the number of all training images. A network
    with data fraction `f` sees only its own random subset of `round(f n)` images, `1 / f` times per epoch in different
    orders: less data, but not less training.

    Args:
        config: Architecture, or a module of that architecture (see `stacked_forward`).
        tensors: `{name: [M, *shape]}` to start from: new networks, or sampled ones for fine-tuning. Not changed.
        data: Images or texts; training runs on their device.
        hyper_parameters: One entry per network.
        epochs: Number of passes over the training images, >= 0.
        keep_epochs: Epochs to yield, in `[0, epochs]`, where 0 is the start; the last one if `None`.
        batch_size: Images per network and update.
        momentum: Momentum of SGD.
        schedule: `"constant"`, or `"one_cycle"` as in `torch.optim.lr_scheduler.OneCycleLR` (cosine, learning rate
            only).
        train_evaluation_limit: Measure training loss and accuracy on at most this many of the first training images.
        on_epoch: Called with the number of each finished epoch.
        on_state: Called after each epoch and its snapshot, with a function that returns the state from which training
            can continue, bit by bit.
        start: Such a state. Epochs up to it are neither trained nor yielded again.
        generic: Run under `torch.vmap` even if there is a faster implementation.
        shifts: What each network sees instead of the images, in training and evaluation; one per network.

    Yields:
        A [`Snapshot`] per epoch in `keep_epochs`, in ascending order.

    Raises:
        ValueError: If settings are out of range, the numbers of hyper-parameters and networks differ, or tensors or
            images do not fit the architecture.
    """
    networks = StackedNetworks(config, dict(tensors))
    keep = sorted({epochs} if keep_epochs is None else set(keep_epochs))
    limit = 1 if train_evaluation_limit is None else train_evaluation_limit
    if epochs < 0 or batch_size < 1 or not 0 <= momentum < 1 or limit < 1:
        raise ValueError(
            "expected epochs >= 0, batch_size >= 1, momentum in [0, 1) and train_evaluation_limit >= 1, got "
            f"{epochs}, {batch_size}, {momentum} and {train_evaluation_limit}"
        )
    if schedule not in ("constant", "one_cycle"):
        raise ValueError(f"expected schedule 'constant' or 'one_cycle', got {schedule!r}")
    if not keep or keep[0] < 0 or keep[-1] > epochs:
        raise ValueError(f"keep_epochs must be at least one epoch in [0, {epochs}], got {keep}")
    if len(hyper_parameters) != networks.num_models:
        raise ValueError(f"got {len(hyper_parameters)} hyper-parameters for {networks.num_models} networks")
    if shifts is not None and (len(shifts) != networks.num_models or not isinstance(data, ImageData)):
        raise ValueError(
            f"expected images, and a shift for each of {networks.num_models} networks, got {data.name} and "
            f"{len(shifts)} shifts"
        )
    if isinstance(config, ZooConfig):
        _check_images(config, data)
    run = _Run(networks, data, hyper_parameters, batch_size, momentum, schedule, epochs, generic, shifts)
    done = run.restore(start) if start is not None else -1
    return _snapshots(run, range(done + 1, epochs + 1), keep, train_evaluation_limit, on_epoch, on_state)


def _check_images(config: ZooConfig, data: LabelledData) -> None:
    if not isinstance(data, ImageData):
        raise ValueError(f"the networks take images, {data.name} holds texts; use networks that read texts")
    channels, size, classes = config.num_channels, getattr(config, "image_size", data.image_size), config.num_classes
    options = [f"--image-size {size}"] * (size != data.image_size)
    options += [f"--image-channels {channels}"] * (channels != data.num_channels)
    remedies = [f"convert the images ({' '.join(options)})"] if options else []
    remedies += [f"choose images of at most {classes} classes"] * (classes < data.num_classes)
    if remedies:
        raise ValueError(
            f"the networks expect {channels} channels of {size} pixels and {classes} classes, the images of "
            f"{data.name} have {data.num_channels}, {data.image_size} and {data.num_classes}; "
            f"{', and '.join(remedies)}"
        )


def trained_parameters(config: ZooConfig | nn.Module, data: LabelledData) -> list[str]:
    """Names of the parameters that training changes.

    For a module, these are the parameters that require gradients (all, if none does) and that its logits depend on.
    PyTorch's optimizers do not change the others either: not even weight decay acts on a second output head.

    Raises:
        ValueError: If a module cannot run on the data, or the number of its logits differs from that of classes.
    """
    if isinstance(config, ZooConfig):
        return [name for name, _ in empty_model(config).named_parameters()]
    inputs, kind = data.split("train")[0][:2], type(config).__name__
    module = copy.deepcopy(config).to(inputs.device).train()
    parameters = dict(module.named_parameters())
    trained = {name: each for name, each in parameters.items() if each.requires_grad} or parameters
    positional, named = call_arguments(inputs)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for parameter in trained.values():
            parameter.requires_grad_()
        with running_on(inputs, network=kind, data=data.name):
            logits = logits_of(module(*positional, **named))
        check_logits(logits, inputs, data.num_classes, network=kind, data=data.name)
        gradients = torch.autograd.grad(logits.sum(), list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None]


def _snapshots(
    run: "_Run",
    epochs: range,
    keep: list[int],
    train_limit: int | None,
    on_epoch: Callable[[int], None] | None,
    on_state: StateCallback | None,
) -> Iterator[Snapshot]:
    shows_bar = on_epoch is None  # otherwise the caller does, who has the number of groups
    for epoch in tracked(epochs, desc="training", unit="epoch", wanted=shows_bar):
        if epoch:
            run.train_epoch(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
        if epoch in keep:
            yield run.snapshot(epoch, train_limit)
        if on_state is not None:
            on_state(epoch, partial(run.state, epoch))


class _Run:
    """Networks in training, divided into stacks with the same optimizer that fit the cache."""

    def __init__(
        self,
        networks: StackedNetworks,
        data: LabelledData,
        hyper_parameters: HyperParameters,
        batch_size: int,
        momentum: float,
        schedule: Schedule,
        epochs: int,
        generic: bool,
        shifts: Sequence[Shift] | None,
    ) -> None:
        self.networks, self.data, self.epochs = networks, data, epochs
        self.inputs, self.labels = data.split("train")
        self.shifts = None
        if shifts is not None:
            height, width = self.inputs.shape[2:]
            self.shifts = StackedShifts(shifts, height, width, self.inputs.device)
        self.hyper_parameters = hyper_parameters
        self.batch_size = min(batch_size, len(self.inputs))
        self.steps = len(self.inputs) // self.batch_size
        self.schedule = schedule
        forward = stacked_forward(networks.config, generic=generic)
        # functional_call puts its tensors into the one module, so the generic way cannot run twice at a time.
        has_own_way = isinstance(networks.config, CNNConfig | MLPConfig) and not generic
        self.may_thread = has_own_way and self.inputs.device.type == "cpu"
        size = stack_size(networks.config, self.batch_size, self.inputs.device) or networks.num_models
        trained = trained_parameters(networks.config, data)
        self.stacks = []
        for optimizer in ("adam", "sgd"):
            rows = [i for i, name in enumerate(hyper_parameters.optimizers) if name == optimizer]
            for start in range(0, len(rows), size):
                chosen = rows[start : start + size]
                self.stacks.append(
                    _Stack(
                        networks, trained, data, hyper_parameters, chosen, forward, optimizer, momentum, self.shifts
                    )
                )

    def train_epoch(self, epoch: int) -> None:
        """Train every network for one epoch, stack by stack, so that each stack remains in the cache.

        On a CPU, stacks are distributed over Python threads, see [`map_on_threads`].
        """
        if not self.may_thread:
            for stack in self.stacks:
                self._train_stack(stack, epoch)
            return
        map_on_threads(partial(self._train_stack, epoch=epoch), self.stacks)

    def _train_stack(self, stack: "_Stack", epoch: int) -> None:
        order = stack.order(epoch, self.steps, self.batch_size)
        for step in range(self.steps):
            done = (epoch - 1) * self.steps + step
            factor = one_cycle_factor(done, self.epochs * self.steps) if self.schedule == "one_cycle" else 1.0
            stack.update(order[step], factor)

    def state(self, epoch: int) -> dict[str, Tensor]:
        """Everything that further training depends on: CPU tensors by name."""
        tensors = {"epoch": torch.tensor(epoch)}
        for number, stack in enumerate(self.stacks):
            tensors |= {f"{number}.{name}": tensor.detach().cpu().clone() for name, tensor in stack.state().items()}
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> int:
        """Restore a state from [`state`]; return its epoch."""
        for number, stack in enumerate(self.stacks):
            prefix = f"{number}."
            stack.restore({name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)})
        return int(state["epoch"])

    def snapshot(self, epoch: int, train_limit: int | None) -> Snapshot:
        """Evaluate all networks in their current state."""
        tensors = {name: torch.empty_like(tensor) for name, tensor in self.networks.tensors.items()}
        for stack in self.stacks:
            for name, value in stack.tensors().items():
                tensors[name][stack.rows] = value.detach().to(tensors[name].device)
        device = self.inputs.device
        current = StackedNetworks(self.networks.config, {name: tensor.to(device) for name, tensor in tensors.items()})
        measures = {}
        limit = min(train_limit or len(self.inputs), len(self.inputs))
        for split in ("train", "validation", "test"):
            inputs, labels = (part[: limit if split == "train" else None] for part in self.data.split(split))
            losses, correct = current.per_image(inputs, labels, self.shifts)
            seen = self._seen(limit).to(device) if split == "train" else self._judged(labels)
            measures[f"{split}_loss"] = _masked_mean(losses, seen)
            measures[f"{split}_accuracy"] = _masked_mean(correct.float(), seen)
        return Snapshot(
            epoch,
            {name: tensor.cpu() for name, tensor in tensors.items()},
            **{name: value.cpu() for name, value in measures.items()},
        )

    def _seen(self, limit: int) -> Tensor:
        """Which of the first `limit` training images each network may see: bool `[M, limit]`; all if none."""
        seen = torch.zeros(len(self.hyper_parameters), len(self.inputs), dtype=torch.bool)
        for i, (seed, fraction) in enumerate(
            zip(self.hyper_parameters.seeds, self.hyper_parameters.data_fractions, strict=True)
        ):
            shift = None if self.shifts is None else self.shifts.shifts[i]
            known = _of_classes(self.labels, shift)
            seen[i, known[data_subset(seed, len(known), fraction)]] = True
        seen = seen[:, :limit]
        return seen | ~seen.any(dim=1, keepdim=True)

    def _judged(self, labels: Tensor) -> Tensor:
        """Which examples each network is judged by, bool `[M or 1, n]`: those of its classes; all if none is."""
        if self.shifts is None:
            return torch.ones_like(labels, dtype=torch.bool).unsqueeze(0)
        seen = self.shifts.sees(labels)
        return seen | ~seen.any(dim=1, keepdim=True)


def _of_classes(labels: Tensor, shift: Shift | None) -> np.ndarray:
    """Positions of the examples whose classes a network sees, int64."""
    if shift is None or shift.classes is None:
        return np.arange(len(labels))
    return np.flatnonzero(np.isin(labels.cpu().numpy(), shift.classes))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # torch.where, since 0 * inf of a non-finite network must not spoil the mean.
    return torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1)


class _Stack:
    """Networks with the same optimizer, whose parameters form a matrix `[m, P]` that few operations update."""

    def __init__(
        self,
        networks: StackedNetworks,
        trained: Sequence[str],
        data: LabelledData,
        hyper_parameters: HyperParameters,
        rows: list[int],
        forward: Forward,
        optimizer: Optimizer,
        momentum: float,
        shifts: StackedShifts | None,
    ) -> None:
        self.shifts = None if shifts is None else shifts.select(rows)
        self.rows, self.forward, self.optimizer, self.momentum = rows, forward, optimizer, momentum
        self.inputs, self.labels = data.split("train")
        self.hyper_parameters = hyper_parameters.select(rows)
        device = self.inputs.device
        module = empty_model(networks.config) if isinstance(networks.config, ZooConfig) else networks.config
        start = {name: tensor[rows].detach().to(device, copy=True) for name, tensor in networks.tensors.items()}
        self.shapes = {name: start[name].shape for name in trained}
        self.widths = [start[name][0].numel() for name in trained]
        self.tied = {name: first for name, first in tied_tensors(module).items() if name in start}
        self.buffers = {name: tensor for name, tensor in start.items() if name not in {*self.shapes, *self.tied}}
        self.parameters = torch.cat([start[name].flatten(1) for name in trained], dim=1).requires_grad_()

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=self.parameters.dtype, device=device).unsqueeze(1)

        self.learning_rate = column(self.hyper_parameters.learning_rates)
        self.weight_decay = column(self.hyper_parameters.weight_decays)
        self.dropout = column(self.hyper_parameters.dropouts).squeeze(1)
        self.decays = bool((self.weight_decay > 0).any())
        self.moments = [torch.zeros_like(self.parameters) for _ in range(2 if optimizer == "adam" else 1)]
        self.generator = torch.Generator(device)
        self.generator.manual_seed(
            int(np.random.default_rng([*self.hyper_parameters.seeds, DROPOUT_STREAM]).integers(2**62))
        )
        self.done = 0

    def state(self) -> dict[str, Tensor]:
        """Parameters, moments, buffers, random state and number of updates."""
        moments = {f"moment.{i}": moment for i, moment in enumerate(self.moments)}
        buffers = {f"buffer.{name}": tensor for name, tensor in self.buffers.items()}
        rest = {"generator": self.generator.get_state(), "done": torch.tensor(self.done)}
        return {"parameters": self.parameters, **moments, **buffers, **rest}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state from [`state`]."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                if name not in ("generator", "done"):
                    tensor.copy_(state[name])
        self.generator.set_state(state["generator"])
        self.done = int(state["done"])

    def tensors(self) -> dict[str, Tensor]:
        """Views of the parameters, and the buffers."""
        parts = self.parameters.split(self.widths, dim=1)
        views = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        known = {**views, **self.buffers}
        return known | {name: known[first] for name, first in self.tied.items()}

    def order(self, epoch: int, steps: int, batch_size: int) -> Tensor:
        """Image indices of one epoch: int64 `[steps, m, B]`."""
        orders = []
        for i, (seed, fraction) in enumerate(
            zip(self.hyper_parameters.seeds, self.hyper_parameters.data_fractions, strict=True)
        ):
            known = _of_classes(self.labels, None if self.shifts is None else self.shifts.shifts[i])
            orders.append(known[image_order(seed, epoch, len(known), fraction, steps * batch_size)])
        stacked = torch.from_numpy(np.stack(orders)).view(len(orders), steps, batch_size)
        return stacked.transpose(0, 1).to(self.inputs.device)

    def update(self, index: Tensor, factor: float) -> None:
        """Update every network on its own batch, with image indices `[m, B]`."""
        inputs, labels = self.inputs[index], self.labels[index]
        if self.shifts is not None:
            inputs = self.shifts(inputs)
        loss = cross_entropy(self.forward(self.tensors(), inputs, self.dropout, self.generator), labels)
        (gradient,) = torch.autograd.grad(loss.sum(), self.parameters)
        with torch.no_grad():
            if self.decays:
                gradient = torch.addcmul(gradient, self.weight_decay, self.parameters)
            self.done += 1
            rate = self.learning_rate * factor
            if self.optimizer == "sgd":
                self.moments[0].mul_(self.momentum).add_(gradient)
                self.parameters.addcmul_(rate, self.moments[0], value=-1)
                return
            first, second = self.moments
            first.lerp_(gradient, 1 - ADAM_BETAS[0])
            second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
            scale = second.sqrt().div_(math.sqrt(1 - ADAM_BETAS[1] ** self.done)).add_(ADAM_EPSILON)
            self.parameters.addcmul_(rate, first / scale, value=-1 / (1 - ADAM_BETAS[0] ** self.done))
