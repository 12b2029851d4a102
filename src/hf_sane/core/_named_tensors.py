"""Tensors of a network by name, which may be read one at a time: their outlines, and other names for them."""

from collections.abc import Iterator, Mapping
from functools import cached_property

from torch import Tensor


def outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Shapes, without reading tensors if the mapping has outlines."""
    return getattr(tensors, "outlines", tensors)


class RenamedTensors(Mapping[str, Tensor]):
    """Tensors of a network under other names; those without another name are left out.

    Args:
        tensors: Lazy or in memory.
        names: Name in `tensors` by new name.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    @cached_property
    def outlines(self) -> dict[str, Tensor]:
        """Shapes by new name."""
        known = outlines(self._tensors)
        return {name: known[stored] for name, stored in self._names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
