"""Find the permutation symmetries of a checkpoint, from a registered module or its configuration."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.networks._modules import find_architecture
from hf_sane.records._errors import shorten
from hf_sane.symmetry._experts import Symmetries
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.tokenization._loading import load_config
from hf_sane.zoo._symmetries import fit_spec, imported_symmetries

CONFIG = "config.json"
TOKEN_DIM = 64  # for the layout, whose names and shapes are used


def find_symmetries(
    tensors: Mapping[str, Tensor], sources: Sequence[object], *, max_weights: int
) -> tuple[Symmetries | None, str]:
    """Find the permutation symmetries of a checkpoint.

    Args:
        tensors: Tensors of the checkpoint, possibly on the meta device.
        sources: Folders and repositories of networks of this architecture, which may hold a config.json, and modules
            of Transformers. Other sources have no configuration.
        max_weights: Largest network whose channels may be matched.

    Returns:
        The symmetries, or `None` and the reason why they are unknown.
    """
    if (size := sum(tensor.numel() for tensor in tensors.values())) > max_weights:
        return None, f"{size:,} weights, more than --max-aligned {max_weights:,}"
    found = find_architecture(tensors)
    if found is not None and found.example_inputs is not None:
        try:
            return Symmetries(found.permutations_of(tensors)), ""
        except ValueError as error:  # no symmetry could be proven
            return None, shorten(error, 400)
    try:
        layout = Layout.from_state_dict(dict(tensors), token_dim=TOKEN_DIM)
    except (TypeError, ValueError) as error:  # complex or integer weights
        return None, shorten(error)
    reasons = []
    for source in sources:
        if not isinstance(source, str | Path | PreTrainedModel):
            continue
        if isinstance(source, str | Path) and Path(source).exists() and not (Path(source) / CONFIG).is_file():
            continue
        try:
            config = _config_of(source)
            if isinstance(config, ZooConfig):
                return Symmetries(fit_spec(permutation_spec(config), layout)), ""
            return imported_symmetries(config.to_dict(), layout), ""
        except (OSError, TypeError, ValueError) as error:
            reasons.append(shorten(str(error).removeprefix(f"{source}: ").partition("; pass the code")[0]))
    advice = "pass the code of the network: hf_sane.register_architecture, or --module"
    if found is not None:
        reasons = [f"tracing the symmetries requires example inputs of the module {found.name}"]
        advice = f"pass the shape of its inputs: hf_sane.register_architecture({found.name}, example_inputs), or "
        advice += "--module-input 1,28,28"
    return None, f"{reasons[0] if reasons else 'there is no config.json next to the weights'}; {advice}"


def _config_of(source: str | Path | PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a folder, repository or module."""
    if not isinstance(source, PreTrainedModel):
        return load_config(source)
    config = copy.deepcopy(source.config)
    config.architectures = [type(source).__name__]
    return config
