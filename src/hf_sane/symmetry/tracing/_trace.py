"""Find the permutation symmetries of any model: export it, type the axes, verify the result."""

import copy

import torch
from torch import nn

from hf_sane.records._errors import shorten
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry.tracing._functions import ExampleInputs, Inputs, exportable
from hf_sane.symmetry.tracing._graph import type_model
from hf_sane.symmetry.tracing._specification import specification
from hf_sane.symmetry.tracing._verification import verify

SEED = 0  # of the verification
MAX_REASONS = 300  # characters of a message


def trace_permutations(model: nn.Module, example_inputs: ExampleInputs) -> PermutationSpec:
    """Find the permutation symmetries of a model without a description of its architecture.

    The model is exported (`torch.export`) and the axes of everything it computes are typed: an axis is a sum
    (concatenation) of products (reshaping) of atoms. Operations determine which axes must be reordered in the same way
    (the channels of a residual stream), which are split or flattened, and which have a fixed order (inputs, outputs,
    kernel positions, table rows). Axes that remain free are symmetries: channels and neurons, whole heads and groups,
    and inside each head or group its dimensions where the model allows it. An unknown operation fixes all axes of its
    inputs and outputs, and the spec lists it in `fixed`. Finally, the spec is verified by running the model in
    float64.

    Only permutations that follow from the structure of the graph are found, not scalings or symmetries of particular
    weights. In attention with rotary embeddings, the dimensions of queries and keys are fixed. Axes of different
    tensors may be permuted differently per group only along one dimension of a tensor, so that channels inside the
    groups of a grouped convolution move together in all groups where the weight holds groups and channels in two
    dimensions.

    Args:
        model: Model on the CPU, in any mode and dtype; it is not changed.
        example_inputs: Inputs of the model: a tensor, a tuple of arguments or a mapping of keyword arguments, with at
            least two different examples. Shapes may differ later.

    Returns:
        The verified spec for the tensors of the state dict. Buffers are `unmatched`.

    Raises:
        TypeError: If the inputs or outputs have another type.
        ValueError: If the model cannot be exported, has no symmetry, or its outputs change when its weights are
            permuted.
    """
    inputs = Inputs.of(example_inputs)
    network = exportable(copy.deepcopy(model).double().eval())
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    try:
        typed = type_model(network, inputs)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} has shapes that depend on values: it cannot be traced") from error
    spec = specification(typed, [name for name in network.state_dict() if name not in parameters])
    if not spec.sizes:
        reasons = shorten("; ".join(spec.explain_fixed().splitlines()), MAX_REASONS)
        raise ValueError(
            f"{type(model).__name__} has no permutation symmetry that could be proven ({reasons}); use its networks "
            "without alignment"
        )
    try:
        verify(spec, network, example_inputs, generator=torch.Generator().manual_seed(SEED))
    except ValueError as error:
        raise ValueError(
            f"the traced permutation spec of {type(model).__name__} failed verification: {error}. It uses an "
            f"operation whose "
            "axes are typed wrongly; please report the architecture, and write a PermutationSpec by hand until it "
            "is fixed"
        ) from error
    return spec
