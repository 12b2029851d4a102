"""User-defined architectures: modules from outside this library, recognised by their tensors."""

import copy
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import CONFIG_MAPPING, PreTrainedModel

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.core._types import StateDict
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import StackedNetworks, tied_tensors
from hf_sane.records._documents import read_settings
from hf_sane.records._errors import describe_cause, name_some
from hf_sane.records._own_code import load_named
from hf_sane.records._settings import CheckedSettings, setting
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry._selection import select_tensors
from hf_sane.symmetry._transformers_models import model_class
from hf_sane.symmetry.tracing._trace import trace_permutations
from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
from hf_sane.tokenization._loading import is_own_module
from hf_sane.tokenization._saved_form import renamed_tensors

logger = logging.getLogger(__name__)

EXAMPLES = 4  # number of inputs with which symmetries are verified
LISTED = 5  # tensors to name in a message
JSON_VALUES = (str, int, float, bool, list, dict, type(None))
Shapes = frozenset[tuple[str, tuple[int, ...]]]
_REGISTERED: dict[Shapes, "ModuleArchitecture"] = {}


@dataclass(frozen=True)
class ModuleArchitecture:
    """A registered module, whose networks can be sampled, evaluated and fine-tuned like those of this library.

    Attributes:
        name: Name of the class or function that makes networks.
        make: Function that makes a newly initialised network.
        structure: A network whose structure is used, but not its weights.
        example_inputs: Inputs with which symmetries are traced; `None` disables tracing.
        arguments: Keyword arguments of the class, as far as they are known and JSON supports them.
    """

    name: str
    make: Callable[[], nn.Module]
    structure: nn.Module
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def permutations(self) -> PermutationSpec:
        """Permutation symmetries of the module, traced and verified once.

        Raises:
            ValueError: If there are no example inputs, or the module cannot be traced.
        """
        if self.example_inputs is None:
            raise ValueError(
                f"the symmetries of {self.name} are unknown; register it with example inputs: "
                "hf_sane.register_architecture(MyModule, torch.zeros(1, 3, 32, 32))"
            )
        return trace_permutations(copy.deepcopy(self.structure), _varied(self.example_inputs))

    @cached_property
    def provable_permutations(self) -> PermutationSpec | None:
        """The symmetries from [`permutations`]; `None`, with a log message, if none can be proven."""
        try:
            return self.permutations
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("distances between networks do not allow for reordered channels: %s", reason)
            return None

    def permutations_of(self, names: Iterable[str]) -> PermutationSpec:
        """Permutation symmetries of tensors, by names in the module or in its files; errors as for `permutations`."""
        own = {name: self._own_name(name) for name in names}
        return select_tensors(
            self.permutations, {n: other for n, other in own.items() if other in self.permutations.axes}
        )

    @cached_property
    def _ties(self) -> dict[str, str]:
        return tied_tensors(self.structure)

    @cached_property
    def _own_names(self) -> dict[str, str]:
        """Names in the state dict of tensors that files call otherwise."""
        return renamed_tensors(self.structure)

    def _own_name(self, name: str) -> str:
        return self._own_names.get(name, name)

    def has(self, shapes: Shapes) -> bool:
        """Whether networks have tensors of these names and shapes, or their files do.

        Files may have other names (see [`renamed_tensors`]), and omit names of tied tensors.
        """
        every = _shapes(self.structure.state_dict())
        own = frozenset((self._own_name(name), shape) for name, shape in shapes)
        kept = {self._ties.get(name, name) for name, _ in own}
        return own <= every and all(self._ties.get(name, name) in kept for name, _ in every - own)

    def complete(self, layout: Layout) -> Layout:
        """The layout with names of tied tensors that files omit, and the module's names of tensors."""
        every = list(self.structure.state_dict())
        if layout.tensor_names == tuple(every):
            return layout
        renamed = {name: self._own_names[name] for name in layout.tensor_names if name in self._own_names}
        in_file = {self._own_name(name): name for name in layout.tensor_names if name not in layout.aliases}
        kept = {self._ties.get(own, own): name for own, name in in_file.items()}
        aliases = {name: kept[self._ties.get(name, name)] for name in every if name not in in_file}
        names = tuple(in_file.get(name, name) for name in every)
        return replace(layout, aliases=aliases, tensor_names=names, module_names=renamed)

    def network(self, state_dict: StateDict) -> nn.Module:
        """Create a network with these tensors, in evaluation mode."""
        network = copy.deepcopy(self.structure)
        own = {self._own_name(name): tensor for name, tensor in state_dict.items()}
        known = {self._ties.get(name, name): tensor for name, tensor in own.items()}
        network.load_state_dict({name: known[self._ties.get(name, name)] for name in network.state_dict()})
        return network.eval()

    def from_pretrained(
        self, source: str | Path, *, revision: str | None = None, subfolder: str | None = None
    ) -> nn.Module:
        """Load a saved network of this architecture, in evaluation mode.

        ```python
        network = hf_sane.register_architecture(MyCNN).from_pretrained("sampled/network_0")
        ```

        Args:
            source: Folder or file, or Hub repo, `owner/name` or `owner/name@revision`.
            revision: Branch, tag or commit of a repo.
            subfolder: Subfolder with the weights.

        Raises:
            FileNotFoundError: If there is no such folder, file or repository, or it holds no weights.
            InvalidFileError: If a file is damaged, or the folder is incomplete or was changed.
            ValueError: If the tensors are those of another architecture.
        """
        tensors = load_state_dict(CheckpointSource(source, revision=revision, subfolder=subfolder))
        if not self.has(_shapes(tensors)):
            every, found = _shapes(self.structure.state_dict()), _shapes(tensors)
            differing = sorted({name for name, _ in every ^ found})
            raise ValueError(
                f"{source}: expected the weights of {self.name}, got tensors of other names or shapes, such as "
                f"{name_some(differing, LISTED)}; pass the arguments that the module was saved with (config.json), or "
                "register its own class"
            )
        return self.network(tensors)

    def fresh(self, seeds: list[int]) -> StackedNetworks:
        """Newly initialised networks, one per seed; the global random state is not changed."""
        states = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                states.append(self.make().state_dict())
        return StackedNetworks.from_state_dicts(self.structure, states)


def register_architecture(
    module: Callable[[], nn.Module] | nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> ModuleArchitecture:
    """Register a module, so that the library can run networks with its weights.

    Zoos imported from its checkpoints can then be aligned by its symmetries, and their networks can be sampled,
    evaluated, fine-tuned and saved. Networks are recognised by the names and shapes of their tensors.

    ```python
    hf_sane.register_architecture(MyCNN, torch.zeros(1, 1, 28, 28))
    hf_sane.register_architecture(functools.partial(MyCNN, width=32), torch.zeros(1, 1, 28, 28))
    ```

    Args:
        module: A class or function that makes a network without arguments; or a network, whose copies are initialised
            by the `reset_parameters` methods of its layers. Parameters of layers without this method are shuffled, so
            that they keep their scale but nothing that was learnt; a log message names them. Prefer the class.
        example_inputs: Inputs of the module: a tensor, a tuple of positional arguments or a dictionary of keyword
            arguments. Only their shapes matter. Without them, symmetries are not traced.
        name: Name in records and cards; by default the name of the class.

    Returns:
        The architecture.

    Raises:
        TypeError: If the class or function does not return a module, or requires arguments.
        ValueError: If its code raises an error, the module has no tensors, or it has lazy layers (`nn.LazyLinear`)
            and cannot run on the example inputs, which give them their shapes.
    """
    made = module if isinstance(module, nn.Module) else _made(module)
    if not isinstance(made, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, or a function that makes one, got {type(made).__name__}")
    given = module.keywords if isinstance(module, partial) else {}
    if _lazy_tensors(made):
        complete = _with_shapes(module, example_inputs)
        made, module = complete(), module if isinstance(module, nn.Module) else complete
    if not (shapes := _shapes(made.state_dict())):
        raise ValueError(f"expected a module with weights, got {type(made).__name__} without weights")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    make = _reset_copies(made) if isinstance(module, nn.Module) else module
    arguments = {key: value for key, value in given.items() if isinstance(value, JSON_VALUES)}
    found = ModuleArchitecture(name or type(made).__name__, make, made.eval(), inputs, arguments)
    _REGISTERED[shapes] = found
    return found


def _made(module: Callable[[], Any]) -> Any:
    """Call the user's class or function."""
    known = module.func if isinstance(module, partial) else module
    name = getattr(known, "__name__", type(known).__name__)
    try:
        inspect.signature(module).bind()
    except TypeError as error:
        raise TypeError(
            f"{name}: {error}; pass its arguments, such as --module-args '{{\"width\": 32}}', or "
            f"functools.partial({name}, width=32) in Python"
        ) from error
    except ValueError:  # some functions have no signature
        pass
    try:
        return module()
    except Exception as error:  # it is the user's, and may raise anything
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name}() raises {describe_cause(error)}; correct its code or its arguments (--module-args)"
        ) from error


def _lazy_tensors(network: nn.Module) -> list[str]:
    """Names of parameters and buffers without a shape, which `nn.LazyLinear` and others have until they first run."""
    return [name for name, value in (*network.named_parameters(), *network.named_buffers()) if is_lazy(value)]


def _with_shapes(module: Callable[[], nn.Module] | nn.Module, inputs: Any) -> Callable[[], nn.Module]:
    """A function that makes a network and runs it once, which gives its lazy layers their shapes."""

    def make() -> nn.Module:
        network = copy.deepcopy(module) if isinstance(module, nn.Module) else module()
        name, names = type(network).__name__, name_some(_lazy_tensors(network))
        if inputs is None:
            raise ValueError(
                f"the shapes of {names} of {name} are unknown until it runs; pass the shape of one input, such as "
                f"--module-input 1,28,28, or hf_sane.register_architecture({name}, example_inputs) in Python"
            )
        run_once(network, inputs)
        return network

    return make


def run_once(network: nn.Module, inputs: Any) -> None:
    """Run a network on example inputs, in evaluation mode and without gradients.

    Raises:
        ValueError: If it cannot run on them.
    """
    arguments = (inputs,) if isinstance(inputs, Tensor) else inputs
    positional, named = ((), arguments) if isinstance(arguments, Mapping) else (arguments, {})
    try:
        with modes_kept(network), torch.no_grad():
            network.eval()(*positional, **named)
    except Exception as error:  # it is the user's, and may raise anything
        values = [*positional, *named.values()]
        shapes = ", ".join(str(list(value.shape)) for value in values if isinstance(value, Tensor))
        raise ValueError(
            f"{type(network).__name__} cannot run on example inputs {shapes}: {describe_cause(error)}; pass the shape "
            "of one input without the batch dimension, such as --module-input 1,28,28; for other inputs than one "
            "batch of numbers, hf_sane.register_architecture(MyModule, example_inputs) in Python"
        ) from error


def find_architecture(network: Layout | nn.Module | Mapping[str, Tensor]) -> ModuleArchitecture | None:
    """The registered architecture with these tensors, or `None`."""
    if isinstance(network, Layout):
        shapes = _layout_shapes(network)
    else:
        shapes = _shapes(network.state_dict() if isinstance(network, nn.Module) else network)
    return _REGISTERED.get(shapes) or next((known for known in _REGISTERED.values() if known.has(shapes)), None)


def registered_misfit(layout: Layout) -> str | None:
    """How the registered module differs from networks of a layout, if there is exactly one and it does."""
    if len(_REGISTERED) != 1 or find_architecture(layout) is not None:
        return None
    ((shapes, known),) = _REGISTERED.items()
    own, others = dict(sorted(shapes)), dict(sorted(_layout_shapes(layout)))
    differing = {
        "without": [name for name in others if name not in own],
        "with further": [name for name in own if name not in others],
    }
    facts = [f"{word} {name_some(names)}" for word, names in differing.items() if names]
    for name in (name for name in others if own.get(name, others[name]) != others[name]):
        facts.append(f"with {name} {list(own[name])} instead of {list(others[name])}")
        break
    return f"{known.name}, {' and '.join(facts)}"


def transformers_architecture(settings: Mapping[str, Any], layout: Layout) -> ModuleArchitecture | None:
    """The architecture of a Transformers class, from the configuration of imported networks.

    Args:
        settings: Content of `config.json`, whose `architectures` name the class.
        layout: Layout of the networks.

    Returns:
        The architecture; `None` if there is no such class, or its networks have different tensors.
    """
    found = _from_settings(json.dumps(settings, sort_keys=True))
    return found if found is not None and found.has(_layout_shapes(layout)) else None


@lru_cache(maxsize=16)
def _from_settings(text: str) -> ModuleArchitecture | None:
    settings = json.loads(text)
    if settings.get("model_type") not in CONFIG_MAPPING or is_own_module(settings):
        return None
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    if (network := model_class(config)) is None:
        return None
    with torch.random.fork_rng(devices=[]):
        structure = network(config).eval()
    return ModuleArchitecture(network.__name__, _reset_copies(structure), structure)


def has_registered() -> bool:
    """Whether any module is registered."""
    return bool(_REGISTERED)


def registered_names() -> list[str]:
    """Names of the registered modules."""
    return [architecture.name for architecture in _REGISTERED.values()]


def architecture_permutations(
    config: ZooConfig | nn.Module, names: Iterable[str] | None = None
) -> PermutationSpec | None:
    """Symmetries of an architecture; `None` for a module that is not registered, or whose symmetries are not proven.

    Args:
        config: The architecture.
        names: Names of tensors in the module or in its files; by default all names in the module.
    """
    if isinstance(config, ZooConfig):
        return permutation_spec(config)
    found = find_architecture(config)
    if found is None or found.example_inputs is None or found.provable_permutations is None:
        return None
    return found.permutations if names is None else found.permutations_of(names)


def fresh_networks(config: ZooConfig | nn.Module, seeds: list[int]) -> StackedNetworks:
    """Newly initialised networks of an architecture, one per seed."""
    if isinstance(config, ZooConfig):
        return StackedNetworks.initialize(config, seeds)
    found = find_architecture(config) or ModuleArchitecture(type(config).__name__, _reset_copies(config), config)
    return found.fresh(seeds)


def load_module(place: str, arguments: Mapping[str, Any] | None = None) -> Callable[[], nn.Module]:
    """Import and run the user's code that defines a module; return the class or function.

    Args:
        place: `my_file.py:MyModule` or `my_package.my_file:MyModule`, the latter also relative to the working folder.
        arguments: Keyword arguments of the class or function.

    Raises:
        ValueError, FileNotFoundError, ImportError, TypeError: As in [`load_named`].
    """
    return partial(load_named(place, example="MyModule"), **dict(arguments or {}))


def _layout_shapes(layout: Layout) -> Shapes:
    shapes = {tensor.name: tuple(tensor.shape) for layer in layout.layers for tensor in layer.tensors}
    shapes |= {name: tuple(tensor.shape) for name, tensor in layout.template.items()}
    shapes |= {name: shapes[first] for name, first in layout.aliases.items()}
    return frozenset(shapes.items())


def _reset_copies(network: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        if isinstance(network, PreTrainedModel):  # initialises all its parameters itself, including embeddings
            return type(network)(copy.deepcopy(network.config)).eval()
        fresh = copy.deepcopy(network)
        shuffled = []
        for prefix, part in fresh.named_modules():
            # PyTorch's attention and Transformer layers name it _reset_parameters.
            found = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(found):
                found()
                continue
            for name, parameter in part.named_parameters(prefix, recurse=False):
                with torch.no_grad():
                    parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
                shuffled.append(name)
        if shuffled and not warned:
            warned.append(True)
            logger.warning(
                "new networks of %s get shuffled values of %s, since layers without reset_parameters() "
                "do not define their initialisation; register the class instead of a network: "
                "hf_sane.register_architecture(MyModule)",
                type(network).__name__,
                name_some(shuffled, LISTED),
            )
        return fresh

    warned: list[bool] = []
    return make


def _varied(inputs: Any) -> Any:
    """Example inputs that distinguish networks: batches of floating-point tensors with random values."""
    if isinstance(inputs, Mapping):
        return {name: _varied(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(map(_varied, inputs))
    if not isinstance(inputs, Tensor):
        return inputs
    if inputs.ndim and len(inputs) == 1:
        inputs = inputs.repeat(EXAMPLES, *[1] * (inputs.ndim - 1))
    is_float = inputs.is_floating_point()
    return torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs) if is_float else inputs


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return frozenset((name, tuple(tensor.shape)) for name, tensor in tensors.items())


@dataclass(kw_only=True)
class ModuleSettings(CheckedSettings):
    """Settings of a user-defined module, for architectures that are not part of this library."""

    module: str | Callable | None = setting(
        "Class or function that creates the module, as my_file.py:MyModule or my_package.my_file:MyModule. "
        "The file's code is run.",
        default=None,
    )
    module_args: dict[str, Any] | str | None = setting(
        "Arguments of the module, as a JSON object or the path of a JSON file.", default=None
    )
    module_input: list[int] = setting(
        "Shape of one input of the module without the batch dimension, such as 1,28,28, with which its symmetries are "
        "traced.",
        factory=list,
        least=1,
    )

    @property
    def module_arguments(self) -> dict[str, Any]:
        """Arguments of the module as a dictionary."""
        given = self.module_args
        return dict((read_settings(given, "--module-args") if isinstance(given, str) else given) or {})

    def register(self, example_inputs: Tensor | Mapping[str, Any] | None = None) -> ModuleArchitecture | None:
        """Register the module, if one is given.

        Args:
            example_inputs: Inputs of the module, unless the settings give their shape.
        """
        if self.module is None:
            if self.module_args or self.module_input:
                raise ValueError("expected a module for its arguments or inputs, got none; pass it (--module)")
            return None
        inputs = torch.zeros(1, *self.module_input) if self.module_input else example_inputs
        if isinstance(self.module, str):
            made: Callable[[], nn.Module] = load_module(self.module, self.module_arguments)
            found = register_architecture(made, inputs, name=self.module.rpartition(":")[2])
        else:
            if isinstance(self.module, nn.Module) and self.module_args:
                raise ValueError("expected the class of the module for its arguments (module_args), got a network")
            module = self.module
            found = register_architecture(
                module if isinstance(module, nn.Module) else partial(module, **self.module_arguments), inputs
            )
        if self.module_input:
            with torch.random.fork_rng(devices=[]):
                run_once(found.structure, inputs)
        return found
