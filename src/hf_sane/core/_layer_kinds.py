"""Determine the kind of each layer from names and shapes, the same for a file and a module of one network."""

import re
from collections.abc import Container, Mapping
from typing import Literal, get_args

LayerKind = Literal[
    "conv", "linear", "attention", "recurrent", "low_rank", "norm", "running_statistics", "embedding", "other"
]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
Shapes = Mapping[str, tuple[int, ...]]

RUNNING = ("running_mean", "running_var")

LOW_RANK = re.compile(r"lora[_.]|hada_w|lokr_|:(?:up|down)$", re.IGNORECASE)  # PEFT, LyCORIS, the first LoRA files
RECURRENT = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
SURE_PROJECTIONS = (
    *("qkv", "query", "key", "value", "c_attn", "query_key_value", "q_proj", "k_proj", "v_proj", "qkv_proj"),
    *("q_lin", "k_lin", "v_lin", "to_q", "to_k", "to_v", "to_qkv"),
)
PROJECTIONS = ("q", "k", "v", "o", "o_proj", "in_proj", "out_proj", "out_lin", "c_proj")
FEED_FORWARD = ("mlp", "ffn", "feed_forward", "mamba", "expert")
EMBEDDINGS = ("wte", "wpe", "shared", "relative_attention_bias", "tok", "pos", "word_emb", "pos_emb", "tok_emb")
HEADS = ("head", "classifier", "decoder", "fc", "score", "logits", "out", "dense", "mlp", "ffn", "proj")
NORM = re.compile(r"norm|(?:^|_)(?:ln|bn|gn|rms)(?:_|\d|$)")


def possible_kinds(name: str, shapes: Shapes) -> tuple[LayerKind, ...]:
    """Guess the kind of a tensor from its name and shape.

    Args:
        name: Name of the tensor.
        shapes: Shapes of all tensors of the network by name, since neighbours help to classify a tensor.

    Returns:
        Possible kinds, the most likely first; several if name and shape are ambiguous.
    """
    shape, prefix, last = shapes[name], *_split(name)
    lower = name.lower()
    if last in RUNNING:
        return ("running_statistics",)
    if LOW_RANK.search(name):
        return ("low_rank",)
    if last.startswith(RECURRENT):
        return ("recurrent",)
    if last.endswith("bias") and (weight := prefix + last.removesuffix("bias") + "weight") in shapes:
        return possible_kinds(weight, shapes)
    if last.endswith("weight"):
        return _kinds_of_weight(name, shapes)
    if "embed" in lower or last.endswith("_token"):
        return ("embedding",)
    if len(shape) >= 2 and "expert" in lower:
        return ("linear",)
    return ("other", "linear") if len(shape) in (2, 3) and min(shape) > 1 else ("other",)


def is_stack_of_matrices(shape: tuple[int, ...], possible: tuple[LayerKind, ...]) -> bool | None:
    """Whether three axes are `[experts, m, n]` rather than those of a convolution; `None` if undecided.

    In a stack, the axis of experts is shorter than both sides of the matrices; in a convolution, the kernel is not
    longer than the number of filters. If names do not decide, the shape must satisfy one condition and not the other.

    Args:
        shape: Shape of three axes.
        possible: Kinds that [`possible_kinds`] returned.
    """
    if possible in (("conv",), ("low_rank",)):
        return False
    if possible == ("linear",):
        return True
    looks_stacked, looks_convolved = shape[0] < min(shape[1:]), shape[2] <= shape[0]
    if "conv" not in possible or looks_stacked == looks_convolved:
        return None
    return looks_stacked


def statistics_kind(name: str, shape: tuple[int, ...]) -> str:
    """The coarse kind by which layers may share statistics, from name and shape."""
    last = _split(name)[1]
    if last in RUNNING:
        return "running_statistics"
    if not last.endswith("weight"):
        return "embedding" if "embed" in name or last.endswith("_token") else "other"
    if len(shape) == 1:
        return "norm"
    if "embed" in name:
        return "embedding"
    return "linear" if len(shape) == 2 else "conv" if len(shape) > 2 else "other"


def is_batch_norm(name: str, names: Container[str]) -> bool:
    """Whether a tensor belongs to a module with running statistics, regardless of its name."""
    prefix = _split(name)[0]
    return all(prefix + statistic in names for statistic in RUNNING)


def _kinds_of_weight(name: str, shapes: Shapes) -> tuple[LayerKind, ...]:
    shape, prefix, last = shapes[name], *_split(name)
    module = prefix.rstrip(".").lower().split(".")
    owner = module[-1]
    if len(shape) <= 1:
        named = NORM.search(owner) is not None or prefix + RUNNING[0] in shapes
        return ("norm",) if named else ("norm", "other")  # PReLU and scales have the same form
    if len(shape) > 3 or (len(shape) == 3 and ("conv" in owner or prefix + "bias" in shapes)):
        return ("conv",)
    if len(shape) == 3:
        return ("linear",) if "expert" in name.lower() else ("conv", "linear")
    if owner in EMBEDDINGS or ("embed" in owner and "proj" not in owner):
        return ("embedding",)
    if not any(word in part for part in module for word in FEED_FORWARD):
        if any("attn" in part or "attention" in part for part in module):
            return ("attention",)
        if owner in SURE_PROJECTIONS or last == "in_proj_weight":
            return ("attention",)
        if owner in PROJECTIONS:
            return ("attention", "linear")  # state-space blocks use the same names
    # A table of vectors has no bias and usually far more rows than columns, as do heads over many classes.
    has_bias = prefix + last.removesuffix("weight") + "bias" in shapes
    tall = shape[0] >= 4 * shape[1] and not has_bias and not any(part in owner for part in HEADS)
    return ("linear", "embedding") if tall else ("linear",)


def _split(name: str) -> tuple[str, str]:
    """Split `"a.b.weight"` into `("a.b.", "weight")`."""
    prefix, dot, last = name.rpartition(".")
    return prefix + dot, last
