"""Architectures of the user's own: modules that this library has never seen, by the tensors they have."""

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.core._types import StateDict
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.records._documents import read_settings
from hf_sane.records._errors import did_you_mean
from hf_sane.records._settings import setting
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry.tracing._trace import trace_permutations

EXAMPLES = 4  # inputs that symmetries are verified with
Shapes = frozenset[tuple[str, tuple[int, ...]]]
_REGISTERED: dict[Shapes, "ModuleArchitecture"] = {}


@dataclass(frozen=True)
class ModuleArchitecture:
    """A module of which networks can be sampled, judged and fine-tuned, like those of this library.

    Attributes:
        name: Of the class or function that makes it.
        make: Makes a freshly initialised network.
        structure: One network of it, of which only the structure is used.
        example_inputs: What it is called with, to trace its symmetries; `None` if they are not to be traced.
    """

    name: str
    make: Callable[[], nn.Module]
    structure: nn.Module
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None

    @cached_property
    def permutations(self) -> PermutationSpec:
        """Its permutation symmetries, traced and verified once.

        Raises:
            ValueError: If there are no example inputs, or the module cannot be traced.
        """
        if self.example_inputs is None:
            raise ValueError(
                f"the symmetries of {self.name} are not known; register it with example inputs: "
                "hf_sane.register_architecture(MyModule, torch.zeros(1, 3, 32, 32))"
            )
        return trace_permutations(copy.deepcopy(self.structure), _varied(self.example_inputs))

    def network(self, state_dict: StateDict) -> nn.Module:
        """A network with these tensors, in evaluation mode."""
        network = copy.deepcopy(self.structure)
        network.load_state_dict(state_dict)
        return network.eval()

    def fresh(self, seeds: list[int]) -> StackedNetworks:
        """Freshly initialised networks, one per seed; the global source of randomness is left as it was."""
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
    """Let the library run networks of a module of your own, wherever it finds their weights.

    Zoos that were imported from checkpoints of it are aligned by its symmetries, their networks sampled, judged,
    fine-tuned and saved. A network is recognised by the names and shapes of its tensors.

    ```python
    hf_sane.register_architecture(MyCNN, torch.zeros(1, 1, 28, 28))
    hf_sane.register_architecture(lambda: MyCNN(width=32), torch.zeros(1, 1, 28, 28), name="MyCNN")
    ```

    Args:
        module: A class or function that makes a network without arguments; or a network, copies of which are then
            initialised by the `reset_parameters` of its layers.
        example_inputs: What the module is called with: a tensor, positional arguments or keywords. Values do not
            matter, shapes do. Without them its symmetries are not traced.
        name: What records and cards call it; the name of the class by default.

    Returns:
        The architecture.

    Raises:
        TypeError: If no module is made.
        ValueError: If the module has no tensors.
    """
    made = module if isinstance(module, nn.Module) else module()
    if not isinstance(made, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, or what makes one, got {type(made).__name__}")
    if not (shapes := _shapes(made.state_dict())):
        raise ValueError(f"expected a module with weights, got {type(made).__name__} without any")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    make = _reset_copies(made) if isinstance(module, nn.Module) else module
    found = ModuleArchitecture(name or type(made).__name__, make, made.eval(), inputs)
    _REGISTERED[shapes] = found
    return found


def find_architecture(network: Layout | nn.Module | Mapping[str, Tensor]) -> ModuleArchitecture | None:
    """The registered architecture with these tensors, if there is one."""
    if isinstance(network, Layout):
        shapes = {tensor.name: tuple(tensor.shape) for layer in network.layers for tensor in layer.tensors}
        shapes |= {name: tuple(tensor.shape) for name, tensor in network.template.items()}
        shapes |= {name: shapes[first] for name, first in network.aliases.items()}
        return _REGISTERED.get(frozenset(shapes.items()))
    return _REGISTERED.get(_shapes(network.state_dict() if isinstance(network, nn.Module) else network))


def has_registered() -> bool:
    """Whether any module was registered."""
    return bool(_REGISTERED)


def architecture_permutations(config: ZooConfig | nn.Module) -> PermutationSpec | None:
    """Symmetries of an architecture; `None` for a module that was registered without example inputs, or not at all."""
    if isinstance(config, ZooConfig):
        return permutation_spec(config)
    found = find_architecture(config)
    return None if found is None or found.example_inputs is None else found.permutations


def fresh_networks(config: ZooConfig | nn.Module, seeds: list[int]) -> StackedNetworks:
    """Freshly initialised networks of an architecture, one per seed."""
    if isinstance(config, ZooConfig):
        return StackedNetworks.initialize(config, seeds)
    found = find_architecture(config) or ModuleArchitecture(type(config).__name__, _reset_copies(config), config)
    return found.fresh(seeds)


def load_module(place: str, arguments: Mapping[str, Any] | None = None) -> Callable[[], nn.Module]:
    """What makes a module, from code that the user points to; it runs.

    Args:
        place: `my_file.py:MyModule` or `my_package.my_file:MyModule`, the latter from the working folder, too.
        arguments: Keyword arguments of the class or function.

    Raises:
        ValueError: If the text has no `:`, or the file lacks the name.
        FileNotFoundError: If there is no such file.
        ImportError: If there is no such package.
    """
    home, colon, name = place.rpartition(":")
    if not colon or not home or not name:
        raise ValueError(f"expected a file or package and a class, such as my_file.py:MyModule, got {place!r}")
    module = _import_file(Path(home)) if home.endswith(".py") else _import_package(home)
    maker = getattr(module, name, None)
    if maker is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(
            f"expected {name!r} in {home}, got {', '.join(known) or 'nothing'}{did_you_mean(name, known)}"
        )
    given = dict(arguments or {})
    return lambda: maker(**given)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path} (tried {path.absolute()}); give the file of the module")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def _import_package(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _reset_copies(network: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        fresh = copy.deepcopy(network)
        for part in fresh.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        return fresh

    return make


def _varied(inputs: Any) -> Any:
    """Example inputs that tell networks apart: floating-point tensors with random values, several in a batch."""
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
class ModuleSettings:
    """The user's own module, for networks whose architecture the library does not have."""

    module: str | None = setting(
        "Class or function that makes the networks' module, as my_file.py:MyModule or my_package.my_file:MyModule. "
        "Its code runs.",
        default=None,
    )
    module_args: dict[str, Any] | str | None = setting(
        "Arguments of the module as a JSON object, or the path of a JSON file.", default=None
    )
    module_input: list[int] = setting(
        "Shape of one input of the module, such as 1,28,28: its symmetries are traced with it.", factory=list
    )

    def register(self) -> None:
        """Register the module, so that networks with its tensors can run."""
        if self.module is None:
            if self.module_args or self.module_input:
                raise ValueError("expected a module (--module) for its arguments or inputs, got none; name it")
            return
        inputs = torch.zeros(1, *self.module_input) if self.module_input else None
        name = self.module.rpartition(":")[2]
        given = self.module_args
        arguments = read_settings(given, "--module-args") if isinstance(given, str) else given
        register_architecture(load_module(self.module, arguments), inputs, name=name)


__all__ = ["ModuleArchitecture", "ModuleSettings", "load_module", "register_architecture"]
