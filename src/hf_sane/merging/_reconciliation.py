"""Remove irrelevant differences between checkpoints: wrapper prefixes, constant buffers, duplicated weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_sane.core._types import StateDict
from hf_sane.records._errors import reading
from hf_sane.tokenization._loading import is_own_module

# Entries that profilers (thop) and PyTorch's AveragedModel leave in a state dict.
PROFILES = ("total_ops", "total_params")
AVERAGED, WRAPPER = "n_averaged", "module."


def reconcile(
    tensors: Sequence[Mapping[str, Tensor]],
    outlines: Sequence[StateDict],
    find_ties: Callable[[], Mapping[str, str]],
) -> list[dict[str, str]]:
    """Find the names under which checkpoints of one architecture hold the same tensors.

    Counts of profilers and the prefix of `AveragedModel` are removed. A buffer that only some checkpoints have is left
    out if it carries nothing, see [`carries_nothing`]. If some checkpoints store both names of tied weights and others
    only one, that one is used for both.

    Args:
        tensors: Tensors of each checkpoint.
        outlines: Outlines of each checkpoint.
        find_ties: Function that returns pairs of names that share a weight; called only if something is missing.

    Returns:
        For each checkpoint, the stored names by the common names.
    """
    found = [_unwrapped(outline) for outline in outlines]
    everywhere = set.intersection(*(set(names) for names in found))
    for names, stored in zip(found, tensors, strict=True):
        for name in [name for name in names if name not in everywhere and carries_nothing(name, stored[names[name]])]:
            del names[name]
    if any(names.keys() != found[0].keys() for names in found):
        pairs = list(find_ties().items())
        for lacking, present in pairs + [(source, target) for target, source in pairs]:
            if any(lacking in names for names in found):
                for names in found:
                    if present in names:
                        names.setdefault(lacking, names[present])
    return found


def carries_nothing(name: str, tensor: Tensor) -> bool:
    """Whether a buffer depends only on the architecture: positions, causal masks, rotary frequencies, counters."""
    leaf = name.rpartition(".")[2]
    if leaf in ("num_batches_tracked", "inv_freq", "masked_bias"):
        return tensor.ndim <= 1
    if leaf == "position_ids":
        return not tensor.is_floating_point() and torch.equal(
            tensor.flatten(), torch.arange(tensor.numel()).to(tensor)
        )
    if leaf == "token_type_ids":
        return not tensor.is_floating_point() and not tensor.any()
    if leaf == "bias" and tensor.ndim == 4:  # of attention in GPT-2 and similar models
        return torch.equal(tensor != 0, torch.ones_like(tensor, dtype=torch.bool).tril())
    return False


def tied_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Find tensors of an architecture that share a weight, such as the head of a language model and its embeddings.

    Args:
        config: Content of config.json.

    Returns:
        Name of the tied tensor by name; empty for architectures that Transformers lacks.
    """
    kind, (architecture, *_) = config.get("model_type"), config.get("architectures") or [None]
    model_class = None if is_own_module(config) else getattr(transformers, str(architecture), None)
    if kind not in CONFIG_MAPPING or not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        return {}
    with reading("config.json", expected=f"the configuration of a {architecture}", remedy="correct it"):
        with torch.device("meta"):
            model: Any = model_class(complete_config(config))
        return dict(model.all_tied_weights_keys)


def complete_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration with the defaults of its architecture, if Transformers has it. No remote code is run."""
    kind = str(config.get("model_type"))
    is_known = kind in CONFIG_MAPPING and not is_own_module(config)
    config_class = CONFIG_MAPPING[kind] if is_known else PreTrainedConfig
    with reading("config.json", expected=f"a configuration of {kind!r}", remedy="correct it"):
        return config_class.from_dict({key: value for key, value in config.items() if key != "auto_map"})


def _unwrapped(outlines: StateDict) -> dict[str, str]:
    names = {name: name for name in outlines if name.rpartition(".")[2] not in PROFILES and name != AVERAGED}
    if AVERAGED in outlines and all(name.startswith(WRAPPER) for name in names):
        names = {name.removeprefix(WRAPPER): name for name in names}
    return names
