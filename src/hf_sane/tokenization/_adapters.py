"""Read LoRA adapters: the factors of every target module, from PEFT folders and from loose files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import Tensor

from hf_sane.core._adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hf_sane.records._patience import patiently
from hf_sane.records._sources import find_source
from hf_sane.tokenization._checkpoints import CheckpointSource, as_checkpoint
from hf_sane.tokenization._weight_files import INDEX_SUFFIX

PREFIX = "base_model.model."
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")
ADDED_BIAS = re.compile(r"^(?P<module>.+)\.lora_B\.bias$")
REMEDY = "merge it into its base (merge_and_unload) and use the merged model"

# Fields of adapter_config.json that are read here, and fields that do not affect what a trained adapter does. Any
# other field that is set may affect it in unknown ways.
USED_FIELDS = {
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_dora",
    "use_rslora",
}
HARMLESS_FIELDS = {
    "auto_mapping",
    "corda_config",  # of an initialisation, which `init_lora_weights` names
    "ensure_weight_tying",  # both ends are stored
    "eva_config",
    "fan_in_fan_out",  # PEFT also considers the module's type
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # of use_qalora
    "runtime_config",
    "task_type",
    "velora_config",  # of the backward pass
}
CHOOSING_FIELDS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
# Other named initialisations change the base, and the adapter is relative to the changed base.
STARTS_OF_AN_UNCHANGED_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# If the vocabulary was resized, PEFT stores the embeddings without noting them in `modules_to_save`.
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embed_in", "embed_out")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter in PEFT's format: `W + s B A` for every target module, and everything else it changes.

    With magnitudes `m` (DoRA) it is `m (W + s B A) / |W + s B A|`, where the norm is taken per output.

    Attributes:
        name: Name in reports and cards.
        tensors: Tensors as stored; read on access if the adapter is a file.
        config: Content of adapter_config.json.

    Raises:
        ValueError: If a field or tensor has an unsupported effect, a factor is missing, or tensors and configuration
            contradict each other.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_config(self.name, self.config)
        strange = [name for name in self.tensors if not self._is_known(name)]
        if strange:
            raise ValueError(
                f"{self.name} holds {len(strange)} unexpected tensors, such as {strange[:3]}: neither "
                f"LoRA factors, nor biases or modules named in its configuration; {REMEDY}"
            )
        for field, places in (("use_dora", self.magnitudes), ("lora_bias", self.added_biases)):
            wanted = self.modules.keys() if self.config.get(field) else set()
            if differing := sorted(wanted ^ places.keys()):
                raise ValueError(
                    f"{field} is {self.config.get(field)!r} in the configuration of {self.name}, but the tensors of "
                    f"{differing[:3]} contradict that; save the adapter again"
                )
        tied = self.config.get("ensure_weight_tying")  # adds a head that the configuration does not name
        if unused := [module for module in self.modules if not tied and not is_targeted(self.config, module)]:
            fields = ", ".join(field for field in CHOOSING_FIELDS if self.config.get(field))
            raise ValueError(
                f"{self.name} holds factors of {unused[:3]}, which its configuration leaves out ({fields}), so "
                "PEFT does not load them; correct the configuration"
            )

    @cached_property
    def modules(self) -> dict[str, tuple[str, str]]:
        """Names of the tensors `A` and `B`, by target module."""
        sides: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            if found := FACTOR.match(name):
                note_factor(sides.setdefault(found["module"].removeprefix(PREFIX), {}), found["side"], name, self.name)
        if lonely := sorted(module for module, pair in sides.items() if len(pair) < 2):
            raise ValueError(f"{self.name} lacks one of the factors A and B of {lonely}; save the adapter again")
        return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}

    @cached_property
    def magnitudes(self) -> dict[str, str]:
        """Name of the magnitude (DoRA), by target module that has one."""
        return self._matching(MAGNITUDE)

    @cached_property
    def added_biases(self) -> dict[str, str]:
        """Name of the bias that is added beside the factors (`lora_bias`), by target module that has one."""
        return self._matching(ADDED_BIAS)

    @cached_property
    def whole(self) -> dict[str, str]:
        """Names of the tensors that replace tensors of the base, by name in the base.

        These are modules saved in full, trained biases, and the base's own weights of targeted embeddings.
        """
        special = (FACTOR, MAGNITUDE, ADDED_BIAS)
        return {
            target_name(name): name for name in self.tensors if not any(pattern.match(name) for pattern in special)
        }

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """`A` `[r, inputs, ...]` as stored and `s B` `[outputs, r, ...]` in at least single precision.

        Raises:
            ValueError: If the factors do not fit each other or the configuration, or are not finite.
        """
        first, second = self._pair(module)
        rank = first.shape[0]
        stated = _by_pattern(self.config.get("rank_pattern"), module, self.config["r"])
        if second.shape[1] != rank or rank != stated:
            raise ValueError(
                f"factors of {module!r} in {self.name} are {list(first.shape)} and {list(second.shape)}, but the "
                f"configuration says rank {stated}; LoRA on grouped convolutions cannot be averaged"
            )
        self._check_finite(module, first, second)
        return first, second.to(torch.promote_types(second.dtype, torch.float32)) * self._scale(module, rank)

    def added_bias(self, module: str) -> Tensor | None:
        """The change of the bias, `[outputs]`, in at least single precision; `None` without `lora_bias`."""
        if module not in self.added_biases:
            return None
        first, second = self._pair(module)
        bias = self._one_per_output(module, self.added_biases[module], len(second))
        scale = self._scale(module, len(first))
        return bias.to(torch.promote_types(bias.dtype, torch.float32)) * scale

    def change(self, module: str, weight: Tensor, *, transposed: bool) -> Tensor:
        """Change of a target module's weight.

        Args:
            module: One of `modules`.
            weight: Weight of the base.
            transposed: Whether it is stored as `[inputs, outputs]`, as for embeddings and the linear maps of GPT-2.

        Returns:
            A tensor in the shape of `weight`, in at least single precision.

        Raises:
            ValueError: If the adapter does not fit the weight; also as in [`factors`].
        """
        first, second = self.factors(module)
        change = second.flatten(1) @ first.flatten(1).to(second)
        oriented = weight.mT if transposed else weight
        if change.numel() != oriented.numel() or change.shape[0] != oriented.shape[0]:
            raise ValueError(
                f"{self.name} changes {module!r} by {list(change.shape)}, but the model has {list(weight.shape)}; "
                "load the base model of the adapters"
            )
        if module in self.magnitudes:
            magnitude = self._one_per_output(module, self.magnitudes[module], len(second)).to(change)[:, None]
            start = oriented.flatten(1).to(change)
            moved = start + change
            change = magnitude * moved / moved.norm(dim=1, keepdim=True) - start
        change = change.reshape(oriented.shape)
        return change.mT if transposed else change

    def is_embedding(self, module: str) -> bool:
        """Whether a target module is an embedding table, whose weight is stored transposed."""
        found = FACTOR.match(self.modules[module][0])
        return found is not None and found["embedding"] is not None

    def is_transposed(self, module: str) -> bool:
        """Whether a target module's weight is stored as `[inputs, outputs]`, as far as the adapter says."""
        return self.is_embedding(module) or bool(self.config.get("fan_in_fan_out"))

    def dtype(self, module: str) -> torch.dtype:
        """Dtype of the stored factors."""
        return self.tensors[self.modules[module][0]].dtype

    def shape(self, module: str) -> tuple[int, ...]:
        """Number of outputs and inputs of a target module."""
        first, second = self._pair(module)
        return (second.shape[0], *first.shape[1:])

    def _is_known(self, name: str) -> bool:
        """Whether this class uses a tensor."""
        for pattern in (FACTOR, MAGNITUDE, ADDED_BIAS):
            if found := pattern.match(name):
                return ".base_layer" not in found["module"]  # nested: target_parameters, PyTorch's attention
        module, _, leaf = target_name(name).rpartition(".")
        if ".base_layer." in name:
            return leaf == "weight" or (leaf == "bias" and self.config.get("bias", "none") != "none")
        parents = module.split(".")
        modules = [".".join(parents[:count]) for count in range(1, len(parents) + 1)]
        saved = self.config.get("modules_to_save") or ()
        return (
            any(parent.endswith(tuple(saved)) for parent in modules)
            or (leaf == "bias" and self.config.get("bias", "none") != "none")
            or (leaf == "weight" and parents[-1] in EMBEDDINGS)
        )

    def _matching(self, pattern: re.Pattern[str]) -> dict[str, str]:
        found = {name: pattern.match(name) for name in self.tensors}
        places = {match["module"].removeprefix(PREFIX): name for name, match in found.items() if match}
        if alone := sorted(places.keys() - self.modules.keys()):
            raise ValueError(f"{self.name} lacks the factors A and B of {alone[:3]}; save the adapter again")
        return places

    def _pair(self, module: str) -> tuple[Tensor, Tensor]:
        first, second = (self.tensors[name] for name in self.modules[module])
        if min(first.ndim, second.ndim) < 2 or min(first.dtype.itemsize, second.dtype.itemsize) < 2:
            raise ValueError(
                f"expected factors of {module!r} in {self.name} as [r, inputs] and [outputs, r] of 16 bits or more, "
                f"got {first.dtype} {list(first.shape)} and {second.dtype} {list(second.shape)}; save the adapter "
                "again"
            )
        return first, second

    def _one_per_output(self, module: str, name: str, outputs: int) -> Tensor:
        """A magnitude or bias as a vector, one value per output."""
        tensor = self.tensors[name].flatten()
        if len(tensor) != outputs:
            raise ValueError(
                f"expected {outputs} values, one per output, as {name!r} in {self.name}, got {len(tensor)}; save "
                "the adapter again"
            )
        self._check_finite(module, tensor)
        return tensor

    def _scale(self, module: str, rank: int) -> float:
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _check_finite(self, module: str, *tensors: Tensor) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError(
                f"{module!r} is not finite (NaN or infinite weights) in {self.name}; leave that adapter out"
            )


def target_name(stored: str) -> str:
    """Name in the base model of a tensor that an adapter replaces."""
    return stored.removeprefix(PREFIX).replace(".base_layer.", ".")


def is_targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether an adapter's configuration targets a module, by PEFT's rules.

    Args:
        config: Content of adapter_config.json. Without `target_modules`, or with `"all-linear"`, the targets depend on
            the base model; then every module that is not excluded counts as targeted.
        module: Full name of the module.
    """
    excluded, targets = config.get("exclude_modules"), config.get("target_modules")
    if excluded and _names(excluded, module):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in config.get("modules_to_save") or ()):
        return False
    if targets is None or targets == "all-linear":
        return True
    if isinstance(targets, str) or module in targets:
        return _names(targets, module)
    if not _names(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        start = r".*?\." if not config.get("layers_pattern") else r"(?:^|.*?\.)"
        if found := re.match(rf"{start}{pattern}\.(?P<index>\d+)\.", module):
            return int(found["index"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _names(names: str | Sequence[str], module: str) -> bool:
    """Whether a module matches a regular expression, or a list of names and name endings."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{name} is a {config.get('peft_type')} adapter; only LORA adapters can be read; {REMEDY}")
    used = {key: value for key, value in config.items() if value and key not in USED_FIELDS | HARMLESS_FIELDS}
    start = config.get("init_lora_weights", True)
    if not any(start is known or start == known for known in STARTS_OF_AN_UNCHANGED_BASE):
        used["init_lora_weights"] = start
    if used:
        raise ValueError(f"{name} is more than LoRA factors, or relative to another base: {used}; {REMEDY}")


def adapter_folder(source: str | Path | CheckpointSource) -> Path:
    """Folder with an adapter's configuration, downloaded if necessary; a loose file is returned unchanged.

    Args:
        source: Folder or Hub repo in PEFT's format, its `adapter_model.safetensors`, or a loose file; a `Checkpoint`
            selects the subfolder.

    Raises:
        FileNotFoundError: If there is neither such a path nor such a repository, or the repository holds no adapter.
    """
    checkpoint = as_checkpoint(source)
    found = find_source(checkpoint.source, revision=checkpoint.revision)
    subfolder = (checkpoint.subfolder or "").strip("/")
    if isinstance(found, Path):
        if found.is_dir():
            return found / subfolder
        return found.parent if found.name.removesuffix(INDEX_SUFFIX) == ADAPTER_WEIGHTS else found
    config = f"{subfolder}/{ADAPTER_CONFIG}" if subfolder else ADAPTER_CONFIG
    try:
        return Path(patiently(hf_hub_download, found.repo_id, config, revision=found.revision)).parent
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{found} holds no {config}; expected an adapter in PEFT's format, or the path of a safetensors file"
        ) from error


def note_factor(pair: dict[str, str], side: str, name: str, source: str | Path | CheckpointSource) -> None:
    """Store the name of one of a module's two factors.

    Raises:
        ValueError: If another name is already stored, since one of the two would be lost.
    """
    if pair.setdefault(side, name) != name:
        raise ValueError(
            f"{source} holds the same factor twice, as {pair[side]!r} and {name!r}; save the adapter again"
        )


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """A module's setting, found as in PEFT: that of the first pattern that matches the end of its name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
