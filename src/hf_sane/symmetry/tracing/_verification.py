"""Verification of a permutation spec by running the model before and after a random permutation."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_sane.symmetry._parts import reorder
from hf_sane.symmetry._permutation import Permutation, PermutationSpec
from hf_sane.symmetry.tracing._functions import ExampleInputs, Inputs, exportable, run_in_double

ATTEMPTS = 5  # attempts with other weights, in case all ReLU units of a small layer are dead


def _perturbed(state_dict: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
    """Float64 copies in which no two channels are equal; vectors only grow, so that variances remain positive."""
    changed: dict[int, Tensor] = {}  # tied tensors remain tied
    for tensor in state_dict.values():
        if id(tensor) not in changed:
            changed[id(tensor)] = _noisy(tensor.detach(), generator)
    return {name: changed[id(tensor)] for name, tensor in state_dict.items()}


def _noisy(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    tensor = tensor.double()
    if tensor.ndim <= 1:
        return tensor + 0.1 + 0.4 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    # At least the scale of He et al. 2015, since deep networks with smaller weights have constant outputs.
    scale = max(0.1 * tensor.square().mean().sqrt().item(), math.sqrt(2 * len(tensor) / max(1, tensor.numel())))
    return tensor + scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def _moving_permutation(spec: PermutationSpec, generator: torch.Generator | None) -> Permutation:
    """A random permutation that moves something in every free set of more than one entry."""
    permutation = spec.random(generator=generator)
    still = spec.identity()
    for free in spec.generators.values():
        axis, entries = next(iter(free.entries.items()))
        if free.size > 1 and torch.equal(permutation[axis][entries], still[axis][entries]):
            for axis, entries in free.entries.items():
                reorder(permutation[axis], entries, torch.arange(free.size).roll(1))
    return permutation


def _tells(outputs: list[Tensor]) -> bool:
    """Whether outputs are finite and differ between examples."""
    differ = any(output.ndim and not torch.equal(output, output[:1].expand_as(output)) for output in outputs)
    return differ and all(bool(output.isfinite().all()) for output in outputs)


@torch.no_grad()
def verify(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-10,
    permute: Callable[[dict[str, Tensor], Permutation], dict[str, Tensor]] | None = None,
) -> float:
    """Verify a spec by running the network before and after a random permutation, in float64.

    The weights are perturbed first: in a new network biases are zero and running statistics equal, so that a spec
    without them would pass. `model` itself is not changed.

    Args:
        spec: Spec to check.
        model: Network on the CPU, whose `logits` (or all floating-point outputs) are compared.
        example_inputs: A batch that the network accepts, in any float dtype, with at least two different examples. A
            tensor, a tuple of arguments, or keyword arguments as a mapping.
        generator: Source of randomness; the global one if `None`.
        tolerance: Largest difference of the outputs, relative to their largest absolute value.
        permute: Function that applies a permutation to the state dict, if the spec is that of other tensors.

    Returns:
        The measured relative difference.

    Raises:
        ValueError: If the spec does not cover the state dict, the outputs change, or they are inconclusive (not
            finite, or equal for all examples).
    """
    if permute is None and (differing := sorted(model.state_dict().keys() ^ spec.axes.keys())):
        raise ValueError(f"the spec must cover the state dict exactly; missing or unexpected tensors: {differing}")
    inputs = Inputs.of(example_inputs)
    network = exportable(copy.deepcopy(model).double().eval())

    def outputs(weights: dict[str, Tensor]) -> list[Tensor]:
        network.load_state_dict(weights)
        return [output.clone() for output in run_in_double(network, inputs)]

    state_dict = network.state_dict(keep_vars=True)
    for _ in range(ATTEMPTS):
        tensors = _perturbed(state_dict, generator)
        if _tells(before := outputs(tensors)):
            break
    else:
        raise ValueError("the outputs are not finite, or equal for all example_inputs, so the spec cannot be verified")
    after = outputs((permute or spec.apply)(tensors, _moving_permutation(spec, generator)))
    error = max(
        ((second - first).abs().max() / first.abs().max()).item() for first, second in zip(before, after, strict=True)
    )
    if not error <= tolerance:
        raise ValueError(
            f"the permutation changes the function: relative difference {error:.1e} > {tolerance:.1e}; the spec is "
            "wrong"
        )
    return error
