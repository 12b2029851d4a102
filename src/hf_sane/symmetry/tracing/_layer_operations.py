"""Operations that contract, normalise or mix neighbours: linear, convolution, norm, pooling, attention."""

from hf_sane.symmetry.tracing._axes import Axis, axis_size, freeze, multiply, new_axis, unify
from hf_sane.symmetry.tracing._calls import Call, Handler, NotUnderstoodError, Result, Type, broadcast, fixed

PLACES = "neighbouring positions matter (kernel, pooling, interpolation)"
POOLING = [
    *(
        f"{kind}_pool{n}d"
        for kind in ("max", "avg", "adaptive_avg", "_adaptive_avg", "adaptive_max")
        for n in (1, 2, 3)
    ),
    *(f"max_pool{n}d_with_indices" for n in (2, 3)),
    *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "bicubic2d", "linear1d")),
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
]


def linear(call: Call) -> Result:
    """`input [..., i]`, `weight [o, i]`, `bias [o]` to `[..., o]`."""
    inputs, weight, bias = call.type("input"), call.type("weight"), call.optional("bias")
    _contract(call, inputs[-1], weight[1])
    if bias is not None:
        unify(bias[0], weight[0])
    return [*inputs[:-1], weight[0]]


def _contract(call: Call, left: Axis, right: Axis, batch: Type | None = None) -> None:
    """Sum over an axis of two factors that share the axes `batch`."""
    unify(left, right)
    call.aligned.append([*(batch or []), left])


def matmul(call: Call) -> Result:
    """Batched matrix products with broadcasting; vectors as in `torch.matmul`."""
    names = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2") if call.name == "baddbmm" else None
    if names is None:
        names = (
            ("self", "vec")
            if call.name == "mv"
            else ("self", next(n for n in ("mat2", "other", "tensor") if n in call.arguments))
        )
    left, right = call.type(names[0]), call.type(names[1])
    rows = left[-2:-1] if len(left) > 1 else []
    columns = right[-1:] if len(right) > 1 else []
    batches = [found[:-2] for found in (left, right)]
    batch = broadcast(batches, max(len(found) for found in batches))
    _contract(call, left[-1], right[-2] if len(right) > 1 else right[0], batch)
    result = [*batch, *rows, *columns]
    if call.name in ("addmm", "baddbmm"):
        return broadcast([result, call.type("self")], len(result))
    return result


def einsum(call: Call) -> Result:
    """Products with named axes, without `...` and repeated names in one factor."""
    equation = call["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    factors = left.split(",")
    types = [call.type(node) for node in call["tensors"]]
    if not arrow or "." in equation or any(len(set(names)) != len(names) for names in (*factors, right)):
        raise NotUnderstoodError
    axes: dict[str, Axis] = {}
    for names, found in zip(factors, types, strict=True):
        for name, axis in zip(names, found, strict=True):
            if axis_size(axes.setdefault(name, axis)) == axis_size(axis):
                unify(axes[name], axis)
            else:
                raise NotUnderstoodError  # broadcast of a named axis
    call.aligned.append([axes[name] for name in axes if all(name in names for names in factors)])
    return [axes[name] for name in right]


def convolution(call: Call) -> Result:
    """`input [B, C, *places]`, `weight [out, C / groups, *kernel]`, or `[C, out / groups, *kernel]` transposed."""
    inputs, weight, bias = call.type("input"), call.type("weight"), call.optional("bias")
    transposed = bool(call["transposed"]) or call.name.startswith("conv_transpose")
    groups = call["groups"] or 1
    if len(inputs) != len(weight):
        raise NotUnderstoodError  # without a batch dimension
    for axis in (*inputs[2:], *weight[2:]):
        freeze(axis, PLACES)
    if groups == 1:
        outputs = weight[1 if transposed else 0]
        _contract(call, inputs[1], weight[0 if transposed else 1])
    else:
        whole, inner = weight[0], weight[1]
        group, rest = new_axis(groups), new_axis(axis_size(whole) // groups)
        unify(whole, multiply([group, rest]))
        outputs = multiply([group, inner]) if transposed else whole
        unify(inputs[1], whole if transposed else multiply([group, inner]))
    if bias is not None:
        unify(bias[0], outputs)
    return [inputs[0], outputs, *fixed(call.shape[2:], PLACES)]


def channel_norm(call: Call) -> Result:
    """BatchNorm and InstanceNorm: all values of a channel belong together."""
    inputs = call.type("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (found := call.optional(name)) is not None:
            unify(inputs[1], found[0])
    return _first_of(call, inputs)


def group_norm(call: Call) -> Result:
    """Channels of a group belong together, and groups can be exchanged."""
    inputs = call.type("input")
    groups = call["num_groups"] if call["num_groups"] is not None else call["group"]
    group = new_axis(groups)
    unify(inputs[1], multiply([group, new_axis(axis_size(inputs[1]) // groups)]))
    call.aligned.append([inputs[0], group])
    for name in ("weight", "bias"):
        if (found := call.optional(name)) is not None:
            unify(inputs[1], found[0])
    return _first_of(call, inputs)


def layer_norm(call: Call) -> Result:
    """LayerNorm and RMSNorm over the last dimensions."""
    inputs = call.type("input")
    for name in ("weight", "bias"):
        if (found := call.optional(name)) is not None:
            for axis, parameter in zip(inputs[-len(found) :], found, strict=True):
                unify(axis, parameter)
    return _first_of(call, inputs)


def _first_of(call: Call, result: Type) -> Result:
    """The result, optionally followed by the statistics that native norms return and inference ignores."""
    if not isinstance(call.output, list | tuple):
        return result
    return (result, *(fixed(value.shape, "statistics of a norm") for value in call.output[1:]))


def prelu(call: Call) -> Result:
    """A slope per channel, or one for all."""
    inputs, weight = call.type("self"), call.type("weight")
    if axis_size(weight[0]) > 1:
        unify(inputs[1], weight[0])
    return inputs


def places(call: Call) -> Result:
    """Pooling and interpolation: channels are kept, positions depend on their neighbours."""
    inputs = call.type("input" if "input" in call.arguments else "self")
    count = int(next(letter for letter in call.name if letter.isdigit()))
    for axis in inputs[-count:]:
        freeze(axis, PLACES)
    result = [*inputs[:-count], *fixed(call.shape[-count:], PLACES)]
    if isinstance(call.output, list | tuple):
        return (result, *(None for _ in call.output[1:]))
    return result


def attention(call: Call) -> Result:
    """`query [..., H, L, E]`, `key [..., H, S, E]`, `value [..., H, S, V]`; grouped: fewer heads of both."""
    query, key, value = call.type("query"), call.type("key"), call.type("value")
    mask = call.optional("attn_mask")
    if call["is_causal"]:
        for axis in (query[-2], key[-2]):
            freeze(axis, "attention is causal")
    unify(key[-2], value[-2])
    heads = query[:-2]
    if call["enable_gqa"] and axis_size(query[-3]) != axis_size(key[-3]):
        shared = new_axis(axis_size(query[-3]) // axis_size(key[-3]))
        unify(query[-3], multiply([key[-3], shared]))
        unify(key[-3], value[-3])
        broadcast([query[:-3], key[:-3], value[:-3]], len(heads) - 1)
    else:
        heads = broadcast([heads, key[:-2], value[:-2]], len(heads))
    _contract(call, query[-1], key[-1], heads)
    scores = [*heads, query[-2], key[-2]]
    call.aligned.append(broadcast([scores, *([mask] if mask is not None else [])], len(scores)))
    return [*heads, query[-2], value[-1]]


HANDLERS: dict[str, Handler] = {
    "linear": linear,
    **dict.fromkeys(["mm", "bmm", "matmul", "mv", "dot", "addmm", "baddbmm"], matmul),
    "einsum": einsum,
    "convolution": convolution,
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_no_training", "instance_norm"], channel_norm),
    **dict.fromkeys(["group_norm", "native_group_norm"], group_norm),
    **dict.fromkeys(["layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"], layer_norm),
    "prelu": prelu,
    **dict.fromkeys(POOLING, places),
    "scaled_dot_product_attention": attention,
}
"""Rules for operations, by their ATen name."""
