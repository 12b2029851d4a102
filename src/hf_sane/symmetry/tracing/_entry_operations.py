"""Operations on entries: elementwise operations, constants, reductions and scans along a dimension."""

from hf_sane.symmetry.tracing._axes import equal_axis, freeze, new_axis
from hf_sane.symmetry.tracing._calls import Call, Handler, Result, broadcast, fixed

# Entry by entry, with broadcasting; the entries of an axis are all treated alike.
ELEMENTWISE = """
    __and__ __or__ _to_copy abs add alias atan2 bitwise_and bitwise_not bitwise_or bitwise_xor celu ceil clamp
    clamp_max clamp_min clone contiguous copy copysign cos deg2rad detach div dropout elu eq erf erfc exp expm1
    feature_dropout floor floor_divide fmod ge gelu gt hardsigmoid hardswish hardtanh isfinite isinf isnan le
    leaky_relu lerp lift_fresh_copy log log1p log_sigmoid logaddexp logical_and logical_not logical_or lt
    masked_fill max maximum min minimum mish mul nan_to_num ne neg positive pow reciprocal relu relu6
    remainder round rsqrt rsub selu sigmoid sign silu sin softplus softsign special_erf sqrt square sub tan
    tanh threshold to true_divide trunc type_as where xlogy
"""
# All entries have the same value, so the order is irrelevant.
UNIFORM = """
    empty empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like scalar_tensor zeros
    zeros_like
"""
# The order of the entries is known and matters, as for arange.
ORDERED = """
    arange eye lift_fresh linspace rand rand_like randn randn_like tril_indices triu_indices
"""
REDUCTIONS = """
    all amax amin any argmax argmin linalg_vector_norm logsumexp mean norm nansum prod std sum var
"""
SAME = """
    softmax _softmax log_softmax _log_softmax
"""


def elementwise(call: Call) -> Result:
    """Combine entries at the same position; `max` and `min` along a dimension are reductions."""
    if call.name in ("max", "min") and call["other"] is None:
        return extreme(call)
    return broadcast(call.tensors(), len(call.shape))


def extreme(call: Call) -> Result:
    """Largest entry of all, or along a dimension with its index, which fixes the order."""
    if call["dim"] is None:
        return []
    inputs = call.type("self")
    freeze(inputs[call.dim("dim", len(inputs))], "an index into it is computed")
    result = reduction(call)
    assert isinstance(result, list)
    return (result, list(result))


def reduction(call: Call) -> Result:
    """Reduce dimensions independently of their order."""
    inputs = call.type("self")
    dims = call["dim"]
    if dims is None or dims == []:
        reduced = set(range(len(inputs)))
    else:
        reduced = {dim % len(inputs) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    if call.name in ("argmax", "argmin"):
        for dim in reduced:
            freeze(inputs[dim], "an index into it is computed")
    if call["keepdim"]:
        return [new_axis(1) if dim in reduced else axis for dim, axis in enumerate(inputs)]
    return [axis for dim, axis in enumerate(inputs) if dim not in reduced]


def same(call: Call) -> Result:
    """Reduce along a dimension and divide by it."""
    return call.type("self")


def uniform(call: Call) -> Result:
    """A tensor of equal entries."""
    return [equal_axis(size) for size in call.shape]


def ordered(call: Call) -> Result:
    """A tensor whose entries have a given order."""
    return fixed(call.shape, "combined with constants")


def cumulative(call: Call) -> Result:
    """A scan along a dimension."""
    inputs = call.type("self")
    freeze(inputs[call.dim("dim", len(inputs))], f"the order matters in {call.name}")
    return inputs


def moved(call: Call) -> Result:
    """Roll or flip."""
    inputs = call.type("self")
    for dim in call["dims"] or range(len(inputs)):
        freeze(inputs[dim], f"the order matters in {call.name}")
    return inputs


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(UNIFORM.split(), uniform),
    **dict.fromkeys(ORDERED.split(), ordered),
    **dict.fromkeys(REDUCTIONS.split(), reduction),
    **dict.fromkeys(SAME.split(), same),
    **dict.fromkeys(["cumsum", "cumprod", "logcumsumexp", "diff"], cumulative),
    **dict.fromkeys(["roll", "flip"], moved),
}
"""Rules for operations, by their ATen name."""
