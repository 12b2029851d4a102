"""Weighted averages of checkpoints, with one tensor of each in memory at a time."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_sane.core._types import StateDict
from hf_sane.merging._ingredients import Ingredient, is_averaged
from hf_sane.merging._reconciliation import carries_nothing, tied_names
from hf_sane.records._progress import tracked

COUNTER = "num_batches_tracked"  # of batch norm, the only integer that may differ between runs
SUM_TOLERANCE = 1e-6


def average_checkpoints(ingredients: Sequence[Ingredient], weights: Sequence[float] | None = None) -> StateDict:
    """Average checkpoints into a state dict in memory.

    Args:
        ingredients: From [`open_ingredients`], aligned or not.
        weights: One per ingredient, >= 0, with sum 1; equal if `None`.

    Returns:
        A new state dict `{name: [*shape]}`.

    Raises:
        ValueError: As in [`average_tensors`].
    """
    return dict(average_tensors(ingredients, uniform_weights(ingredients) if weights is None else weights))


def uniform_weights(ingredients: Sequence[object]) -> list[float]:
    """The weights of a uniform soup."""
    return [1 / len(ingredients)] * len(ingredients)


def average_tensors(ingredients: Sequence[Ingredient], weights: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    """Average checkpoints tensor by tensor: `w_bar = sum_i a_i w_i` (Wortsman et al. 2022, arXiv:2203.05482).

    Sums run in double precision (single for half-precision weights), so that the average of equal checkpoints is that
    checkpoint, bit by bit. The result has a dtype that can represent all averaged values: the common dtype, or float32
    for float16 with bfloat16. Integers and booleans are never averaged: batch counters take the largest value, others
    must be equal. Ingredients with weight zero are not read.

    Args:
        ingredients: From [`open_ingredients`], aligned or not.
        weights: One per ingredient, >= 0, with sum 1.

    Yields:
        Name and new `[*shape]` tensor, in the order of the first ingredient with a non-zero weight.

    Raises:
        ValueError: If weights are out of range, a tensor is not finite (naming it and the ingredient), or integers
            differ.
    """
    check_weights(ingredients, weights)
    parts = [(ingredient, weight) for ingredient, weight in zip(ingredients, weights, strict=True) if weight]
    for name in tracked(parts[0][0].outlines, desc="averaging", unit="tensor"):
        yield name, _average(name, parts)


def pour(model: nn.Module, ingredients: Sequence[Ingredient], weights: Sequence[float]) -> None:
    """Load a weighted average into a module, tensor by tensor, without a second copy of the model.

    Weights that are tied in the model but not in an ingredient are untied. For Transformers architectures whose names
    differ between disk and memory, the average is first made in memory, then converted as in `from_pretrained`.

    Args:
        model: Model of the architecture of the ingredients; its tensors are overwritten, in their own dtype.
        ingredients: From [`open_ingredients`], aligned or not.
        weights: One per ingredient, >= 0, with sum 1.

    Raises:
        ValueError: If model and ingredients do not have the same tensors, or as in [`average_tensors`].
    """
    outlines = ingredients[0].outlines
    _untie_what_differs(model, [part for part, weight in zip(ingredients, weights, strict=True) if weight])
    targets = model.state_dict(keep_vars=True)
    # A tied tensor has several names in the module and one in the file.
    covered = {targets[name].data_ptr() for name in outlines if name in targets}
    foreign = sorted(outlines.keys() - targets.keys())
    missing = [
        name
        for name, tensor in targets.items()
        if tensor.numel() and tensor.data_ptr() not in covered and not carries_nothing(name, tensor)
    ]
    tensors = average_tensors(ingredients, weights)
    if (foreign or missing) and isinstance(model, PreTrainedModel):
        loaded, missing, foreign = _converted(model, dict(tensors))
        tensors = iter(loaded.items())
    if foreign or missing:
        raise ValueError(
            f"{type(model).__name__} is not of the architecture of {ingredients[0].name}: the checkpoint lacks "
            f"{missing[:3]}, the model lacks {foreign[:3]}"
        )
    with torch.no_grad():
        for name, tensor in tensors:
            if targets[name].shape != tensor.shape:
                raise ValueError(
                    f"{name!r} is {list(targets[name].shape)} in {type(model).__name__} and {list(tensor.shape)} in "
                    f"{ingredients[0].name}; build the model from the configuration of the checkpoints"
                )
            targets[name].copy_(to_dtype(name, tensor, targets[name].dtype))


def _untie_what_differs(model: nn.Module, ingredients: Sequence[Ingredient]) -> None:
    """Separate tensors that the model shares if any ingredient stores two different ones for them."""
    targets = model.state_dict(keep_vars=True)
    owners: dict[int, str] = {}
    for name in ingredients[0].outlines:
        if name not in targets or not targets[name].numel():
            continue
        owner = owners.setdefault(targets[name].data_ptr(), name)
        if owner == name or targets[owner] is not targets[name]:
            continue
        if not all(torch.equal(part.tensor(owner), part.tensor(name)) for part in ingredients):
            untie(model, name)


def untie(model: nn.Module, name: str) -> None:
    """Separate a tensor that several modules share, and record this in the model's configuration."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    shared = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))
    config: Any = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _converted(model: PreTrainedModel, state_dict: StateDict) -> tuple[StateDict, list[str], list[str]]:
    """A state dict with the names in memory, names that are missing or differ in shape, and unexpected names."""
    loaded: Any = type(model).from_pretrained(
        None, config=model.config, state_dict=state_dict, output_loading_info=True, ignore_mismatched_sizes=True
    )
    converted, problems = loaded
    missing = sorted(problems["missing_keys"]) + [str(entry[0]) for entry in problems["mismatched_keys"]]
    return converted.state_dict(), missing, sorted(problems["unexpected_keys"])


def check_weights(ingredients: Sequence[object], weights: Sequence[float]) -> None:
    """Raise an error unless weights are shares of the ingredients, see [`average_tensors`]."""
    if len(weights) != len(ingredients):
        raise ValueError(f"expected one weight per ingredient, {len(ingredients)}, got {len(weights)}")
    if not all(0 <= weight < math.inf for weight in weights) or abs(sum(weights) - 1) > SUM_TOLERANCE:
        raise ValueError(f"expected weights >= 0 with sum 1, got {list(weights)}")


def _average(name: str, parts: Sequence[tuple[Ingredient, float]]) -> Tensor:
    first = parts[0][0]
    outline = first.outlines[name]
    if not is_averaged(outline):
        return _agreed(name, parts)
    dtype = reduce(torch.promote_types, [ingredient.outlines[name].dtype for ingredient, _ in parts])
    if len(parts) == 1:
        result = first.tensor(name).detach().clone()
    else:
        total = torch.zeros(outline.shape, dtype=_accumulator(dtype))
        for ingredient, weight in parts:
            total.add_(ingredient.tensor(name).detach(), alpha=weight)  # promoted inside, no copy in double precision
        result = total.to(dtype)
    if not result.isfinite().all():
        guilty = [part.name for part, _ in parts if not part.tensor(name).isfinite().all()]
        raise ValueError(
            f"{name!r} is not finite (NaN or infinite weights) in {', '.join(guilty) or 'the sum'}; leave out "
            "diverged checkpoints"
        )
    return result


def soup_dtype(ingredients: Sequence[Ingredient]) -> torch.dtype:
    """A dtype that can represent the weights of all ingredients, such as float32 for float16 with bfloat16."""
    found = [o.dtype for ingredient in ingredients for o in ingredient.outlines.values() if o.is_floating_point()]
    return reduce(torch.promote_types, found, found[0] if found else torch.float32)


def averaged_config(ingredients: Sequence[Ingredient], tensors: StateDict) -> dict[str, Any]:
    """The first ingredient's configuration, with the dtype and the tied weights of the average.

    Remote code (`auto_map`) is left out, since architectures of Transformers require none.

    Args:
        ingredients: Networks from [`open_ingredients`].
        tensors: Their average.
    """
    first = ingredients[0]
    config = deepcopy({key: value for key, value in first.config.items() if key != "auto_map"})
    if any(tensor.dtype != first.outlines[name].dtype for name, tensor in tensors.items()):
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(soup_dtype(ingredients)).removeprefix("torch.")
    ties = [(a, b) for a, b in tied_names(config).items() if a in tensors and b in tensors]
    if any(not torch.equal(tensors[target], tensors[source]) for target, source in ties):
        config["tie_word_embeddings"] = False
        for part in [value for value in config.values() if isinstance(value, dict)]:
            if "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    return config


def to_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to another dtype, with all values finite.

    Raises:
        ValueError: If a value is too large for the dtype.
    """
    result = tensor.to(dtype)
    if result.is_floating_point() and not result.isfinite().all():
        raise ValueError(
            f"{name!r} has values up to {tensor.abs().max():.3g}, too large for {dtype}, whose maximum is "
            f"{torch.finfo(dtype).max:.3g}; use a model in {torch.float32} or {torch.bfloat16}"
        )
    return result


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _agreed(name: str, parts: Sequence[tuple[Ingredient, float]]) -> Tensor:
    """An integer tensor that is equal in all ingredients, or, for batch counters, the largest."""
    value = parts[0][0].tensor(name).clone()
    for ingredient, _ in parts[1:]:
        other = ingredient.tensor(name)
        if name.endswith(COUNTER):
            value = torch.maximum(value, other)
        elif not torch.equal(value, other):
            raise ValueError(
                f"integer tensor {name!r} differs between {parts[0][0].name} and {ingredient.name}: indices, masks "
                "and quantised weights cannot be averaged; average unquantised checkpoints of one architecture"
            )
    return value
