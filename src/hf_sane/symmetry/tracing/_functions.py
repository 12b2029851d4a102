"""Wrap a model as a function from inputs to tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LOWER_PRECISION = (torch.float32, torch.float16, torch.bfloat16)
ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model.

    Attributes:
        arguments: Positional arguments.
        keywords: Keyword arguments.
    """

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example_inputs: ExampleInputs) -> "Inputs":
        """One tensor, a tuple of arguments or a mapping of keyword arguments; floating-point tensors become float64.

        Raises:
            TypeError: If the inputs have another type.
        """
        if isinstance(example_inputs, Tensor):
            return cls((_double(example_inputs),))
        if isinstance(example_inputs, tuple):
            return cls(tuple(_double(value) for value in example_inputs))
        if isinstance(example_inputs, Mapping):
            return cls((), {name: _double(value) for name, value in example_inputs.items()})
        raise TypeError(
            "expected example_inputs as a tensor, a tuple of arguments or a mapping of keyword arguments, got "
            f"{type(example_inputs).__name__}"
        )


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class OutputOf(nn.Module):
    """A model that returns a flat tuple of floating-point tensors: its `logits` if any, otherwise all outputs.

    Caches of keys and values are left out, since they expose the inside of a model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any, **keywords: Any) -> tuple[Tensor, ...]:
        """Call the model.

        Raises:
            TypeError: If it returns no floating-point tensor.
        """
        output = self.model(*arguments, **keywords)
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        found = tuple(_tensors(output if logits is None else logits))
        if not found:
            raise TypeError(
                f"expected a model that returns tensors, or an output with logits, got {type(output).__name__}"
            )
        return found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for name, value in output.items() if name != "past_key_values" for t in _tensors(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in _tensors(value)]
    return []


def exportable(model: nn.Module) -> nn.Module:
    """Prepare a Transformers model for export in float64, in place: no cache, and experts as plain matrix products.

    A cache is not part of the function; grouped products do not support float64, and loops over experts depend on
    values.
    """
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "use_cache", False):
        config.use_cache = False
    choose: Any = getattr(model, "set_experts_implementation", None)
    if choose is not None:
        choose("batched_mm")
    return model


class InDouble(TorchDispatchMode):
    """Redirect casts to a lower precision to float64, since many norms always compute in float32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in LOWER_PRECISION:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@torch.no_grad()
def run_in_double(model: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """Outputs of a float64 model, fully computed in float64."""
    with InDouble():
        return OutputOf(model)(*inputs.arguments, **inputs.keywords)
