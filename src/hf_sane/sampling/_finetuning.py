"""Fine-tune networks on images: a single one, all weights or a LoRA adapter, or the networks of several methods."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_sane.core._adapters import attach_lora, match_modules
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._hyperparameters import HyperParameters, image_order
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.records._extras import require_package
from hf_sane.records._progress import tracked
from hf_sane.records._settings import CheckedSettings, setting
from hf_sane.sampling._baselines import SCRATCH_SEED

if TYPE_CHECKING:
    from peft import PeftModel

EVALUATION_BATCH = 512
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(kw_only=True)
class StepSettings(CheckedSettings):
    """How to fine-tune a network, step by step.

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int = setting("Number of updates.", default=150, least=1)
    batch_size: int = setting("Images per update.", default=32, least=1)
    learning_rate: float = setting("Learning rate of Adam.", default=1e-3)
    weight_decay: float = setting("Weight decay of Adam, added to the gradient.", default=0.0)
    seed: int = setting("Random seed for the order of images.", default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def lora_targets(network: nn.Module, names: Sequence[str] | None = None) -> list[str]:
    """Layers of a network that can be adapted by LoRA.

    Args:
        network: The network.
        names: Names of layers, or endings of names; all linear and convolutional layers if `None`.

    Returns:
        Full names, in the order of the network.

    Raises:
        ValueError: If a name matches no layer, a layer is of another kind, or a convolution is grouped: the product of
            the LoRA factors mixes channels of all groups, so it cannot be merged into the weights.
    """
    kinds = (nn.Linear, nn.Conv2d)
    if names is None:
        found = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    else:
        found = match_modules(network, names)
    if not found:
        raise ValueError(f"expected linear or 2-d convolutional layers in {type(network).__name__}, found none")
    for name in found:
        layer = network.get_submodule(name)
        if not isinstance(layer, kinds):
            raise ValueError(f"LoRA needs linear or 2-d convolutional layers, {name} is a {type(layer).__name__}")
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise ValueError(
                f"{name} is a grouped convolution ({layer.groups} groups), into which LoRA cannot be merged; name the "
                "layers to adapt, without it"
            )
    return found


def add_network_lora(
    network: nn.Module, *, rank: int = 4, alpha: float = 8.0, targets: Sequence[str] | None = None
) -> "PeftModel":
    """Freeze a network and add LoRA factors to its layers; batch norms are trained and saved in full.

    In training mode, running statistics of batch norms change even if their weights are not trained, so an adapter
    without them would not restore the fine-tuned network.

    Args:
        network: Changed in place.
        rank: Rank of each pair of factors.
        alpha: Scale of their product: `alpha / rank`.
        targets: See [`lora_targets`].

    Returns:
        The network with its adapter.

    Raises:
        ValueError: If a layer cannot be adapted, or the rank is below 1.
    """
    require_package("peft", "LoRA")
    from peft import LoraConfig

    if rank < 1 or not alpha > 0:
        raise ValueError(f"expected rank >= 1 and alpha > 0, got {rank} and {alpha}")
    norms = [name for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=lora_targets(network, targets),
        modules_to_save=norms or None,
    )
    return attach_lora(network, config)


def finetune_network(
    network: nn.Module, data: ImageData, settings: StepSettings, *, report_at: Iterable[int] = ()
) -> dict[int, dict[str, float]]:
    """Train the trainable parameters of a network in place, with Adam and cross-entropy.

    Batches and updates equal those of `train_stacked` for a network with the same seed, so results are comparable.

    Args:
        network: Network that takes images and returns an output with `logits`; only the adapter of a `PeftModel` is
            trained. Afterwards it is in evaluation mode.
        data: Images, on the device of the network.
        settings: Steps, learning rate, seed.
        report_at: Numbers of steps after which to measure accuracy, in `[0, steps]`; the last step is always included.

    Returns:
        `{"validation_accuracy": a, "test_accuracy": b}` by number of steps.

    Raises:
        ValueError: If `report_at` is outside the run.
    """
    wanted = {*report_at, settings.steps}
    if min(wanted) < 0 or max(wanted) > settings.steps:
        raise ValueError(f"report_at must lie in [0, {settings.steps}], got {sorted(wanted)}")
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Batched kernels differ from plain ones only in rounding; plain ones are easier to trust.
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    found = {}
    for step in tracked(range(settings.steps + 1), desc="fine-tuning", unit="step"):
        if step in wanted:
            found[step] = {f"{name}_accuracy": accuracy(network, *data.split(name)) for name in ("validation", "test")}
        if step == settings.steps:
            break
        images, labels = _batch(data, settings, step)
        network.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images).logits, labels).backward()
        optimizer.step()
    network.eval()
    return found


def _batch(data: ImageData, settings: StepSettings, step: int) -> tuple[Tensor, Tensor]:
    count = len(data.train_images)
    size = min(settings.batch_size, count)
    per_epoch = count // size
    epoch, place = divmod(step, per_epoch)
    order = image_order(settings.seed, epoch + 1, count, 1.0, per_epoch * size)
    index = torch.from_numpy(order[place * size : (place + 1) * size])
    return data.train_images[index], data.train_labels[index]


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images `[n, C, H, W]` that a network in evaluation mode classifies as in `labels` `[n]`."""
    with modes_kept(network):
        network.eval()
        right = sum(
            int((network(part).logits.argmax(dim=1) == label).sum())
            for part, label in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        )
    return right / len(labels) if len(labels) else math.nan


def finetune_all(
    methods: Mapping[str, StackedNetworks],
    data: ImageData,
    hyper_parameters: Mapping[str, Any],
    *,
    epochs: int,
    seed: int = 0,
) -> dict[str, list[list[float]]]:
    """Fine-tune the networks of all methods together.

    Args:
        methods: Networks of one architecture, by method.
        data: Images.
        hyper_parameters: Learning rate, weight decay and optimizer, such as those of the zoo.
        epochs: Passes over the training images.
        seed: Random seed of the order of images.

    Returns:
        Test accuracies `[epochs + 1, networks]` by method; row 0 is before training.
    """
    counts = [networks.num_models for networks in methods.values()]
    first = next(iter(methods.values()))
    tensors = {n: torch.cat([networks.tensors[n] for networks in methods.values()]) for n in first.tensors}
    seeds = [SCRATCH_SEED + seed + i for count in counts for i in range(count)]
    curves: dict[str, list[list[float]]] = {name: [] for name in methods}
    for snapshot in train_stacked(
        first.config,
        tensors,
        data,
        HyperParameters.repeat(seeds, **hyper_parameters),
        epochs=epochs,
        keep_epochs=range(epochs + 1),
    ):
        for name, part in zip(methods, snapshot.test_accuracy.split(counts), strict=True):
            curves[name].append(part.tolist())
    return curves
