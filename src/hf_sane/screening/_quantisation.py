"""Recognise tensors that hold codes of a quantisation, and its scales, by their names and types."""

import re
from collections.abc import Sequence

from hf_sane.screening._statistics import TensorStatistics

# What a scheme stores for a layer, after the layer's name: the codes, and the parts that give them their meaning.
SCHEMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bitsandbytes, 8 bits": (("weight",), ("SCB", "weight_format")),
    "bitsandbytes, 4 bits": (
        ("weight",),
        ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    ),
    "GPTQ or AWQ": (("qweight",), ("scales", "qzeros", "g_idx")),
    "compressed-tensors": (
        ("weight", "weight_packed"),
        ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "weight_scale_inv"),
    ),
    "MXFP4": (("weight_blocks", "gate_up_proj_blocks", "down_proj_blocks"), ("weight_scales",)),
}
STORED = re.compile(r"u?int(8|16|32)|float8_.*")  # types of codes
EXPERT = re.compile(r"\[\d+\]$")


def find_codes(tensors: Sequence[TensorStatistics]) -> tuple[dict[str, str], set[str]]:
    """Tensors of codes with the name of their scheme, and tensors of scales and zero points.

    Args:
        tensors: All tensors of a checkpoint.
    """
    types = {EXPERT.sub("", x.name): x.dtype for x in tensors}
    codes: dict[str, str] = {}
    parts: set[str] = set()
    for scheme, (stored, meanings) in SCHEMES.items():
        for name, dtype in types.items():
            prefix, dot, last = name.rpartition(".")
            if last not in stored or STORED.fullmatch(dtype) is None or name in codes:
                continue
            found = {f"{prefix}{dot}{meaning}" for meaning in meanings} & types.keys()
            if last.endswith("_blocks"):
                found |= {name.removesuffix("_blocks") + "_scales"} & types.keys()
            if found:
                codes[name] = scheme
                parts |= found
    whole = {x.name: EXPERT.sub("", x.name) for x in tensors}
    return (
        {name: codes[key] for name, key in whole.items() if key in codes},
        {name for name, key in whole.items() if key in parts},
    )
