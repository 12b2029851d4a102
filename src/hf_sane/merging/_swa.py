"""Stochastic weight averaging: one network from the end of one training run."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.networks._batchnorm import condition_batch_norm
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._tasks import LabelledData
from hf_sane.networks._training import train_stacked

SWAKind = Literal["constant", "cyclical"]
SEED_STEP = 1_000_003  # between the seeds of image orders in consecutive phases


@dataclass(frozen=True, slots=True)
class SWASchedule:
    """When to average, and at what learning rate.

    Izmailov et al. 2018 (arXiv:1803.05407), section 3.1. Constant: one learning rate, an average after every cycle.
    Cyclical: within each cycle of `c` steps the rate falls linearly, `a(i) = (1 - t) a_1 + t a_2` with
    `t = (mod(i - 1, c) + 1) / c`, and the weights join the average at its end, where it is lowest.

    Attributes:
        start_step: Number of optimizer steps before averaging starts, >= 0.
        cycle_steps: Steps per cycle, `c` >= 1.
        learning_rate: `a_1` > 0, of every step (constant) or of the start of a cycle.
        kind: `"constant"` or `"cyclical"`.
        final_learning_rate: `a_2`, of the end of a cycle, in (0, `learning_rate`]; a hundredth of `learning_rate` if
            `None`. Only for the cyclical schedule.

    Raises:
        ValueError: If a value is out of range.
    """

    start_step: int
    cycle_steps: int
    learning_rate: float
    kind: SWAKind = "constant"
    final_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.cycle_steps < 1:
            raise ValueError(
                f"expected start_step >= 0 and cycle_steps >= 1, got {self.start_step}, {self.cycle_steps}"
            )
        if self.kind not in ("constant", "cyclical"):
            raise ValueError(f"expected the schedule 'constant' or 'cyclical', got {self.kind!r}")
        last = self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        if not 0 < last <= self.learning_rate < math.inf:
            raise ValueError(
                f"expected 0 < final_learning_rate <= learning_rate, got {self.final_learning_rate} and "
                f"{self.learning_rate}"
            )
        if self.kind == "constant" and self.final_learning_rate is not None:
            raise ValueError(
                "a constant schedule has one learning rate; leave final_learning_rate out, or use 'cyclical'"
            )

    def rate(self, step: int) -> float | None:
        """Learning rate of optimizer step `step` (from 1); `None` before averaging starts."""
        if step <= self.start_step:
            return None
        if self.kind == "constant":
            return self.learning_rate
        last = 0.01 * self.learning_rate if self.final_learning_rate is None else self.final_learning_rate
        share = ((step - self.start_step - 1) % self.cycle_steps + 1) / self.cycle_steps
        return (1 - share) * self.learning_rate + share * last

    def averages_after(self, step: int) -> bool:
        """Whether the weights join the average after `step` steps."""
        return step > self.start_step and (step - self.start_step) % self.cycle_steps == 0


class WeightAverager:
    """Averages weights inside any training loop, with PyTorch's `AveragedModel` underneath.

    Call [`step`] once after every optimizer step (and after the step of the loop's own scheduler, which is overridden
    once averaging has started), and [`finish`] at the end.

    Args:
        model: Model in training, which is not changed.
        optimizer: Optimizer of the loop; its learning rates are set once averaging has started.
        schedule: When to average, and at what learning rate.

    Attributes:
        averaged: The running average; initially a copy of `model`.
        steps: Number of optimizer steps so far.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, schedule: SWASchedule) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.averaged = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
        self.steps = 0
        self._set_rate(1)

    @property
    def num_averaged(self) -> int:
        """Number of networks in the average so far."""
        return int(self.averaged.n_averaged)

    def step(self) -> None:
        """Count an optimizer step; average, and set the learning rate of the next step."""
        self.steps += 1
        if self.schedule.averages_after(self.steps):
            self.averaged.update_parameters(self.model)
        self._set_rate(self.steps + 1)

    def finish(
        self, batches: Iterable[Any] | None = None, *, inputs_of: Callable[[Any], Tensor] | None = None
    ) -> nn.Module:
        """The averaged network, with re-estimated batch-norm statistics.

        The averaged weights give different activations than the individual networks, so running statistics are
        re-estimated by one pass over training data with PyTorch's `update_bn`.

        Args:
            batches: Training data; required if the model has batch norm with running statistics.
            inputs_of: Function that extracts the model's inputs from a batch; if `None`, batches are tensors, or lists
                or tuples that start with one.

        Returns:
            A module of the class of the model, in evaluation mode.

        Raises:
            RuntimeError: If nothing has been averaged yet.
            ValueError: If the model has batch norm, and there is no data or no batch.
        """
        if not self.num_averaged:
            raise RuntimeError(
                f"nothing has been averaged in {self.steps} steps; averaging starts after "
                f"{self.schedule.start_step} and takes {self.schedule.cycle_steps} more for the first network"
            )
        averaged: nn.Module = self.averaged.module
        statistics = [buffer for name, buffer in averaged.named_buffers() if name.endswith("num_batches_tracked")]
        if statistics:
            if batches is None:
                raise ValueError(
                    "the averaged network has batch norm; pass training batches to re-estimate its statistics"
                )
            update_bn(batches if inputs_of is None else map(inputs_of, batches), averaged)
            if not all(buffer > 0 for buffer in statistics):
                raise ValueError(
                    "there are no batches from which to re-estimate batch-norm statistics; pass training data"
                )
        return averaged.eval()

    def _set_rate(self, step: int) -> None:
        rate = self.schedule.rate(step)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate


@dataclass(frozen=True, slots=True)
class SWAResult:
    """Networks after SWA, and the same networks without it.

    Attributes:
        averaged: `M` averages, batch-norm statistics re-estimated.
        last: The last weights of the same runs.
        num_averaged: Number of networks in each average.
    """

    averaged: StackedNetworks
    last: StackedNetworks
    num_averaged: int


class StackAverage:
    """Running average of stacked networks along their training.

    Args:
        config: Their architecture, or a module of that architecture.
    """

    def __init__(self, config: ZooConfig | nn.Module) -> None:
        self.config = config
        self.tensors: dict[str, Tensor] = {}
        self.count = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the weights `{name: [M, *shape]}` of all networks; of integers, the last are kept."""
        floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        if self.count:
            own, new = ([known[name] for name in floating] for known in (self.tensors, tensors))
            get_swa_multi_avg_fn()(own, new, torch.tensor(self.count))
            self.tensors |= {name: tensor for name, tensor in tensors.items() if name not in floating}
        else:
            self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.count += 1

    def finish(
        self, data: LabelledData, *, num_batches: int = 32, batch_size: int = 32, seed: int = 0
    ) -> StackedNetworks:
        """The averages, with batch-norm statistics re-estimated on training data."""
        return condition_batch_norm(
            StackedNetworks(self.config, self.tensors),
            data.split("train")[0],
            num_batches=num_batches,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(seed),
        )


def train_stacked_swa(
    networks: StackedNetworks,
    data: LabelledData,
    hyper_parameters: HyperParameters,
    *,
    cycles: int,
    cycle_epochs: int = 1,
    kind: SWAKind = "constant",
    batch_size: int = 32,
    num_batches: int = 32,
) -> SWAResult:
    """Continue many training runs of a zoo at once, and average each along the way.

    Constant: one run of `cycles * cycle_epochs` epochs at the learning rates of `hyper_parameters`, averaged every
    `cycle_epochs`. Cyclical: each cycle is a separate one-cycle schedule with reset optimizer moments, averaged at its
    end, where the rate is lowest.

    Args:
        networks: Trained networks to continue from. Not changed.
        data: Images or texts; the training split is also used to re-estimate batch-norm statistics.
        hyper_parameters: One entry per network.
        cycles: Number of networks per average, >= 2.
        cycle_epochs: Number of epochs between them.
        kind: `"constant"` or `"cyclical"`.
        batch_size: Batch size of training and of the re-estimation.
        num_batches: Number of batches of the re-estimation.

    Raises:
        ValueError: If there are fewer than two cycles, the schedule is unknown, or it is cyclical and runs see only a
            part of the images; also as in `train_stacked`.
    """
    if cycles < 2 or cycle_epochs < 1 or kind not in ("constant", "cyclical"):
        raise ValueError(
            f"expected cycles >= 2, cycle_epochs >= 1 and the schedule 'constant' or 'cyclical', got {cycles}, "
            f"{cycle_epochs}, {kind!r}"
        )
    if kind == "cyclical" and min(hyper_parameters.data_fractions) < 1:
        raise ValueError(
            f"cycles draw their own images, but runs see shares of {min(hyper_parameters.data_fractions)} of them "
            "only; use the constant schedule"
        )
    average, last = StackAverage(networks.config), networks.tensors
    for last in _cycle_ends(networks, data, hyper_parameters, cycles, cycle_epochs, kind, batch_size):
        average.add(last)
    means = average.finish(data, num_batches=num_batches, batch_size=batch_size, seed=hyper_parameters.seeds[0])
    return SWAResult(means, StackedNetworks(networks.config, last), cycles)


def _cycle_ends(
    networks: StackedNetworks,
    data: LabelledData,
    hyper_parameters: HyperParameters,
    cycles: int,
    cycle_epochs: int,
    kind: SWAKind,
    batch_size: int,
) -> Iterable[dict[str, Tensor]]:
    """Weights `{name: [M, *shape]}` at the end of every cycle."""
    if kind == "constant":
        ends = range(cycle_epochs, cycles * cycle_epochs + 1, cycle_epochs)
        for snapshot in train_stacked(
            networks.config,
            networks.tensors,
            data,
            hyper_parameters,
            epochs=cycles * cycle_epochs,
            keep_epochs=ends,
            batch_size=batch_size,
        ):
            yield snapshot.tensors
        return
    tensors = networks.tensors
    for cycle in range(cycles):
        # Each cycle has a new order of images; its seed would also draw another subset of them.
        seeds = [seed + SEED_STEP * cycle for seed in hyper_parameters.seeds]
        settings = replace(hyper_parameters, seeds=seeds)
        (snapshot,) = train_stacked(
            networks.config,
            tensors,
            data,
            settings,
            epochs=cycle_epochs,
            batch_size=batch_size,
            schedule="one_cycle",
        )
        tensors = snapshot.tensors
        yield tensors
