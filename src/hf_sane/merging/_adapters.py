"""Soups of LoRA adapters: averages of their weight changes, not of the stored factors."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from hf_sane.core._adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from hf_sane.core._types import StateDict
from hf_sane.merging._averaging import average_checkpoints, check_weights, to_dtype, untie
from hf_sane.merging._ingredients import Ingredient, check_compatible, name_sources
from hf_sane.merging._reconciliation import complete_config
from hf_sane.records._outputs import output_folder
from hf_sane.records._patience import patiently
from hf_sane.records._sources import HubRepo, hub_id, parse_source, pretrained_arguments
from hf_sane.tokenization._adapters import Adapter, adapter_folder, is_targeted, target_name
from hf_sane.tokenization._checkpoints import CheckpointSource, as_checkpoint
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

SOUP = "soup"  # the type in manifests

# Fields of the configuration that select layers.
CHOICE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class AdapterSoup:
    """An average of adapters as one adapter.

    Attributes:
        tensors: Content of adapter_model.safetensors.
        config: Content of adapter_config.json.
        errors: For each target module, `|soup - average|_F / |average|_F` of the weight change; 0 without
            re-factorisation, up to rounding.
    """

    tensors: StateDict
    config: dict[str, Any]
    errors: dict[str, float]

    def save(self, folder: str | Path) -> Path:
        """Write the adapter in PEFT's format, replacing an unchanged soup; return `folder`.

        Raises:
            FileExistsError: If `folder` holds anything else, or was modified since it was written.
        """
        with output_folder(folder, SOUP, replace=True) as partial:
            save_file(self.tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
            (partial / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        return Path(folder)


def open_adapters(
    sources: Sequence[str | Path | CheckpointSource],
    *,
    names: Sequence[str] | None = None,
    base_model: str | None = None,
) -> list[Adapter]:
    """Open LoRA adapters of one base model for averaging.

    They may have different ranks, scales and target modules: a module that an adapter does not change counts as zero.

    Args:
        sources: Folders in PEFT's format or Hub repo ids, at least two; a `Checkpoint` selects the subfolder.
        names: Names of the adapters; the last part of the path or the repo id if `None`. Names that occur twice get a
            number.
        base_model: Base model of all adapters, instead of the name in their configurations.

    Raises:
        FileNotFoundError: If a folder or repo is not an adapter.
        ValueError: If there are fewer than two sources, the number of names differs, adapters have different bases or
            replace different tensors, or an adapter has unsupported parts, see `Adapter`.
    """
    adapters = []
    for name, source in name_sources(sources, names, what="adapter").items():
        config = read_adapter_config(adapter_folder(source))
        if base_model is not None:
            config |= _base_fields(base_model)
        adapters.append(Adapter(name, open_checkpoint(source), config))
    for other in adapters[1:]:
        _check_pair(adapters[0], other)
    return adapters


def _base_fields(base_model: str) -> dict[str, str | None]:
    """Base model and revision in an adapter's configuration, which has a separate field for the revision."""
    place = parse_source(base_model)
    if isinstance(place, HubRepo):
        return {"base_model_name_or_path": place.repo_id, "revision": place.revision}
    return {"base_model_name_or_path": base_model, "revision": None}


def are_adapters(sources: Sequence[str | CheckpointSource]) -> bool:
    """Whether sources are LoRA adapters.

    Raises:
        ValueError: If some are and some are not.
    """

    def is_adapter(checkpoint: CheckpointSource) -> bool:
        place = parse_source(checkpoint.source, revision=checkpoint.revision)
        config = (PurePosixPath((checkpoint.subfolder or "").strip("/")) / ADAPTER_CONFIG).as_posix()
        if isinstance(place, Path):
            return (place / config).exists()
        return patiently(HfApi().file_exists, place.repo_id, config, revision=place.revision)

    kinds = {str(source): is_adapter(as_checkpoint(source)) for source in sources}
    if len(set(kinds.values())) > 1:
        adapters = [source for source, kind in kinds.items() if kind]
        raise ValueError(f"expected checkpoints or LoRA adapters, not both; adapters are {', '.join(adapters)}")
    return all(kinds.values())


def base_config(name: str) -> PreTrainedConfig | None:
    """The configuration of the adapters' base, which only cards and scores need; `None` if it is not available."""
    try:
        place, where = pretrained_arguments(name)
        found, _ = patiently(PreTrainedConfig.get_config_dict, place, **where)
    except OSError:
        return None
    return complete_config(found)


def average_adapters(adapters: Sequence[Adapter], weights: Sequence[float], *, rank: int | None = None) -> AdapterSoup:
    """Average adapters by their effect: `s B A = sum_i a_i s_i B_i A_i` for every target module.

    The average of products is not the product of averages, and factors have a gauge freedom (`A -> M A`,
    `B -> B M^-1`) that does not change a single adapter, but changes the product of averages arbitrarily. Without
    `rank` the factors are concatenated, `A = [A_1; A_2; ...]`, `B = [a_1 s_1 B_1, a_2 s_2 B_2, ...]`, which is exact;
    the rank is the sum of ranks. With `rank`, the concatenation is reduced to the best adapter of that rank by a
    singular value decomposition (of the small core between two QR decompositions), and the error is reported. Modules
    that are saved in full are averaged directly.

    Args:
        adapters: Adapters from [`open_adapters`].
        weights: One per adapter, >= 0, with sum 1.
        rank: Rank of the soup, >= 1; the sum of ranks if `None`.

    Raises:
        ValueError: If weights or rank are out of range, or factors do not fit or are not finite.
    """
    check_weights(adapters, weights)
    if rank is not None and rank < 1:
        raise ValueError(f"the rank must be at least 1, got {rank}; leave it out for the exact soup")
    if dora := [adapter.name for adapter in adapters if adapter.magnitudes]:
        raise ValueError(
            f"{', '.join(dora)} rescale the base (DoRA): their average is not an adapter of low "
            "rank; merge each into its base (merge_and_unload) and average the merged models"
        )
    parts = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight]
    with_bias = any(adapter.added_biases for adapter, _ in parts)
    tensors: StateDict = {}
    errors, ranks = {}, {}
    for module in _all_modules([adapter for adapter, _ in parts]):
        holders = [(adapter, weight) for adapter, weight in parts if module in adapter.modules]
        names = holders[0][0].modules[module]
        dtype = reduce(torch.promote_types, [adapter.dtype(module) for adapter, _ in holders])
        first = torch.cat([adapter.factors(module)[0].to(dtype) for adapter, _ in holders])
        second = torch.cat([weight * adapter.factors(module)[1] for adapter, weight in holders], dim=1)
        errors[module] = 0.0
        if rank is not None and rank < len(first):
            first, second, errors[module] = _refactorised(first, second, rank)
        ranks[module] = len(first)
        tensors |= {names[0]: to_dtype(names[0], first, dtype), names[1]: to_dtype(names[1], second, dtype)}
        if with_bias:
            if holders[0][0].is_embedding(module):
                raise ValueError(f"adapters with lora_bias cannot be averaged with one of the embedding {module!r}")
            biases = [weight * bias for adapter, weight in holders if (bias := adapter.added_bias(module)) is not None]
            name = names[1].removesuffix("weight") + "bias"
            tensors[name] = to_dtype(name, sum(biases, torch.zeros(len(second))), dtype)
    tensors |= average_checkpoints([_whole_modules(adapter) for adapter in adapters], weights)
    config = _config_of(adapters, ranks) | {"lora_bias": with_bias}
    return AdapterSoup({name: tensor.contiguous() for name, tensor in tensors.items()}, config, errors)


@dataclass
class AdapterMixer:
    """A `Mixer` of adapters in the weights of their base model.

    Attributes:
        model: The base model; its target modules are overwritten by every mixture.
        adapters: Adapters from [`open_adapters`].
    """

    model: nn.Module
    adapters: Sequence[Adapter]
    _base: StateDict = field(init=False, repr=False)
    _copies: dict[str, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = self.model.state_dict(keep_vars=True)
        targets = {f"{module}.weight" for module in _all_modules(self.adapters)}
        targets |= {f"{module}.bias" for adapter in self.adapters for module in adapter.added_biases}
        whole = {name: stored for adapter in self.adapters for name, stored in adapter.whole.items()}
        if missing := sorted((targets | whole.keys()) - tensors.keys()):
            raise ValueError(f"{type(self.model).__name__} is not the base of these adapters: it lacks {missing[:3]}")
        tied = {
            name: [other for other in tensors if tensors[other] is tensors[name]] for name in targets | whole.keys()
        }
        # A stored copy of a base weight applies to all modules that share it, but factors apply only to their module.
        self._copies = {name: tied[name] if ".base_layer." in stored else [name] for name, stored in whole.items()}
        for name in sorted(tied):
            if len(tied[name]) > 1:
                untie(self.model, name)
        touched = targets | {copy for names in self._copies.values() for copy in names}
        self._base = {name: tensors[name].detach().clone() for name in sorted(touched)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(adapter.name for adapter in self.adapters)

    def mix(self, weights: Sequence[float]) -> None:
        """Overwrite the target modules with `W + sum_i a_i s_i B_i A_i`.

        Raises:
            ValueError: If weights are out of range, or factors do not fit the model or are not finite.
        """
        check_weights(self.adapters, weights)
        self._add([(adapter, weight) for adapter, weight in zip(self.adapters, weights, strict=True) if weight])

    def load(self, soup: AdapterSoup) -> None:
        """Overwrite the target modules with those of a soup, which may have a smaller rank."""
        self._add([(Adapter("soup", soup.tensors, soup.config), 1.0)])

    @torch.no_grad()
    def _add(self, parts: Sequence[tuple[Adapter, float]]) -> None:
        targets = self.model.state_dict(keep_vars=True)
        for name, base in self._base.items():
            targets[name].copy_(base)
        shares = [share for _, share in parts]
        for stored, tensor in average_checkpoints([_whole_modules(adapter) for adapter, _ in parts], shares).items():
            for name in self._copies[target_name(stored)]:
                targets[name].copy_(tensor)
        start = {
            name: targets[name].detach().clone() for name in {f"{m}.weight" for a, _ in parts for m in a.magnitudes}
        }
        for adapter, share in parts:
            for module in adapter.modules:
                weight = targets[f"{module}.weight"]
                transposed = isinstance(self.model.get_submodule(module), nn.Embedding | Conv1D)
                base = start.get(f"{module}.weight", weight.detach())  # DoRA's norms refer to the base
                weight.add_(adapter.change(module, base, transposed=transposed), alpha=share)
                if (bias := adapter.added_bias(module)) is not None:
                    targets[f"{module}.bias"].add_(bias, alpha=share)


def _check_pair(first: Adapter, other: Adapter) -> None:
    bases = [adapter.config.get("base_model_name_or_path") for adapter in (first, other)]
    if None not in bases and bases[0] != bases[1]:
        raise ValueError(
            f"{first.name} and {other.name} adapt different base models, {bases[0]!r} and {bases[1]!r}; if these "
            "are the same model, pass base_model"
        )
    revisions = [adapter.config.get("revision") or "main" for adapter in (first, other)]
    if None not in bases and revisions[0] != revisions[1]:
        raise ValueError(
            f"{first.name} and {other.name} adapt different revisions of {bases[0]}, {revisions[0]!r} and "
            f"{revisions[1]!r}; if these are the same model, pass base_model"
        )
    for module in first.modules.keys() & other.modules.keys():
        if first.shape(module) != other.shape(module):
            raise ValueError(
                f"{module!r} is {list(first.shape(module))} in {first.name} and {list(other.shape(module))} in "
                f"{other.name}; average adapters of one base model"
            )
        if first.is_embedding(module) != other.is_embedding(module):
            raise ValueError(
                f"{module!r} is an embedding table in one of {first.name} and {other.name} only; average "
                "adapters of one base model"
            )
    if first.whole.keys() != other.whole.keys():
        facts = [
            f"{adapter.name} replaces {sorted(adapter.whole.keys() - rest.whole.keys())[:3] or 'no others'} "
            f"(modules_to_save {adapter.config.get('modules_to_save') or []}, bias "
            f"{adapter.config.get('bias', 'none')!r})"
            for adapter, rest in ((first, other), (other, first))
        ]
        raise ValueError(
            f"{' and '.join(facts)}; the other adapter keeps these tensors of the base, which is not available; train "
            "both with the same modules_to_save and bias, or merge each into its base (merge_and_unload) and "
            "average the merged models"
        )
    check_compatible(_whole_modules(first), _whole_modules(other))


def _whole_modules(adapter: Adapter) -> Ingredient:
    tensors = {name: adapter.tensors[name] for name in adapter.whole.values()}
    return Ingredient(adapter.name, tensors, {name: t.to("meta") for name, t in tensors.items()}, {}, {})


def _all_modules(adapters: Sequence[Adapter]) -> list[str]:
    return list(dict.fromkeys(module for adapter in adapters for module in adapter.modules))


def _refactorised(first: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of a smaller rank, with the scale shared evenly between them, and the relative error."""
    left, left_core = torch.linalg.qr(second.double().flatten(1))
    right, right_core = torch.linalg.qr(first.double().flatten(1).mT)
    outer, values, inner = torch.linalg.svd(left_core @ right_core.mT)
    total = values.square().sum().sqrt().item()
    error = values[rank:].square().sum().sqrt().item() / total if total else 0.0
    root = values[:rank].sqrt()
    rank = len(root)
    new_second = (left @ outer[:, :rank]) * root
    new_first = root[:, None] * (inner[:rank] @ right.mT)
    return (
        new_first.reshape(rank, *first.shape[1:]),
        new_second.reshape(second.shape[0], rank, *second.shape[2:]),
        error,
    )


def _config_of(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of a soup, with scale 1 everywhere, since factors include their scale.

    Layers are selected as in the adapters, if these agree. Otherwise all are named by a regular expression, since a
    plain name would also match every layer whose name ends with it.
    """
    config = {**adapters[0].config, "use_rslora": False, "inference_mode": True, "init_lora_weights": True}
    config["ensure_weight_tying"] = False  # both ends have their own factors, with equal products
    # a local path would not work on other machines
    config["base_model_name_or_path"] = hub_id(config.get("base_model_name_or_path"))
    most_common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    config |= {"r": most_common, "lora_alpha": most_common, "rank_pattern": {}, "alpha_pattern": {}}
    if len(set(ranks.values())) > 1:
        # PEFT uses the first pattern that matches the end of a name, so all are listed, longest first.
        pattern = {re.escape(module): ranks[module] for module in sorted(ranks, key=len, reverse=True)}
        config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern)}
    if any(_choice(adapter) != _choice(adapters[0]) for adapter in adapters) or not all(
        is_targeted(config, module) for module in ranks
    ):
        config |= dict.fromkeys(CHOICE, None)
        config["target_modules"] = "|".join(re.escape(module) for module in sorted(ranks))
    return config


def _choice(adapter: Adapter) -> dict[str, Any]:
    """The fields that select layers, as far as they are identical in all adapters."""
    values = {key: adapter.config.get(key) for key in CHOICE}
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in values.items()}
