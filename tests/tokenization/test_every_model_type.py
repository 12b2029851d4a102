"""Every model type that Transformers' `AutoModel` knows: all floating tensors become tokens and come back bit by bit."""

import re
import warnings

import pytest
import torch
import transformers
from tiny_models import LEFT_OUT, MODEL_TYPES, tiny_model
from torch import Tensor

from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor

EXTRACTORS = [
    SANEFeatureExtractor(token_dim=288, token_layout=token_layout, normalization="none")
    for token_layout in ("rowwise", "dense")
]


@pytest.fixture(autouse=True)
def quiet_libraries():
    """Modules of Transformers warn of their own deprecations when they are imported or made."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"transformers\.|torch\.")
        yield
    transformers.logging.set_verbosity(verbosity)


def filled(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict with values in place of meta tensors; what was shared is shared."""
    values: dict[int, Tensor] = {}
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in values:
            bits = torch.empty(tensor.shape, dtype=tensor.dtype)
            values[id(tensor)] = bits.uniform_(-1, 1) if bits.is_floating_point() else bits.fill_(1)
    return {name: values[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}


def assert_round_trip(state_dict: dict[str, Tensor], extractor: SANEFeatureExtractor) -> None:
    sequence = extractor.encode(state_dict)
    layout = sequence.layout
    in_tokens = {spec.name for layer in layout.layers for spec in layer.tensors} | layout.aliases.keys()
    floating = {name for name, tensor in state_dict.items() if tensor.is_floating_point() and tensor.numel()}
    assert in_tokens == floating
    assert layout.num_weights == sum(
        tensor.numel() for name, tensor in state_dict.items() if name in floating - layout.aliases.keys()
    )
    decoded = extractor.decode(sequence.tokens, layout)
    assert list(decoded) == list(state_dict)
    for name, tensor in state_dict.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert torch.equal(decoded[name], tensor), name


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in LEFT_OUT])
def test_round_trip(model_type):
    state_dict = filled(tiny_model(model_type))
    for extractor in EXTRACTORS:
        assert_round_trip(state_dict, extractor)


def test_few_types_are_left_out_and_none_by_mistake():
    assert len(MODEL_TYPES) > 500
    assert LEFT_OUT.keys() <= set(MODEL_TYPES)
    assert len(LEFT_OUT) < 0.05 * len(MODEL_TYPES)


@pytest.mark.parametrize("model_type", LEFT_OUT)
def test_what_is_left_out_cannot_be_made(model_type):
    with pytest.raises((ImportError, AttributeError, ValueError, KeyError), match=re.escape(LEFT_OUT[model_type])):
        tiny_model(model_type)
