"""Which matrices a network consists of: every tensor becomes matrices, or is skipped with a reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

ConvReshaping = Literal["flatten", "slices", "pooled"]
CONV_RESHAPINGS: tuple[ConvReshaping, ...] = get_args(ConvReshaping)


@dataclass(frozen=True, slots=True)
class LayerMatrices:
    """One row of the report before it is analysed.

    Attributes:
        name: Of the tensor; of a slice with its kernel position, `conv1.weight[0,2]`.
        weight: The tensor as it is stored.
        matrices: `[K, m, n]`, a view of `weight`; several are pooled into one spectrum.
        reshaping: `"matrix"` for tensors of two axes, otherwise how the kernel was treated.
    """

    name: str
    weight: Tensor
    matrices: Tensor
    reshaping: str


def layer_matrices(
    tensors: Mapping[str, Tensor], conv: ConvReshaping, skipped: dict[str, str]
) -> Iterator[LayerMatrices]:
    """Go through a network, one tensor in memory at a time.

    Tensors of two axes are matrices. Those of more axes are convolutions `[c_out, c_in, *kernel]`: `"flatten"` makes them
    one matrix `[c_out, c_in * k]`, the one that multiplies image patches; `"slices"` makes one matrix `[c_out, c_in]` per
    kernel position, each with a row of its own; `"pooled"` takes the same slices but puts their eigenvalues into one
    spectrum, as Martin and Mahoney's `weightwatcher` does.

    Args:
        tensors: By name; read one after the other.
        conv: What to make of convolutions.
        skipped: Filled with the names that give no matrix, and why.

    Raises:
        ValueError: For an unknown reshaping.
    """
    if conv not in CONV_RESHAPINGS:
        raise ValueError(f"expected conv to be one of {', '.join(CONV_RESHAPINGS)}, got {conv!r}")
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name in tensors:
        weight = tensors[name].detach()
        reason = reason_to_skip(weight)
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        if reason is None and isinstance(tensors, dict) and place in seen:
            reason = f"the same memory as {seen[place]}"
        if reason is not None:
            skipped[name] = reason
            continue
        seen[place] = name
        if weight.ndim == 2:
            yield LayerMatrices(name, weight, weight[None], "matrix")
        elif conv == "flatten":
            yield LayerMatrices(name, weight, weight.flatten(1)[None], "flatten")
        elif conv == "pooled":
            yield LayerMatrices(name, weight, weight.flatten(2).movedim(2, 0), "pooled")
        else:
            slices = weight.flatten(2).movedim(2, 0)
            for matrix, place_in_kernel in zip(slices, product(*map(range, weight.shape[2:])), strict=True):
                label = ",".join(map(str, place_in_kernel))
                yield LayerMatrices(f"{name}[{label}]", weight, matrix[None], "slice")


def reason_to_skip(weight: Tensor) -> str | None:
    """Why a tensor has no spectrum, or `None` if it has one."""
    if not weight.is_floating_point():
        return f"{str(weight.dtype).removeprefix('torch.')} values, no weights"
    if weight.numel() == 0:
        return "no elements"
    if weight.ndim < 2:
        return "one-dimensional"
    if min(weight.shape[0], weight[0].numel()) == 1:
        return "a single row or column"
    if weight.element_size() == 1:
        return "8-bit floats; convert them first"
    if weight.is_meta:
        return "no values, only a shape (meta device)"
    if not torch.isfinite(weight).all():
        return "NaN or infinite weights"
    if not weight.any():
        return "all weights are zero"
    return None
