"""Whether two networks of one architecture compute the same function, from their outputs on random inputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.architectures.presets import build_model
from hf_sane.symmetry._transformers_models import example_inputs, model_class
from hf_sane.symmetry.tracing._functions import Inputs, exportable, run_in_double


def output_difference(
    config: PreTrainedConfig, first: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> float | None:
    """Largest difference of the outputs of two networks on random inputs, relative to the largest output.

    Args:
        config: Configuration of both, of this library or of Transformers.
        first: Tensors, with the names in files.
        other: Tensors of the other network, with the same names.

    Returns:
        The difference, in double precision; `None` if the network cannot be built, or has other tensors.
    """
    network: Any = type(build_model(config)) if isinstance(config, ZooConfig) else model_class(config)
    if network is None:
        return None
    try:
        inputs = Inputs.of(example_inputs(network, config))
        found = []
        for tensors in (first, other):
            state = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
            with torch.random.fork_rng(devices=[]):
                model, info = network.from_pretrained(
                    None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float64
                )
            if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
                return None
            with torch.no_grad():
                found.append(run_in_double(exportable(model.double().eval()), inputs))
    except (TypeError, ValueError, RuntimeError):  # inputs of another kind, or a code path without double precision
        return None
    largest = max(float(x.abs().max()) for x in found[0])
    return max(float((x - y).abs().max()) for x, y in zip(*found, strict=True)) / largest if largest else None
