"""Split experts that are stored together in one tensor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.tokenization._safetensors_header import TensorEntry

# Mixtral, Qwen, DeepSeek, GGUF; Granite and JetMoE
FUSED = re.compile(r"(?:^|[._])(?:experts|exps)(?!\.\d)(?:[._]|$)|moe\.(?:in|out)put_linear\.")
CODES = "_blocks"  # end of the names of codes in MXFP4, whose blocks are a further axis
EXPERT = re.compile(r"(?P<head>.*\bexperts)\.(?P<one>\d+)\.(?P<rest>.*)|(?P<fused>.*)\[(?P<index>\d+)\]")


@dataclass(frozen=True)
class Experts:
    """Experts that are parts of a larger tensor.

    Attributes:
        wholes: Outlines of the larger tensors.
        places: The larger tensor and the index of the first value in it, by name of the expert.
    """

    wholes: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def split(self, entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
        """Replace an entry with one entry per expert."""
        found: dict[str, TensorEntry] = {}
        for name, entry in entries.items():
            if not is_fused(name, entry.outline):
                found[name] = entry
                continue
            self.wholes[name] = entry.outline
            size = (entry.stop - entry.start) // len(entry.outline)
            for index, outline in enumerate(entry.outline):
                start = entry.start + index * size
                found[f"{name}[{index}]"] = TensorEntry(outline, start, start + size)
                self.places[f"{name}[{index}]"] = (name, index * outline.numel())
        return found


def is_fused(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds the matrices of several experts."""
    axes = (3, 4) if name.endswith(CODES) else (3,)
    return tensor.ndim in axes and FUSED.search(name) is not None and tensor.numel() > 0


def split_tensors(tensors: Mapping[str, Tensor]) -> StateDict:
    """The same tensors, with experts separated."""
    found: StateDict = {}
    for name, tensor in tensors.items():
        parts = tensor.unbind() if is_fused(name, tensor) else None
        found |= {name: tensor} if parts is None else {f"{name}[{i}]": part for i, part in enumerate(parts)}
    return found


def expert_group(name: str) -> str | None:
    """Name that an expert shares with its siblings; `None` for other tensors."""
    match = EXPERT.fullmatch(name)
    if match is None:
        return None
    return match["fused"] if match["fused"] is not None else f"{match['head']}.*.{match['rest']}"
