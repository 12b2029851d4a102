"""Modules of Transformers in the form of their files: some types are saved with other names and tensors."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_sane.core._types import StateDict
from hf_sane.tokenization._checkpoints import Source

WRAPPED = ("module", "_orig_mod")  # where DataParallel and torch.compile keep the network


def as_saved(source: Source) -> Source:
    """The state dict that `save_pretrained` writes for a module, if it differs from the module's own.

    Transformers splits fused experts, renames and merges tensors on the way to a file, and leaves some out. A module
    of such a type is taken for what its file holds, so that both are the same network here. Values are not copied
    where Transformers does not.

    Args:
        source: Anything that holds a network, on the meta device, too.

    Returns:
        The state dict in the form of the file; `source` itself where that has the same names, where it is not a model
        of Transformers, and where Transformers itself could not save it.
    """
    model = _unwrapped(source)
    if not isinstance(model, PreTrainedModel) or is_saved_otherwise(model):
        return source
    state_dict: StateDict = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    kept = {name: value for name, value in state_dict.items() if name not in (model._keys_to_ignore_on_save or ())}
    try:
        kept = remove_tied_weights_from_state_dict(kept, model)
        saved: StateDict = revert_weight_conversion(model, dict(kept))
    except RuntimeError:  # shared tensors that no file can hold, or sizes that do not split
        return source
    has_same_tensors = saved.keys() == kept.keys() and all(saved[name] is kept[name] for name in kept)
    return source if has_same_tensors and kept.keys() | _ties(model) >= state_dict.keys() else saved


def is_saved_otherwise(model: PreTrainedModel) -> bool:
    """Whether Transformers saves a model by special rules, as it does for quantised ones and adapters."""
    return getattr(model, "hf_quantizer", None) is not None or getattr(model, "_hf_peft_config_loaded", False)


def _ties(model: PreTrainedModel) -> set[str]:
    """Names that files omit because another name of the same tensor is kept; these are aliases here."""
    return set(getattr(model, "all_tied_weights_keys", None) or ())


def _unwrapped(source: Any) -> Any:
    """The network inside wrappers that only hold it."""
    while isinstance(source, nn.Module) and not isinstance(source, PreTrainedModel):
        inner = [source._modules.get(name) for name in WRAPPED if list(source._modules) == [name]]
        if not inner:
            break
        source = inner[0]
    return source
