"""One operation of an exported graph, with the axis types of its arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from hf_sane.symmetry.tracing._axes import Axis, axis_size, is_equal, new_axis, unify

Type = list[Axis]  # one per dimension


class NotUnderstoodError(Exception):
    """An operation is used in an unsupported way; its arguments are then fixed."""


@dataclass(frozen=True)
class Call:
    """An operation and what is known about its arguments.

    Attributes:
        name: ATen name without `aten::` and without the underscore of in-place variants.
        arguments: Arguments by their names in the operation's schema, including defaults.
        types: Types of all values computed so far.
        aligned: Receives sets of axes that are indexed together although no tensor holds exactly these: a contraction
            may reorder its entries differently only along axes that both factors share.
        output: What the operation returns, as fake tensors.
    """

    name: str
    arguments: dict[str, Any]
    types: dict[Node, Type | tuple[Type | None, ...]]
    aligned: list[Type]
    output: Any

    def __getitem__(self, argument: str) -> Any:
        return self.arguments.get(argument)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) output."""
        first = self.output[0] if isinstance(self.output, list | tuple) else self.output
        return tuple(first.shape)

    def type(self, argument: str | Node) -> Type:
        """Type of a tensor argument (or of an element of a list argument)."""
        node = self.arguments[argument] if isinstance(argument, str) else argument
        found = self.types.get(node)
        if not isinstance(found, list):
            raise NotUnderstoodError
        return list(found)

    def optional(self, argument: str) -> Type | None:
        """Type of a tensor argument that may be missing."""
        return self.type(argument) if isinstance(self[argument], Node) else None

    def tensors(self) -> list[Type]:
        """Types of all tensor arguments, including those in lists."""
        found = []
        for value in self.arguments.values():
            for node in value if isinstance(value, list | tuple) else [value]:
                if isinstance(node, Node) and isinstance(self.types.get(node), list):
                    found.append(self.type(node))
        return found

    def dim(self, argument: str, ndim: int) -> int:
        """A dimension argument, counted from the front."""
        return self[argument] % ndim


Result = Type | tuple[Type | None, ...]
Handler = Callable[[Call], Result]


def fixed(shape: Sequence[int], reason: str) -> Type:
    """A type whose entries are all fixed."""
    return [new_axis(size, reason) for size in shape]


def broadcast(types: Sequence[Type], ndim: int) -> Type:
    """Type of an elementwise combination: matching axes are unified; axes of size 1 or of equal entries adapt."""
    result: Type = [new_axis(1) for _ in range(ndim)]
    for found in types:
        for offset in range(1, len(found) + 1):
            axis = found[-offset]
            if is_equal(axis) and axis_size(axis) <= axis_size(result[-offset]):
                continue
            if is_equal(result[-offset]):
                result[-offset] = axis
            else:
                unify(result[-offset], axis)
    return result
