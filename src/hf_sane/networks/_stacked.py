"""Many networks of one architecture as stacked tensors: initialise, run and evaluate them together."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_sane.architectures.configuration_zoo import CNNConfig, MLPConfig, ZooConfig
from hf_sane.architectures.modeling_zoo import ACTIVATIONS, ZooPreTrainedModel
from hf_sane.architectures.presets import build_model
from hf_sane.core._types import StateDict
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._shifts import StackedShifts
from hf_sane.networks._stacked_layers import pooled_convolution, stacked_dropout, stacked_linear
from hf_sane.networks._threads import map_on_threads
from hf_sane.records._errors import describe_cause, shorten

logger = logging.getLogger(__name__)

DROPOUT_BUFFER = "dropout_rate"
CACHE_BYTES = 4 * 2**20  # activations of networks that run together on a CPU
EVALUATION_BATCH = 64
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # names of the rows of texts, as arguments of a module
MAX_REASON = 200  # characters
# Whether `torch.vmap` can run a module, by mode and axis of the inputs.
_STACKABLE: WeakKeyDictionary[nn.Module, dict[tuple[bool, int | None], bool]] = WeakKeyDictionary()

# (tensors {name: [m, *shape]}, images [m or 1, B, C, H, W], dropout [m] or None, generator) -> logits [m, B, K]
Forward = Callable[[Mapping[str, Tensor], Tensor, Tensor | None, torch.Generator | None], Tensor]


def stacked_forward(network: ZooConfig | nn.Module, *, generic: bool = False) -> Forward:
    """Make the function that runs a stack of networks.

    CNNs and MLPs have their own implementation (see `stacked_layers`); other modules run under `torch.vmap`. Both
    agree with the single networks up to rounding.

    Args:
        network: Configuration of the networks, or a module whose structure is used; for its outputs see [`logits_of`].
        generic: Always use `torch.vmap`.

    Returns:
        `forward(tensors, images, dropout, generator)`: logits `[m, B, K]` of tensors `{name: [m, *shape]}` and images
        `[m, B, C, H, W]` (`[1, ...]`: the same for all). With `dropout` (`[m]` rates) the networks are in training
        mode: dropout is active, and running statistics among the tensors are updated in place. With `None` they are in
        evaluation mode. Random draws depend only on `generator`.
    """
    if isinstance(network, CNNConfig | MLPConfig) and not generic:
        return _batch_last_forward(network)
    return _vmap_forward(network)


def _batch_last_forward(config: CNNConfig | MLPConfig) -> Forward:
    activation = ACTIVATIONS[config.activation]
    pool_sizes = config.pool_sizes if isinstance(config, CNNConfig) else ()

    def forward(
        tensors: Mapping[str, Tensor], images: Tensor, dropout: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        drops = dropout is not None and config.dropout is not None and bool((dropout > 0).any())

        def activate(values: Tensor) -> Tensor:
            values = activation(values)
            return stacked_dropout(values, dropout, generator) if drops and dropout is not None else values

        values = images.permute(0, 2, 3, 4, 1).contiguous()
        for i, pool_size in enumerate(pool_sizes):
            weight, bias = tensors[f"convolutions.{i}.weight"], tensors[f"convolutions.{i}.bias"]
            values = activate(pooled_convolution(values, weight, bias, pool_size))
        values = values.flatten(1, 3)
        for i in range(len(config.hidden_sizes)):
            values = activate(stacked_linear(values, tensors[f"hidden.{i}.weight"], tensors[f"hidden.{i}.bias"]))
        return stacked_linear(values, tensors["classifier.weight"], tensors["classifier.bias"]).mT

    return forward


def _vmap_forward(network: ZooConfig | nn.Module) -> Forward:
    skeleton = empty_model(network) if isinstance(network, ZooConfig) else network
    has_dropout = DROPOUT_BUFFER in dict(skeleton.named_buffers())
    run = with_tensors(skeleton)

    def forward(
        tensors: Mapping[str, Tensor], images: Tensor, dropout: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        models = len(next(iter(tensors.values())))
        if has_dropout:
            tensors = {**tensors, DROPOUT_BUFFER: images.new_zeros(models) if dropout is None else dropout}
        images, image_axis = (images, 0) if len(images) == models else (images[0], None)
        with modes_kept(skeleton), _drawing_from(generator, images.device):  # it may belong to the caller
            skeleton.train(dropout is not None)
            return run_stacked(skeleton, run, dict(tensors), images, image_axis)

    return forward


@contextmanager
def _drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Context in which modules, which use the global random state, draw from a generator."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def tied_tensors(module: nn.Module) -> dict[str, str]:
    """Second names of parameters and buffers (tied weights), mapped to their first names."""
    first: dict[int, str] = {}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: first[id(tensor)] for name, tensor in named if first.setdefault(id(tensor), name) != name}


def with_tensors(skeleton: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Make `run(tensors, inputs)`: logits of a module with other tensors; for tied tensors, the first name counts."""
    tied = tied_tensors(skeleton)
    # functional_call temporarily replaces the tensors of modules, which must not happen twice to a module that has two
    # names.
    first_names = {id(part): name for name, part in reversed([*skeleton.named_modules(remove_duplicate=False)])}

    def is_first(name: str) -> bool:
        owner = name.rpartition(".")[0]
        return first_names[id(skeleton.get_submodule(owner))] == owner

    twice = {name for name in tied if not is_first(name)}

    def run(tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        chosen = {name: tensors[tied.get(name, name)] for name in tensors if name not in twice}
        positional, named = call_arguments(inputs)
        return logits_of(functional_call(skeleton, chosen, positional, named, tie_weights=False))

    return run


def run_stacked(
    skeleton: nn.Module,
    run: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    tensors: dict[str, Tensor],
    inputs: Tensor,
    input_axis: int | None,
) -> Tensor:
    """Run a function of one network on a stack of networks, under `torch.vmap` or one after the other.

    Networks on texts, which are rarely faster under `torch.vmap`, and modules that it does not support (recurrent
    layers, control flow that depends on inputs) run one after the other. For modules, this is logged once.

    Args:
        skeleton: Module that the function runs, which determines the method.
        run: `run(tensors, inputs)`.
        tensors: `{name: [m, *shape]}`.
        inputs: `[m, B, ...]` if `input_axis` is 0, or `[B, ...]` for all networks if it is `None`.
        input_axis: 0 or `None`.
    """
    if inputs.is_floating_point() and _can_stack(skeleton, run, tensors, inputs, input_axis):
        with _batched_attention():
            return torch.vmap(run, in_dims=(0, input_axis), randomness="different")(tensors, inputs)
    return torch.stack(
        [
            run(
                {name: tensor[index] for name, tensor in tensors.items()},
                inputs if input_axis is None else inputs[index],
            )
            for index in range(len(next(iter(tensors.values()))))
        ]
    )


def _batched_attention() -> AbstractContextManager[None]:
    """Context in which attention uses operations that `torch.vmap` batches, rather than fused kernels in a loop."""
    return sdpa_kernel(SDPBackend.MATH)


def _can_stack(
    skeleton: nn.Module,
    run: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    tensors: dict[str, Tensor],
    inputs: Tensor,
    input_axis: int | None,
) -> bool:
    """Whether `torch.vmap` can run a module in its mode, tested once on two copies."""
    key = (skeleton.training, input_axis)
    known = _STACKABLE.setdefault(skeleton, {})
    if key not in known:
        copies = {name: tensor[:2].detach().clone() for name, tensor in tensors.items()}
        few = inputs[:2] if input_axis is None else inputs[:2, :2]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), _batched_attention():
                torch.vmap(run, in_dims=(0, input_axis), randomness="different")(copies, few)
            known[key] = True
        except RuntimeError as error:  # errors that torch.func raises for anything unsupported
            name, reason = type(skeleton).__name__, shorten(str(error).partition("\n")[0], MAX_REASON)
            if all(known.values()):
                logger.warning("%s cannot run in a stack (%s); its networks run one after the other", name, reason)
            known[key] = False
    return known[key]


def call_arguments(inputs: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments for calling a module with a batch.

    Args:
        inputs: Images `[B, C, H, W]`, or texts `[B, 2, L]` int64: token ids and attention mask; for some text pairs
            also token types.
    """
    if inputs.is_floating_point():
        return (inputs,), {}
    return (), dict(zip(TEXT_INPUTS, inputs.unbind(1), strict=False))


class NoLogitsError(TypeError):
    """A module returns no logits."""


def logits_of(output: Any) -> Tensor:
    """Extract logits from a module's output: a tensor, an output or dictionary with `logits`, or a tuple of heads.

    Raises:
        NoLogitsError: If the output contains no such tensor.
    """
    if isinstance(output, tuple | list) and not hasattr(output, "logits") and output:
        output = output[0]
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise NoLogitsError(
            f"expected a module that returns logits, an output with logits, or a tuple that starts with logits, got "
            f"{type(output).__name__}"
        )
    return found


@contextmanager
def running_on(inputs: Tensor, *, network: str, data: str) -> Iterator[None]:
    """Context in which a network runs on data; whatever it raises becomes a `ValueError` that names both.

    Args:
        inputs: Images or texts, for messages.
        network: Name of the class of the network.
        data: Name of the images or texts.

    Raises:
        ValueError: If the network cannot run on the inputs.
        NoLogitsError: If it returns no logits.
    """
    try:
        yield
    except (NoLogitsError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the network may be the user's, and raise anything
        raise ValueError(
            f"{network} cannot run on {data}, inputs {list(inputs.shape)}: {describe_cause(error)}; {_other(inputs)}"
        ) from error


def check_logits(logits: Tensor, inputs: Tensor, num_classes: int, *, network: str, data: str) -> None:
    """Refuse logits that cannot tell the classes of data apart; other arguments as for [`running_on`].

    More outputs than classes are fine: a network may know classes that the data does not hold.

    Args:
        logits: What the network returned.
        inputs: What it was run on.
        num_classes: Number of classes of the data.
        network: Name of the class of the network.
        data: Name of the images or texts.

    Raises:
        ValueError: If they are not `[B, K]`, with `K >= num_classes`.
    """
    if logits.ndim == 2 and len(logits) == len(inputs) and logits.shape[1] >= num_classes:
        return
    raise ValueError(
        f"expected logits [B, {num_classes}] from {network} for the classes of {data}, got {list(logits.shape)}; "
        "logits are the output, its entry 'logits', or its first part; use data with the classes of the network, or a "
        "network with an output for each class"
    )


def _other(inputs: Tensor) -> str:
    if inputs.is_floating_point():
        return "pass images of the shape that it takes (--image-channels, --image-size), or other data"
    return "pass texts or a network that reads them, or other data"


def empty_model(config: ZooConfig) -> ZooPreTrainedModel:
    """The network of a configuration on the meta device: structure without weights, and no random draws."""
    with torch.device("meta"):
        return build_model(config)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy `[M]` of each network, from logits `[M, B, K]` and labels `[M, B]` or `[1, B]` (int64)."""
    return example_losses(logits, labels).mean(dim=1)


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits.gather(2, labels.expand(logits.shape[:2]).unsqueeze(2)).squeeze(2)
    return logits.logsumexp(dim=2) - chosen


def stack_size(network: ZooConfig | nn.Module, batch_size: int, device: torch.device | None = None) -> int:
    """Number of networks to run together so that their activations fit the cache; 0 (all) unless on a CPU.

    Args:
        network: Network to run.
        batch_size: Images per network and step, `B`.
        device: Device; the CPU if `None`.
    """
    if device is not None and device.type != "cpu":
        return 0
    if isinstance(network, CNNConfig):
        size, values = network.image_size, [network.num_channels * network.image_size**2]
        layers = zip(network.conv_channels, network.kernel_sizes, network.pool_sizes, strict=True)
        for channels, kernel_size, pool_size in layers:
            values.append(channels * (size - kernel_size + 1) ** 2)
            size = (size - kernel_size + 1) // pool_size
        widest = max(a + b for a, b in pairwise(values))
    elif isinstance(network, MLPConfig):
        widest = network.flattened_size + sum(network.hidden_sizes)
    else:
        return 16
    return max(2, min(32, CACHE_BYTES // (4 * widest * batch_size)))


@dataclass(frozen=True)
class StackedNetworks:
    """`M` networks of one architecture, with each tensor stacked over the networks.

    Attributes:
        config: Their architecture, or a module of that architecture (see `stacked_forward`).
        tensors: `{name: [M, *shape]}`, all tensors of the state dict.

    Raises:
        ValueError: If tensors are missing or unexpected, or shapes do not fit the architecture or each other.
    """

    config: ZooConfig | nn.Module
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        module = empty_model(self.config) if isinstance(self.config, ZooConfig) else self.config
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        if expected.keys() != self.tensors.keys():
            raise ValueError(
                f"the tensors are not those of the architecture: missing or unexpected "
                f"{sorted(expected.keys() ^ self.tensors.keys())}"
            )
        count = self.num_models
        for name, shape in expected.items():
            if tuple(self.tensors[name].shape) != (count, *shape):
                raise ValueError(f"expected {name} {[count, *shape]}, got {list(self.tensors[name].shape)}")

    @classmethod
    def initialize(
        cls, config: ZooConfig, seeds: Sequence[int], initializations: Sequence[str] | None = None
    ) -> "StackedNetworks":
        """Initialise networks: network `i` equals that of `build_model` after `torch.manual_seed(seeds[i])`.

        Args:
            config: Architecture.
            seeds: One seed per network.
            initializations: Scheme of each network; the configuration's if `None`.

        Raises:
            ValueError: If there are no seeds, or their number differs from that of schemes.
        """
        if not seeds or (initializations is not None and len(initializations) != len(seeds)):
            schemes = "none" if initializations is None else len(initializations)
            raise ValueError(f"expected at least one seed and one scheme per seed, got {len(seeds)} and {schemes}")
        states = []
        with torch.random.fork_rng(devices=[]):
            for i, seed in enumerate(seeds):
                changed = {} if initializations is None else {"initialization": initializations[i]}
                torch.manual_seed(seed)
                states.append(build_model(with_settings(config, **changed)).state_dict())
        return cls.from_state_dicts(config, states)

    @classmethod
    def from_state_dicts(cls, config: ZooConfig | nn.Module, states: Sequence[StateDict]) -> "StackedNetworks":
        """Stack single networks.

        Raises:
            ValueError: If there are none, or they do not fit the architecture.
        """
        if not states:
            raise ValueError("expected at least one state dict to stack, got none")
        return cls(config, {name: torch.stack([state[name] for state in states]) for name in states[0]})

    @property
    def num_models(self) -> int:
        """Number of networks in the stack, `M`."""
        return len(next(iter(self.tensors.values())))

    def select(self, index: Any) -> "StackedNetworks":
        """The networks selected by `index` (indices, mask or slice)."""
        return StackedNetworks(self.config, {name: tensor[index] for name, tensor in self.tensors.items()})

    def state_dict(self, index: int) -> StateDict:
        """A copy of the tensors of one network."""
        return {name: tensor[index].clone() for name, tensor in self.tensors.items()}

    def model(self, index: int) -> nn.Module:
        """One network as a module in evaluation mode."""
        config = self.config
        model: nn.Module = build_model(config) if isinstance(config, ZooConfig) else copy.deepcopy(config)
        model.load_state_dict(self.state_dict(index))
        return model.eval()

    def logits(self, images: Tensor, *, generic: bool = False) -> Tensor:
        """Run all networks in evaluation mode; differentiable.

        Args:
            images: `[B, C, H, W]` for all networks, or `[M, B, C, H, W]`; or texts, see `call_arguments`.
            generic: Always use `torch.vmap`.

        Returns:
            `[M, B, K]`.

        Raises:
            ValueError: If `images` has a different shape.
        """
        alone = 4 if images.is_floating_point() else 3  # axes of a batch: images, or texts
        if images.ndim not in (alone, alone + 1) or (images.ndim > alone and len(images) != self.num_models):
            raise ValueError(
                f"expected images [B, C, H, W] or [{self.num_models}, B, C, H, W], or texts [B, 2, L], got "
                f"{list(images.shape)}"
            )
        forward = stacked_forward(self.config, generic=generic)
        shared = images.ndim == alone
        images = images.unsqueeze(0) if shared else images
        step = stack_size(self.config, images.shape[1], images.device) or self.num_models
        parts = []
        for start in range(0, self.num_models, step):
            part = {name: tensor[start : start + step] for name, tensor in self.tensors.items()}
            parts.append(forward(part, images if shared else images[start : start + step], None, None))
        return torch.cat(parts)

    @torch.no_grad()
    def check(self, inputs: Tensor, num_classes: int | None, *, data: str = "the data") -> None:
        """Run the first network on two examples, to refuse data that the networks cannot judge before they all run.

        Args:
            inputs: Images `[n, C, H, W]` or texts `[n, 2, L]`.
            num_classes: Number of classes of the data; `None` if the networks are not judged.
            data: Name of the data, for messages.

        Raises:
            ValueError: If networks cannot run on the inputs, or have fewer outputs than the data has classes.
            NoLogitsError: If they return no logits.
        """
        few = inputs[:2]
        skeleton = empty_model(self.config) if isinstance(self.config, ZooConfig) else self.config
        first = {name: tensor[0] for name, tensor in self.tensors.items()}
        if DROPOUT_BUFFER in dict(skeleton.named_buffers()):
            first[DROPOUT_BUFFER] = torch.zeros((), device=few.device)
        name = type(skeleton).__name__
        with modes_kept(skeleton), torch.random.fork_rng(devices=[]), running_on(few, network=name, data=data):
            logits = with_tensors(skeleton.eval())(first, few)
        if num_classes is not None:
            check_logits(logits, few, num_classes, network=name, data=data)

    @torch.no_grad()
    def per_image(
        self,
        images: Tensor,
        labels: Tensor,
        shifts: StackedShifts | None = None,
        *,
        num_classes: int | None = None,
        data: str = "the data",
    ) -> tuple[Tensor, Tensor]:
        """Loss and correctness of every network on every image.

        Args:
            images: `[n, C, H, W]`.
            labels: `[n]` int64.
            shifts: What each network sees instead of the images, if they differ; its classes are not used.
            num_classes: Number of classes of the data; by default of the labels.
            data: Name of the data, for messages.

        Returns:
            Cross-entropy `[M, n]` float and correctness `[M, n]` bool; non-finite logits count as wrong.

        Raises:
            ValueError: If networks cannot run on the images, or have fewer outputs than there are classes.
            NoLogitsError: If they return no logits.
        """
        wanted = num_classes or (int(labels.max()) + 1 if len(labels) else 0)
        if isinstance(self.config, nn.Module) and len(images):
            self.check(images, wanted, data=data)  # before the module is said to be unable to run in a stack

        def judge(part: slice) -> tuple[Tensor, Tensor]:
            logits = self.logits(images[part] if shifts is None else shifts(images[part]))
            check_logits(logits[0], images[part], wanted, network=type(self.config).__name__, data=data)
            correct = (logits.argmax(dim=2) == labels[part]) & logits.isfinite().all(dim=2)
            return example_losses(logits, labels[None, part]), correct

        starts = range(0, len(images), EVALUATION_BATCH)
        parts = [slice(start, start + EVALUATION_BATCH) for start in starts]
        # functional_call replaces the tensors of a single module, so it cannot run twice at the same time.
        may_thread = isinstance(self.config, CNNConfig | MLPConfig) and images.device.type == "cpu"
        try:
            found = map_on_threads(judge, parts) if may_thread else [judge(part) for part in parts]
        except Exception:
            self.check(images, wanted, data=data)  # a single network says better why it cannot run
            raise
        return torch.cat([losses for losses, _ in found], dim=1), torch.cat([right for _, right in found], dim=1)

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of every network, both `[M]` float.

        Arguments and errors are those of `per_image`.
        """
        losses, correct = self.per_image(images, labels)
        return losses.mean(dim=1), correct.float().mean(dim=1)


def with_settings(config: ZooConfig, **settings: Any) -> ZooConfig:
    """A copy of a configuration with other settings, validated again."""
    return type(config).from_dict({**config.to_dict(), **settings}) if settings else config
