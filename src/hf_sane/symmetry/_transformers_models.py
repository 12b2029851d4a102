"""Permutation symmetries of Transformers models: built from the configuration, traced on generated inputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_sane.symmetry._experts import Symmetries, find_blocks, saved_spec, stacked
from hf_sane.symmetry._permutation import Permutation, PermutationSpec
from hf_sane.symmetry._saved_forms import SavedForm, saved_forms
from hf_sane.symmetry.tracing._trace import SEED, trace_permutations
from hf_sane.symmetry.tracing._verification import verify

DEFAULT_IMAGE_SIZE = 32  # if the configuration does not say, since convolutional networks accept any size
NUM_EXAMPLES, NUM_TOKENS = 2, 7


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that `config.architectures` names, or otherwise the image classifier of the configuration.

    Returns:
        The class; `None` if Transformers has neither.
    """
    if config.architectures:
        found = getattr(transformers, config.architectures[0], None)
    else:
        found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def transformers_spec(config: PreTrainedConfig, *, as_saved: bool = False) -> PermutationSpec:
    """Trace a Transformers model, without changing the random state.

    Args:
        config: Configuration of an image classifier, or of any model of images or text whose class
            `config.architectures` names.
        as_saved: Whether to describe the tensors in files, which have the names of older versions and store experts
            one by one, instead of those of the state dict.

    Returns:
        The spec; if `as_saved`, without tensors that files omit or compute from several others.

    Raises:
        TypeError: If it names no Transformers class, or one whose inputs are neither images nor tokens.
        ValueError: As in [`trace_permutations`].
    """
    _check_class(config)
    settings = config.to_json_string(use_diff=False)
    return _saved(config.model_type, settings).alone if as_saved else _traced(config.model_type, settings)


def transformers_symmetries(config: PreTrainedConfig) -> Symmetries:
    """Like [`transformers_spec`] for the tensors in files, but experts may also be exchanged, with their routers.

    The choice of experts depends on values, so that their exchange does not follow from the graph. It is verified by
    running the model, as everything else. If experts are chosen by groups, they are exchanged inside these.
    """
    _check_class(config)
    return _saved(config.model_type, config.to_json_string(use_diff=False)).together


def _check_class(config: PreTrainedConfig) -> None:
    if model_class(config) is None:
        raise TypeError(
            "expected the configuration of an image classifier of Transformers, or one whose 'architectures' name "
            f"a class of Transformers, got {type(config).__name__} with architectures={config.architectures}; for "
            "other networks call trace_permutations(model, example_inputs)"
        )


@dataclass(frozen=True)
class _Saved:
    """Symmetries of the tensors in files: with experts that stay, and with experts that may be exchanged."""

    alone: PermutationSpec
    together: Symmetries


def _build(model_type: str, settings: str) -> tuple[PreTrainedModel, dict[str, Tensor], PermutationSpec]:
    """A random model, its inputs and its symmetries."""
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(settings))
    network = model_class(config)
    assert network is not None
    inputs = example_inputs(network, config)
    with torch.random.fork_rng(devices=[]):
        model = network(config).float()
    return model, inputs, trace_permutations(model, inputs)


@lru_cache(maxsize=16)  # readers of a zoo ask repeatedly
def _traced(model_type: str, settings: str) -> PermutationSpec:
    return _build(model_type, settings)[2]


@lru_cache(maxsize=16)
def _saved(model_type: str, settings: str) -> _Saved:
    model, inputs, spec = _build(model_type, settings)
    forms = saved_forms(model)
    blocks = find_blocks(spec, {name: tensor.shape for name, tensor in model.state_dict().items()})
    groups = _num_groups(model.config)
    for kept in dict.fromkeys((groups, None)) if blocks else ():  # then experts that stay
        found = stacked(spec, forms, {x: x.count // kept if kept and x.count % kept == 0 else 1 for x in blocks})
        if found is not None and _is_verified(found, forms, model, inputs):
            return _Saved(saved_spec(spec, forms, blocks), found)
    return _Saved(saved_spec(spec, forms), Symmetries(saved_spec(spec, forms)))


def _num_groups(config: PreTrainedConfig) -> int:
    """The number of groups of experts, some of which are chosen first (as in DeepSeek-V3)."""
    text = config.get_text_config()
    groups, chosen = (getattr(text, name, None) or 1 for name in ("n_group", "topk_group"))
    return groups if chosen < groups else 1


def _is_verified(
    found: Symmetries, forms: Mapping[str, SavedForm], model: PreTrainedModel, inputs: dict[str, Tensor]
) -> bool:
    """Whether permutations of the tensors in files do not change the outputs."""

    def permute(state: dict[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        saved = found.join({name: form.read(state[form.source]) for name, form in forms.items()})
        moved = found.split(saved | found.spec.apply({name: saved[name] for name in found.spec.axes}, permutation))
        copies = {id(tensor): tensor.clone() for tensor in state.values()}  # tied tensors remain tied
        changed = {name: copies[id(tensor)] for name, tensor in state.items()}
        for name, form in forms.items():
            form.write(changed[form.source], moved[name])
        return changed

    generator = torch.Generator().manual_seed(SEED)
    try:
        verify(found.spec, model, inputs, generator=generator, permute=permute)
    except ValueError:
        return False
    return True


def example_inputs(network: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Random images `[2, C, H, W]` float32 or tokens `[2, 7]` int64, by argument of the model.

    Raises:
        TypeError: If the model takes neither.
    """
    generator = torch.Generator().manual_seed(0)
    name = network.main_input_name
    text: Any = config.get_text_config()
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or DEFAULT_IMAGE_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (NUM_EXAMPLES, getattr(config, "num_channels", 3), height, width)
        return {name: torch.randn(shape, generator=generator)}
    if name == "input_ids" and getattr(text, "vocab_size", None):
        tokens = torch.randint(text.vocab_size, (NUM_EXAMPLES, NUM_TOKENS), generator=generator)
        return {name: tokens} | ({"decoder_input_ids": tokens.flip(1)} if config.is_encoder_decoder else {})
    raise TypeError(
        f"expected a model of images or tokens, got {network.__name__}, which takes {name!r}; call "
        "trace_permutations(model, example_inputs) with inputs of its own"
    )
