"""Traverse the exported graph of a model and find the type of every axis of every parameter."""

import operator
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from hf_sane.records._errors import describe_cause
from hf_sane.symmetry.tracing import _entry_operations as entry_operations
from hf_sane.symmetry.tracing import _layer_operations as layer_operations
from hf_sane.symmetry.tracing import _shape_operations as shape_operations
from hf_sane.symmetry.tracing._axes import freeze, new_axis, unify
from hf_sane.symmetry.tracing._calls import Call, NotUnderstoodError, Result, Type, fixed
from hf_sane.symmetry.tracing._functions import Inputs, OutputOf

HANDLERS = {**entry_operations.HANDLERS, **shape_operations.HANDLERS, **layer_operations.HANDLERS}


@dataclass(frozen=True)
class TypedModel:
    """Axis types of a model.

    Attributes:
        tensors: For every tensor of the state dict, the types of its dimensions; tied tensors share theirs.
        values: Types of all intermediate values, and of axes that are indexed together in a contraction.
    """

    tensors: dict[str, Type]
    values: list[Type]


def type_model(model: nn.Module, inputs: Inputs) -> TypedModel:
    """Export a model and type its axes.

    The graph consists of ATen operations before decomposition (`linear` and `scaled_dot_product_attention` remain
    intact); the effect of operations on axes is defined in `entry_operations`, `shape_operations` and
    `layer_operations`.

    Args:
        model: Module in evaluation mode.
        inputs: Inputs of the model.

    Raises:
        ValueError: If it cannot be exported.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # A warning if a module caches its weights in a list, as recurrent layers do.
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export", UserWarning)
            program = torch.export.export(OutputOf(model), inputs.arguments, dict(inputs.keywords), strict=False)
    except TypeError:
        raise  # of inputs or outputs
    except Exception as error:  # raised by the model itself, which may be the user's, or by torch.export
        raise ValueError(
            f"{type(model).__name__} cannot be exported with these inputs ({describe_cause(error)}); expected a model "
            "that torch.export supports, without branches or shapes that depend on values; use its networks without "
            "alignment"
        ) from error
    state = model.state_dict(keep_vars=True)
    by_identity = {id(tensor): _new_type(tensor) for tensor in state.values()}
    placeholders = _held_tensors(program, model)
    types: dict[Node, Result] = {}
    used: set[int] = set()
    aligned: list[Type] = []
    for node in program.graph.nodes:
        held = placeholders.get(node.name)
        if held is not None and id(held) in by_identity:
            types[node] = by_identity[id(held)]
            if node.users:
                used.add(id(held))
        elif node.op in ("placeholder", "get_attr"):
            if isinstance(value := node.meta.get("val"), Tensor):
                reason = "inputs of the network" if held is None else "met constants"
                types[node] = fixed(value.shape, reason)
        elif node.op == "output":
            for argument in node.all_input_nodes:
                _freeze(types, argument, "outputs of the network")
        elif (found := _visit(node, types, aligned)) is not None:
            types[node] = found
    for identity, dimensions in by_identity.items():
        if identity not in used:
            for axis in dimensions:
                freeze(axis, "not used for the outputs")
    computed = [found for value in types.values() for found in (value if isinstance(value, tuple) else [value])]
    tensors = {name: by_identity[id(tensor)] for name, tensor in state.items()}
    return TypedModel(tensors, [*(found for found in computed if found is not None), *aligned])


def _new_type(tensor: Tensor) -> Type:
    reason = None if tensor.is_floating_point() else "integers"
    return [new_axis(size, reason) for size in tensor.shape]


def _held_tensors(program: ExportedProgram, model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the model behind the placeholders of the graph."""
    signature = program.graph_signature
    held: dict[str, Tensor] = {}
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        held[placeholder] = known[name.removeprefix("model.")]
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        held[placeholder] = program.constants[name]
    return held


def _freeze(types: dict[Node, Result], node: Node, reason: str) -> None:
    value = types.get(node)
    for found in value if isinstance(value, tuple) else [value]:
        for axis in found or ():
            freeze(axis, reason)


def _visit(node: Node, types: dict[Node, Result], aligned: list[Type]) -> Result | None:
    """Type of an operation's result; `None` if that is not a tensor."""
    if node.target is operator.getitem:
        source, place = node.args
        assert isinstance(source, Node)
        value = types.get(source)
        if isinstance(value, tuple) and isinstance(place, int) and place < len(value):
            return value[place]
    output = node.meta.get("val")
    if not isinstance(output, Tensor | list | tuple):
        return None
    call = _call(node, types, aligned)
    if call is not None and call.name in HANDLERS:
        try:
            result = HANDLERS[call.name](call)
        except NotUnderstoodError:
            pass
        else:
            if _writes(node) and isinstance(result, list):  # its target may be a view of another tensor
                for axis, written in zip(call.tensors()[0], result, strict=True):
                    unify(axis, written)
            return result
    name = call.name if call is not None else str(node.target)
    for argument in node.all_input_nodes:
        _freeze(types, argument, f"used in an unsupported way ({name})")
    if isinstance(output, Tensor):
        return fixed(output.shape, f"computed in an unsupported way ({name})")
    return tuple(
        fixed(value.shape, f"computed in an unsupported way ({name})") if isinstance(value, Tensor) else None
        for value in output
    )


def _writes(node: Node) -> bool:
    name = node.target._schema.name  # type: ignore[union-attr]
    return name.endswith("_") and not name.endswith("__")


def _call(node: Node, types: dict[Node, Result], aligned: list[Type]) -> Call | None:
    """The operation with named arguments; `None` unless it is an ATen operation."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):
        return None
    arguments: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args) and not argument.kwarg_only:
            arguments[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            arguments[argument.name] = node.kwargs[argument.name]
        else:
            arguments[argument.name] = argument.default_value if argument.has_default_value() else None
    name = schema.name.removeprefix("aten::")
    name = name if name.startswith("__") else name.removesuffix("_")
    return Call(name, arguments, types, aligned, node.meta["val"])
