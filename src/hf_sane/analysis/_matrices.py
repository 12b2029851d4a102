"""Extract the matrices of a network: every tensor is converted to matrices or skipped with a reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from torch import Tensor

from hf_sane.analysis._report import NOT_FINITE
from hf_sane.core._layer_kinds import LayerKind, is_stack_of_matrices, possible_kinds

ConvReshaping = Literal["flatten", "slices", "pooled"]
LOW_RANK_FACTOR = "a factor of a low-rank product, whose own spectrum means nothing"
LEAST, MOST = 1e-140, 1e140  # of the largest weight of a matrix in float64
UNCLEAR_AXES = "three axes, so it may be a convolution or a stack of matrices"
CONV_RESHAPINGS: tuple[ConvReshaping, ...] = get_args(ConvReshaping)


@dataclass(frozen=True, slots=True)
class LayerMatrices:
    """One row of the report before it is analysed.

    Attributes:
        name: Name of the tensor; of a slice with its kernel position, `conv1.weight[0,2]`.
        weight: The tensor as it is stored.
        matrices: `[K, m, n]`, a view of `weight`; several are pooled into one spectrum.
        reshaping: `"matrix"` for tensors of two axes, `"expert"` for one matrix of a stack, `"product"` for the change
            that an adapter makes, otherwise how the kernel was treated.
        warning: Caveat about the row.
    """

    name: str
    weight: Tensor
    matrices: Tensor
    reshaping: str
    warning: str = ""


def layer_matrices(
    tensors: Mapping[str, Tensor],
    conv: ConvReshaping,
    skipped: dict[str, str],
) -> Iterator[LayerMatrices]:
    """Yield the matrices of a network, with one tensor in memory at a time.

    Tensors of two axes are matrices. Fused experts `[experts, m, n]` have one spectrum and row each. Other tensors of
    more axes are convolutions `[c_out, c_in, *kernel]`: `"flatten"` makes them one matrix `[c_out, c_in * k]`, the one
    that multiplies image patches; `"slices"` makes one matrix `[c_out, c_in]` per kernel position, each with its own
    row; `"pooled"` takes the same slices but puts their eigenvalues into one spectrum, as Martin and Mahoney's
    `weightwatcher` does.

    Args:
        tensors: Tensors by name, which are read one after the other.
        conv: How to reshape convolutions.
        skipped: Filled with the names of tensors that give no matrix, with the reason.

    Raises:
        ValueError: If the reshaping is unknown.
    """
    if conv not in CONV_RESHAPINGS:
        raise ValueError(f"expected conv to be one of {', '.join(CONV_RESHAPINGS)}, got {conv!r}")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(tensors, ())
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name in tensors:
        weight = tensors[name].detach()
        shapes[name] = tuple(weight.shape)
        possible = possible_kinds(name, shapes)
        is_stack = weight.ndim == 3 and is_stack_of_matrices(shapes[name], possible)
        reason = reason_to_skip(weight) or _reason_by_kind(name, weight, possible, is_stack=is_stack)
        place = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        if reason is None and isinstance(tensors, dict) and place in seen:
            reason = f"the same memory as {seen[place]}"
        if reason is not None:
            skipped[name] = reason
            continue
        seen[place] = name
        if weight.ndim == 2:
            yield LayerMatrices(name, weight, weight[None], "matrix")
        elif is_stack:
            for index, matrix in enumerate(weight):
                if (reason := reason_to_skip(matrix)) is None:
                    yield LayerMatrices(f"{name}[{index}]", matrix, matrix[None], "expert")
                else:
                    skipped[f"{name}[{index}]"] = reason
        elif conv == "flatten":
            yield LayerMatrices(name, weight, weight.flatten(1)[None], "flatten")
        elif conv == "pooled":
            yield LayerMatrices(name, weight, weight.flatten(2).movedim(2, 0), "pooled")
        else:
            slices = weight.flatten(2).movedim(2, 0)
            for matrix, place_in_kernel in zip(slices, product(*map(range, weight.shape[2:])), strict=True):
                label = ",".join(map(str, place_in_kernel))
                yield LayerMatrices(f"{name}[{label}]", weight, matrix[None], "slice")


def _reason_by_kind(
    name: str, weight: Tensor, possible: tuple[LayerKind, ...], *, is_stack: bool | None
) -> str | None:
    """Why a tensor should not be treated as a matrix or convolution, if so."""
    if possible == ("low_rank",):
        return LOW_RANK_FACTOR
    if name.endswith("bias"):
        return "biases"
    return UNCLEAR_AXES if is_stack is None else None


def reason_to_skip(weight: Tensor) -> str | None:
    """Why a tensor has no spectrum, or `None` if it has one."""
    if not weight.is_floating_point():
        return f"{str(weight.dtype).removeprefix('torch.')} values, no weights"
    if weight.numel() == 0:
        return "no elements"
    # First, so that NaN values in biases and scales are also found.
    if not weight.is_meta and not is_finite(weight):
        return NOT_FINITE
    if weight.ndim < 2:
        return "one-dimensional"
    if min(weight.shape[0], weight[0].numel()) == 1:
        return "a single row or column"
    if weight.element_size() == 1:
        return "8-bit floats; convert them first"
    if weight.is_meta:
        return "no values, only a shape (meta device)"
    if not weight.any():
        return "all weights are zero"
    if weight.element_size() == 8 and not LEAST < float(weight.abs().max()) < MOST:
        return f"the largest weight is beyond {LEAST:g} to {MOST:g}: its square is too small or too large for a float"
    return None


def is_finite(weight: Tensor) -> bool:
    """Whether all weights are finite, also for 8-bit floats, which PyTorch does not support."""
    return bool((weight.float() if weight.element_size() == 1 else weight).isfinite().all())
