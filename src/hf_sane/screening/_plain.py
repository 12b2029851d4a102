"""Tensors of plain values, as opposed to sparse, quantised or nested ones, which few operations of PyTorch take."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_sane.records._errors import name_some


def why_not_plain(tensor: Tensor) -> str:
    """Why the values of a tensor are not compared; empty if they are."""
    if tensor.is_quantized:
        return f"{str(tensor.dtype).removeprefix('torch.')}: quantised values of PyTorch are not supported"
    if tensor.is_nested:
        return "nested values are not supported"
    if tensor.layout != torch.strided:
        return f"values of the layout {str(tensor.layout).removeprefix('torch.')} are not supported"
    return "it is on the device meta, without values" if tensor.is_meta else ""


def plain_tensors(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A network whose tensors all hold plain values, as files that are read one tensor at a time always do.

    Raises:
        ValueError: If there are others.
    """
    if hasattr(tensors, "outlines"):
        return tensors
    if bad := {name: reason for name, x in tensors.items() if (reason := why_not_plain(x))}:
        raise ValueError(
            f"expected tensors of plain values, got {name_some(bad)} ({next(iter(bad.values()))}); save dense "
            f"tensors, or remove these"
        )
    return {name: _resolved(x) for name, x in tensors.items()}


def _resolved(tensor: Tensor) -> Tensor:
    """A tensor whose values are those in its memory, in a type that operations take."""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.to(torch.complex64) if tensor.dtype == torch.complex32 else tensor
