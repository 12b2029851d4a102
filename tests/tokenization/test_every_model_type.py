"""Every model type that Transformers' `AutoModel` knows: all floating tensors become tokens and come back bit by bit.

Module and the file that `save_pretrained` makes of it give the same tokens under every way of normalising, and so does
the state dict in any order where it is what the file holds.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import LEFT_OUT, MODEL_TYPES, tiny_model
from torch import Tensor

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._saved_form import as_saved

EXTRACTORS = [
    SANEFeatureExtractor(token_dim=64, token_layout=token_layout, normalization="none")
    for token_layout in ("rowwise", "dense")
]
BY_KIND = SANEFeatureExtractor(token_dim=64).fit(
    [
        {"conv.weight": torch.randn(2, 3, 3, 3), "fc.weight": torch.randn(4, 5), "norm.weight": torch.ones(3)},
        {"embed.weight": torch.randn(9, 2), "norm.running_var": torch.rand(3), "norm.running_mean": torch.randn(3)},
    ],
    by_kind=True,
)
# What is shared goes by another name in their files than one would guess from the names of a state dict.
TIED_OTHERWISE = {"csm", "pp_doclayout_v3", "t5gemma2"}
# Transformers cannot save these as they are made here, so there is no file to be the same as.
UNSAVED = {"kimi_k25": "is invalid for input of size"}


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
def test_round_trip(model_type, tmp_path):
    model = tiny_model(model_type)
    state_dict = filled(model)
    for extractor in EXTRACTORS:
        assert_round_trip(state_dict, extractor)
    model.load_state_dict(state_dict, assign=True)
    model.tie_weights()
    if model_type in UNSAVED:
        with pytest.raises(RuntimeError, match=UNSAVED[model_type]):
            model.save_pretrained(tmp_path)
        assert as_saved(model) is model
        return
    assert_one_sequence(model, tmp_path, tied_otherwise=model_type in TIED_OTHERWISE)


def assert_one_sequence(model: transformers.PreTrainedModel, folder: Path, *, tied_otherwise: bool) -> None:
    """The module, its file and, where that holds the same tensors, its state dict backwards."""
    with pytest.MonkeyPatch.context() as patch:  # configurations of tiny models need not be valid ones
        patch.setattr(transformers.PreTrainedConfig, "save_pretrained", lambda *_, **__: None)
        model.save_pretrained(folder)
    extractor = EXTRACTORS[0]
    expected = extractor.encode(model)
    assert extractor.layout(model) == expected.layout
    own = model.state_dict()
    is_own = read_meta_state_dict(folder).keys() <= own.keys() and as_saved(model) is model
    for source in (folder, *([dict(reversed(own.items()))] if is_own else [])):
        found = extractor.encode(source)
        if tied_otherwise and source is not folder:
            assert found.layout.aliases != expected.layout.aliases
            continue
        assert torch.equal(found.tokens, expected.tokens)
        assert found.layout.layers == expected.layout.layers  # and with them what is normalised by layer
        assert BY_KIND.scales(found.layout) == BY_KIND.scales(expected.layout)
        assert [layer.kind for layer in found.layout.layers] == [layer.kind for layer in expected.layout.layers]


def test_few_types_are_left_out_and_none_by_mistake():
    assert len(MODEL_TYPES) > 500
    assert LEFT_OUT.keys() <= set(MODEL_TYPES)
    assert len(LEFT_OUT) < 0.05 * len(MODEL_TYPES)


@pytest.mark.parametrize("model_type", LEFT_OUT)
def test_what_is_left_out_cannot_be_made(model_type):
    with pytest.raises((ImportError, AttributeError, ValueError, KeyError), match=re.escape(LEFT_OUT[model_type])):
        tiny_model(model_type)
