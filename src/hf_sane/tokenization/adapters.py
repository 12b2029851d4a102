"""LoRA adapters, read: the factors of every target module, from PEFT's folders and from loose files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from hf_sane.core.adapters import ADAPTER_CONFIG, read_adapter_config
from hf_sane.tokenization.lazy_checkpoints import open_checkpoint

PREFIX = "base_model.model."
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
# Files without a configuration: `...to_q_lora.down.weight` (diffusers), `unet:3:up` (cloneofsimo), `..._q.lora_up.weight` (kohya).
LOOSE_FACTOR = re.compile(r"^(?P<module>.+?)[._:](?:lora[._:])?(?P<side>down|up|A|B)(\.weight)?$")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter: for every target module, `W + s B A`.

    Attributes:
        name: What reports and cards call it.
        tensors: As stored; lazy where the adapter is a file.
        config: Content of adapter_config.json.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @cached_property
    def modules(self) -> dict[str, tuple[str, str]]:
        """Target modules: names of `A` and `B` among the tensors."""
        sides: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if found := FACTOR.match(name):
                sides.setdefault(found["module"].removeprefix(PREFIX), {})[found["side"]] = name
        if lonely := sorted(module for module, pair in sides.items() if len(pair) < 2):
            raise ValueError(f"{self.name} lacks one of the factors A and B of {lonely}; save the adapter again")
        return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}

    @cached_property
    def whole(self) -> list[str]:
        """Names of tensors that replace those of the base (`modules_to_save`)."""
        return [name for name in self.tensors if not FACTOR.match(name)]

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """`A` `[r, inputs, ...]` as stored and `s B` `[outputs, r, ...]` in at least single precision.

        Raises:
            ValueError: If the factors do not fit each other or the configuration, or are not finite.
        """
        first, second = (self.tensors[name] for name in self.modules[module])
        rank = first.shape[0]
        stated = _by_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        if second.shape[1] != rank or rank != stated:
            raise ValueError(
                f"factors of {module!r} in {self.name} are {list(first.shape)} and {list(second.shape)}, the configuration "
                f"says rank {stated}; LoRA on grouped convolutions cannot be averaged"
            )
        if not (first.isfinite().all() and second.isfinite().all()):
            raise ValueError(
                f"{module!r} is not finite (NaN or infinite weights) in {self.name}; leave that adapter out"
            )
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        return first, second.to(torch.promote_types(second.dtype, torch.float32)) * scale

    def dtype(self, module: str) -> torch.dtype:
        """Of the stored factors."""
        return self.tensors[self.modules[module][0]].dtype

    def shape(self, module: str) -> tuple[int, ...]:
        """Outputs and inputs of a target module, without the rank."""
        first, second = (self.tensors[name] for name in self.modules[module])
        return (second.shape[0], *first.shape[1:])


def open_factors(source: str | Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read what a LoRA adapter adds to its base: `s B A` per target module.

    Loose files do not always tell their scale `s = alpha / r`: it is 1 without a tensor `<module>.alpha`.

    Args:
        source: Folder or Hub repo in PEFT's format, or a safetensors file with the keys of PEFT, diffusers, cloneofsimo's
            lora or kohya's scripts.

    Returns:
        Target module to `A` `[r, inputs, ...]` as stored and `s B` `[outputs, r, ...]` in at least single precision.

    Raises:
        FileNotFoundError: If there is no such file.
        HFValidationError, RepositoryNotFoundError: If there is no such folder or repo.
        ValueError: If it holds no factors, lacks one of a pair, or factors do not fit each other or are not finite.
    """
    folder = Path(source)
    if not folder.exists() and folder.suffix != ".safetensors":
        folder = Path(hf_hub_download(str(source), ADAPTER_CONFIG)).parent
    if (folder / ADAPTER_CONFIG).is_file():
        adapter = Adapter(folder.name, open_checkpoint(source), read_adapter_config(folder))
        return {module: adapter.factors(module) for module in adapter.modules}
    tensors = open_checkpoint(source)
    sides: dict[str, dict[str, str]] = {}
    for name in tensors:
        if found := LOOSE_FACTOR.match(name):
            side = {"A": "down", "B": "up"}.get(found["side"], found["side"])
            sides.setdefault(found["module"], {})[side] = name
    if not sides:
        raise ValueError(f"{source} holds no LoRA factors (..down/..up or ..A/..B), but {list(tensors)[:3]}")
    if lonely := sorted(module for module, pair in sides.items() if len(pair) < 2):
        raise ValueError(f"{source} lacks one of the factors of {lonely[:3]}; save the adapter again")
    factors = {}
    for module, pair in sides.items():
        first, second = tensors[pair["down"]], tensors[pair["up"]]
        if second.ndim < 2 or second.shape[1] != len(first):
            raise ValueError(
                f"factors of {module!r} in {source} do not fit: {list(first.shape)}, {list(second.shape)}; expected "
                "[r, inputs] and [outputs, r]"
            )
        if not (first.isfinite().all() and second.isfinite().all()):
            raise ValueError(f"{module!r} is not finite (NaN or infinite weights) in {source}; leave that adapter out")
        scale = float(tensors[f"{module}.alpha"]) / len(first) if f"{module}.alpha" in tensors else 1.0
        factors[module] = (first, second.to(torch.promote_types(second.dtype, torch.float32)) * scale)
    return factors


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """A setting of one module, found as PEFT does: the first pattern that the end of its name matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


__all__ = ["FACTOR", "PREFIX", "Adapter", "open_factors"]
