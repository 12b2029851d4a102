"""Operations that move, split, join and select along axes regardless of the values."""

from hf_sane.symmetry.tracing._axes import (
    Axis,
    axis_size,
    concatenate,
    equal_axis,
    freeze,
    multiply,
    new_axis,
    reshape,
    resolve,
    split,
    unify,
)
from hf_sane.symmetry.tracing._calls import Call, Handler, NotUnderstoodError, Result, broadcast, fixed

STEPS = "every n-th entry is selected"


def transpose(call: Call) -> Result:
    """Exchange two dimensions, or the last two."""
    inputs = call.type("self")
    if call.name == "t" and len(inputs) < 2:
        return inputs
    first, second = (call["dim0"], call["dim1"]) if call["dim0"] is not None else (-1, -2)
    inputs[first], inputs[second] = inputs[second], inputs[first]
    return inputs


def permute(call: Call) -> Result:
    """Reorder dimensions."""
    inputs = call.type("self")
    return [inputs[dim] for dim in call["dims"]]


def reverse(call: Call) -> Result:
    """Reverse the order of all dimensions."""
    return call.type("self")[::-1]


def movedim(call: Call) -> Result:
    """Move dimensions to other places; the rest keeps its order."""
    inputs = call.type("self")
    source, destination = ([dims] if isinstance(dims, int) else dims for dims in (call["source"], call["destination"]))
    placed = {new % len(inputs): old % len(inputs) for old, new in zip(source, destination, strict=True)}
    rest = iter(dim for dim in range(len(inputs)) if dim not in placed.values())
    return [inputs[placed[dim] if dim in placed else next(rest)] for dim in range(len(inputs))]


def view(call: Call) -> Result:
    """Any reshaping that keeps the entries in memory order."""
    return reshape(call.type("self"), call.shape)


def unsqueeze(call: Call) -> Result:
    """Insert a dimension of size 1."""
    inputs = call.type("self")
    inputs.insert(call.dim("dim", len(inputs) + 1), new_axis(1))
    return inputs


def squeeze(call: Call) -> Result:
    """Remove dimensions of size 1."""
    inputs, dims = call.type("self"), call["dim"]
    chosen = range(len(inputs)) if dims is None else dims if isinstance(dims, list | tuple) else [dims]
    gone = {dim % len(inputs) for dim in chosen if axis_size(inputs[dim]) == 1}
    return [axis for dim, axis in enumerate(inputs) if dim not in gone]


def expand(call: Call) -> Result:
    """Repeat entries along dimensions of size 1; the copies are equal, so their order is irrelevant."""
    inputs, shape = call.type("self"), call.shape
    inputs = [*([((),)] * (len(shape) - len(inputs))), *inputs]
    return [equal_axis(n) if axis_size(axis) != n else axis for axis, n in zip(inputs, shape, strict=True)]


def repeat(call: Call) -> Result:
    """Tile a tensor."""
    inputs, repeats = call.type("self"), call["repeats"]
    inputs = [*([((),)] * (len(repeats) - len(inputs))), *inputs]
    return [multiply([equal_axis(n), axis]) for axis, n in zip(inputs, repeats, strict=True)]


def repeat_interleave(call: Call) -> Result:
    """Repeat each entry several times in a row."""
    inputs = call.type("self")
    if not isinstance(call["repeats"], int) or call["dim"] is None:
        raise NotUnderstoodError
    dim = call.dim("dim", len(inputs))
    inputs[dim] = multiply([inputs[dim], equal_axis(call["repeats"])])
    return inputs


def cat(call: Call) -> Result:
    """Join tensors along a dimension."""
    types = [call.type(node) for node in call["tensors"]]
    types = [found for found in types if len(found) == len(call.shape)]  # empty 1-D tensors are allowed
    dim = call.dim("dim", len(call.shape))
    for found in types[1:]:
        for d, axis in enumerate(found):
            if d != dim:
                unify(types[0][d], axis)
    types[0][dim] = concatenate([types[0][dim], *(found[dim] for found in types[1:])])
    return types[0]


def stack(call: Call) -> Result:
    """Join tensors along a new dimension, whose order is given."""
    types = [call.type(node) for node in call["tensors"]]
    result = broadcast(types, len(types[0]))
    result.insert(call.dim("dim", len(result) + 1), new_axis(len(types), "the order of a stack"))
    return result


def select(call: Call) -> Result:
    """Take one entry."""
    inputs = call.type("self")
    dim = call.dim("dim", len(inputs))
    freeze(inputs[dim], "single entries are selected")
    return [axis for d, axis in enumerate(inputs) if d != dim]


def unbind(call: Call) -> Result:
    """Take all entries, one after the other."""
    taken = select(call)
    assert isinstance(taken, list)
    return tuple(list(taken) for _ in call.output)


def cut(call: Call) -> Result:
    """Take a run of entries."""
    inputs = call.type("self")
    dim = call.dim("dim", len(inputs))
    size, taken = axis_size(inputs[dim]), call.shape[dim]
    if taken == size:
        return inputs
    start, step = call["start"] or 0, call["step"] or 1
    start = start + size if start < 0 else start
    if step != 1 and (size != taken * step or start >= step):
        freeze(inputs[dim], STEPS)
        inputs[dim] = new_axis(taken, STEPS)
        return inputs
    if step != 1:  # one of each of adjacent entries, which may move together
        runs = new_axis(taken)
        unify(multiply([runs, new_axis(step, STEPS)]), inputs[dim])
        inputs[dim] = resolve(runs)
        return inputs
    inputs[dim] = split(inputs[dim], [start, taken, size - start - taken])[1] if taken else ()
    return inputs


def pieces(call: Call) -> Result:
    """Cut into consecutive pieces."""
    inputs = call.type("self")
    dim = call.dim("dim", len(inputs))
    parts = split(inputs[dim], [piece.shape[dim] for piece in call.output])
    return tuple([*inputs[:dim], part, *inputs[dim + 1 :]] for part in parts)


def glu(call: Call) -> Result:
    """One half times the sigmoid of the other."""
    inputs = call.type("self")
    dim = call.dim("dim", len(inputs))
    first, second = split(inputs[dim], [axis_size(inputs[dim]) // 2] * 2)
    unify(first, second)
    inputs[dim] = resolve(first)
    return inputs


def pad(call: Call) -> Result:
    """Put equal entries before and after."""
    inputs, amounts = call.type("self"), list(call["pad"])
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i : 2 * i + 2]
        dim = len(inputs) - 1 - i
        if not before and not after:
            continue
        if min(before, after) < 0 or call["mode"] not in (None, "constant"):
            freeze(inputs[dim], "cropped or padded with its own entries")
            inputs[dim] = new_axis(call.shape[dim], "cropped or padded with its own entries")
            continue
        ends: list[Axis] = [new_axis(n) if n else () for n in (before, after)]
        inputs[dim] = concatenate([ends[0], inputs[dim], ends[1]])
    return inputs


def index(call: Call) -> Result:
    """Select entries by index tensors; adjacent indexed dimensions are replaced in place."""
    inputs, indices = call.type("self"), list(call["indices"])
    chosen = [dim for dim, node in enumerate(indices) if node is not None]
    for dim in chosen:
        freeze(inputs[dim], "entries are selected by index")
    kept = [axis for dim, axis in enumerate(inputs) if dim not in chosen]
    start = chosen[0] if chosen == list(range(chosen[0], chosen[-1] + 1)) else 0
    sizes = call.shape[start : start + len(call.shape) - len(kept)]
    return [*kept[:start], *fixed(sizes, "entries are selected by index"), *kept[start:]]


def embedding(call: Call) -> Result:
    """Choose rows of a table."""
    table, indices = call.type("weight"), call.type("indices")
    freeze(table[0], "rows are selected by index (tokens, positions, ...)")
    return [*indices, table[1]]


def chosen_along(call: Call) -> Result:
    """`gather` and `index_select`."""
    inputs = call.type("self")
    dim = call.dim("dim", len(inputs))
    if call.name == "gather":
        for axis in inputs:
            freeze(axis, "entries are selected by index")
        return fixed(call.shape, "entries are selected by index")
    freeze(inputs[dim], "entries are selected by index")
    inputs[dim] = new_axis(call.shape[dim], "entries are selected by index")
    return inputs


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(["transpose", "t", "mT", "swapaxes", "adjoint"], transpose),
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten"], view),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], expand),
    **dict.fromkeys(["cat", "concat", "concatenate"], cat),
    **dict.fromkeys(["slice", "narrow"], cut),
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], pieces),
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    **dict.fromkeys(["gather", "index_select"], chosen_along),
    "numpy_T": reverse,
    **dict.fromkeys(["movedim", "moveaxis"], movedim),
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "select": select,
    "unbind": unbind,
    "glu": glu,
    "index": index,
    "embedding": embedding,
}
"""Rules for operations, by their ATen name."""
