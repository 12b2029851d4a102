"""Transformers modules in their saved form: some types are saved with different names and tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_sane.core._types import StateDict
from hf_sane.tokenization._checkpoints import Source

WRAPPED = ("module", "_orig_mod")  # attributes with the network in DataParallel and torch.compile


def as_saved(source: Source) -> Source:
    """The state dict that `save_pretrained` writes for a module, if it differs from the module's own.

    When it saves a model, Transformers splits fused experts, renames, merges and omits tensors. Such a module is
    represented by the content of its file, so that both count as the same network. Values are copied only if
    Transformers copies them.

    Args:
        source: Any source of a network, also on the meta device.

    Returns:
        The state dict in its saved form; `source` itself if it has the same names, is not a Transformers model, or
        cannot be saved by Transformers.
    """
    model = _unwrapped(source)
    if not isinstance(model, PreTrainedModel) or is_saved_otherwise(model):
        return source
    try:
        kept, saved = _kept_and_saved(model)
    except RuntimeError:  # shared tensors that files do not support, or sizes that cannot be split
        return source
    has_same_tensors = saved.keys() == kept.keys() and all(saved[name] is kept[name] for name in kept)
    return source if has_same_tensors and kept.keys() | _ties(model) >= model.state_dict().keys() else saved


def _kept_and_saved(model: PreTrainedModel) -> tuple[StateDict, StateDict]:
    """Tensors that files keep, with their names in the module and with those in files.

    Raises:
        RuntimeError: If tensors are shared in a way that files do not support, or sizes cannot be split.
    """
    state_dict: StateDict = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    kept = {name: value for name, value in state_dict.items() if name not in (model._keys_to_ignore_on_save or ())}
    kept = remove_tied_weights_from_state_dict(kept, model)
    return kept, revert_weight_conversion(model, dict(kept))


def renamed_tensors(module: nn.Module) -> dict[str, str]:
    """Names in the state dict of tensors that files call otherwise, by the names in files.

    Empty for modules that are saved with their own names, or whose tensors are also merged or split.
    """
    if not isinstance(module, PreTrainedModel) or is_saved_otherwise(module):
        return {}
    try:
        kept, saved = _kept_and_saved(module)
    except RuntimeError:
        return {}
    names = {id(tensor): name for name, tensor in kept.items()}
    if any(id(tensor) not in names for tensor in saved.values()):
        return {}
    return {name: names[id(tensor)] for name, tensor in saved.items() if names[id(tensor)] != name}


def with_saved_names(state_dict: Mapping[str, Tensor], renamed: Mapping[str, str]) -> StateDict:
    """Tensors of a module by the names in its files, as [`renamed_tensors`] lists them."""
    in_file = {own: name for name, own in renamed.items()}
    return {in_file.get(name, name): tensor for name, tensor in state_dict.items()}


def is_saved_otherwise(model: PreTrainedModel) -> bool:
    """Whether Transformers saves a model by special rules, as for quantised models and adapters."""
    return getattr(model, "hf_quantizer", None) is not None or getattr(model, "_hf_peft_config_loaded", False)


def _ties(model: PreTrainedModel) -> set[str]:
    """Names that files omit because they keep another name of the same tensor; treated as aliases."""
    return set(getattr(model, "all_tied_weights_keys", None) or ())


def _unwrapped(source: Any) -> Any:
    """The network inside wrappers that add nothing to it."""
    while isinstance(source, nn.Module) and not isinstance(source, PreTrainedModel):
        inner = [source._modules.get(name) for name in WRAPPED if list(source._modules) == [name]]
        if not inner:
            break
        source = inner[0]
    return source
