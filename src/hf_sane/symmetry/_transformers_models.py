"""Permutation symmetries of Transformers models: built from the configuration, traced on generated inputs."""

import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry.tracing._trace import trace_permutations

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
        as_saved: Whether to name tensors as in files, which keep the names of older versions, instead of as in the
            state dict.

    Returns:
        The spec; if `as_saved`, without tensors that files omit or store in another form.

    Raises:
        TypeError: If it names no Transformers class, or one whose inputs are neither images nor tokens.
        ValueError: As in [`trace_permutations`].
    """
    if model_class(config) is None:
        raise TypeError(
            "expected the configuration of an image classifier of Transformers, or one whose 'architectures' name "
            f"a class of Transformers, got {type(config).__name__} with architectures={config.architectures}; for "
            "other networks call trace_permutations(model, example_inputs)"
        )
    return _traced(config.model_type, config.to_json_string(use_diff=False), as_saved)


@lru_cache(maxsize=16)  # readers of a zoo ask repeatedly
def _traced(model_type: str, settings: str, as_saved: bool) -> PermutationSpec:
    config = CONFIG_MAPPING[model_type].from_dict(json.loads(settings))
    network = model_class(config)
    assert network is not None
    inputs = example_inputs(network, config)
    with torch.random.fork_rng(devices=[]):
        model = network(config).float()
    spec = trace_permutations(model, inputs)
    return select_tensors(spec, _saved_names(model)) if as_saved else spec


def select_tensors(spec: PermutationSpec, names: Mapping[str, str]) -> PermutationSpec:
    """Restrict a spec to some tensors, with other names and in another order.

    Args:
        spec: The spec.
        names: Old names by new name.
    """
    held = {axis for axis, places in spec.occurrences.items() if any(p.tensor in names.values() for p in places)}
    return PermutationSpec(
        {new: spec.axes[old] for new, old in names.items()},
        {axis: size for axis, size in spec.sizes.items() if axis in held},
        frozenset(new for new, old in names.items() if old in spec.unmatched),
        {axis: made_of for axis, made_of in spec.parts.items() if axis in held},
        {new: spec.fixed[old] for new, old in names.items() if old in spec.fixed},
    )


@torch.no_grad()
def _saved_names(model: PreTrainedModel) -> dict[str, str]:
    """Names in the state dict by name in files, found by saving a model with distinguishable tensors.

    Tensors that files store in another form (fused, split, transposed) are left out.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    names = [name for name, tensor in state.items() if tensor.numel()]
    for number, name in enumerate(names):
        state[name].copy_(torch.arange(state[name].numel()).view_as(state[name]))
        state[name].view(-1)[0] = -1 - number
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for path in sorted(Path(folder).glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                number = -1 - int(tensor.flatten()[0]) if tensor.numel() else -1
                if number >= 0 and torch.equal(tensor, state[names[number]]):
                    found[name] = names[number]
    return found


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
