"""Read tensors of 8-bit floats, for which PyTorch has few operations, in single precision."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hf_sane.core._named_tensors import outlines


def readable(tensor: Tensor) -> Tensor:
    """A tensor on which all operations work: 8-bit floats become float32, which holds their values exactly."""
    return tensor.float() if is_float8(tensor) else tensor


def is_float8(tensor: Tensor) -> bool:
    """Whether a tensor holds 8-bit floats."""
    return tensor.is_floating_point() and tensor.itemsize == 1


class Readable(Mapping[str, Tensor]):
    """A network whose tensors are converted when they are read, see [`readable`]."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.outlines = {
            name: torch.empty(x.shape, dtype=torch.float32, device="meta") if is_float8(x) else x
            for name, x in outlines(tensors).items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return readable(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
