"""State dicts inside of training checkpoints are found, and where there are several, all are named."""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._state_dicts import strip_prefixes


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def optimizer_state():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def prefixed(prefix, state_dict):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


SD, EMA = network(0).state_dict(), network(1).state_dict()
LIGHTNING = {
    "epoch": 3,
    "global_step": 99,
    "pytorch-lightning_version": "2.1.0",
    "state_dict": prefixed("model.", SD),
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3), "best_model_path": "x.ckpt"}},
    "optimizer_states": [optimizer_state()],
    "lr_schedulers": [],
    "hyper_parameters": {"lr": 1e-3, "arguments": argparse.Namespace(width=3), "where": Path("a")},
}
ONE = {
    "model and optimizer": {"model": SD, "optimizer": optimizer_state(), "epoch": 3},
    "model_state_dict": {"model_state_dict": SD, "optimizer_state_dict": optimizer_state(), "loss": 0.3},
    "net and accuracy": {"net": SD, "acc": 91.2},
    "numbers of NumPy": {
        "net": SD,
        "acc": np.float64(91.2),
        "history": np.arange(3.0),
        "args": argparse.Namespace(a=1),
    },
    "a step": {**SD, "step": 7},
    "nothing": {**SD, "x": None},
    "extra state": {**SD, "0._extra_state": None, "1._extra_state": {"scale": 1.0}},
    "two deep": {"checkpoint": {"model": SD, "epoch": 3}, "version": "1"},
    "lightning": LIGHTNING,
    "lightning, several": LIGHTNING | {"state_dict": prefixed("model._orig_mod.", SD)},
    "random state": {"model": SD, "rng_state": torch.get_rng_state(), "losses": torch.ones(9)},
    "statistics beside": {"model": SD, "stats": {"mean": torch.ones(3), "std": torch.ones(3)}},
    "module": prefixed("module.", SD),
    "stack": prefixed("module._orig_mod.module.", SD),
    "averaged": {"n_averaged": torch.tensor(4), **prefixed("module.", SD)},
    "averaged, nested": {"model": {"n_averaged": torch.tensor(4), **prefixed("module.model.", SD)}},
    "ordered": OrderedDict(SD),
}
SEVERAL = {
    "params_ema": ({"params": SD, "params_ema": EMA}, ("params", "params_ema")),
    "model_ema": ({"model": SD, "model_ema": EMA, "optimizer": optimizer_state()}, ("model", "model_ema")),
    "state_dict_ema": ({"state_dict": SD, "state_dict_ema": EMA, "epoch": 1}, ("state_dict", "state_dict_ema")),
    "names": ({**prefixed("model.", SD), **prefixed("model_ema.", EMA)}, ("model", "model_ema")),
    "nested names": (
        {"state_dict": {**prefixed("model.", SD), **prefixed("ema_model.", EMA)}, "epoch": 1},
        ("state_dict/model", "state_dict/ema_model"),
    ),
    "deep": ({"nets": {"g": SD, "d": EMA}}, ("nets/g", "nets/d")),
}


def save(content, path, *, tmp_path):
    torch.save(content, tmp_path / path)
    return tmp_path / path


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ONE)
def test_the_only_network_is_taken(kind, tmp_path):
    path = save(ONE[kind], "net.ckpt", tmp_path=tmp_path)
    assert_same(load_state_dict(path), SD)
    assert_same(load_state_dict(ONE[kind]), SD)
    assert_same(open_checkpoint(path), SD)
    outlines = read_meta_state_dict(path)
    assert {name: tensor.shape for name, tensor in outlines.items()} == {name: t.shape for name, t in SD.items()}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_are_named_and_chosen_by_key(kind, tmp_path):
    content, (first, second) = SEVERAL[kind]
    path = save(content, "net.pt", tmp_path=tmp_path)
    for source in (path, content):
        with pytest.raises(InvalidFileError) as caught:
            load_state_dict(source)
        named = f"2 state dicts: '{first}' (9 tensors, 36 weights), '{second}' (9 tensors, 36 weights)"
        assert caught.value.got == named
        assert caught.value.remedy == f"choose one by its key (--key, key=), such as '{first}'"
        assert_same(load_state_dict(source, key=first), SD)
        assert_same(load_state_dict(source, key=second), EMA)
        with pytest.raises(InvalidFileError, match="expected a state dict under the key 'nets', got '"):
            load_state_dict(source, key="nets")
    assert_same(open_checkpoint(path, key=second), EMA)
    assert_same(load_state_dict(CheckpointSource(path, key=second)), EMA)
    assert read_meta_state_dict(CheckpointSource(path, key=second)).keys() == EMA.keys()


def test_an_average_beside_a_network_in_safetensors(tmp_path):
    path = tmp_path / "both.safetensors"
    save_file({**prefixed("model.", SD), **prefixed("model_ema.", EMA)}, path)
    for read in (load_state_dict, read_meta_state_dict, open_checkpoint):
        with pytest.raises(
            InvalidFileError, match=r"2 state dicts: 'model' \(9 tensors\), 'model_ema' \(9 tensors\);"
        ):
            read(path)
        assert sorted(read(path, key="model")) == sorted(SD)
    assert all(torch.equal(open_checkpoint(path, key="model_ema")[name], EMA[name]) for name in EMA)


def test_twins_without_an_average_are_one_network(tmp_path):
    """Two encoders of one shape, a codebook with moving averages of its own."""
    twins = {**prefixed("question.", SD), **prefixed("answer.", EMA)}
    assert load_state_dict(twins).keys() == twins.keys()
    codebook = {**prefixed("encoder.", SD), "ema.size": torch.ones(3), "quantize.ema_weight": torch.ones(3, 4)}
    assert load_state_dict(codebook).keys() == codebook.keys()


def test_names_of_transformers_stay(tmp_path):
    """All names of a network without a head begin with `model.`: that is no wrapper."""
    own = prefixed("model.", SD)
    assert load_state_dict(save(own, "pytorch_model.bin", tmp_path=tmp_path)).keys() == own.keys()
    save_file(own, tmp_path / "model.safetensors")
    assert sorted(load_state_dict(tmp_path / "model.safetensors")) == sorted(own)


def test_bookkeeping_goes_with_the_wrapper_and_nothing_else_does():
    averaged = AveragedModel(network())
    assert list(load_state_dict(averaged)) == list(SD)
    assert list(strip_prefixes({"module.a": 1, "extra": 2})) == ["module.a", "extra"]
    assert list(strip_prefixes({"module.a": 1, "step": 2, "epoch": 3, "decay": 4})) == [
        "module.a",
        "step",
        "epoch",
        "decay",
    ]
    assert strip_prefixes({"module.": 1, "module.a": 2}) == {"module.": 1, "module.a": 2}
    assert strip_prefixes({"n_averaged": 1}) == {"n_averaged": 1}


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.ones(2)], "an object of the type list"),
        ({}, "an empty dictionary"),
        ({"epoch": 3, "name": "x"}, "a dictionary of 2 entries ('epoch': int, 'name': str)"),
        ({"optimizer": optimizer_state()}, "a dictionary of 1 entries ('optimizer': dict)"),
        ({3: torch.ones(2)}, "a dictionary of 1 entries (3: Tensor)"),
        ({"w": np.ones(3)}, "a dictionary of 1 entries ('w': Unread)"),
    ],
)
def test_what_holds_no_network_is_outlined(content, got, tmp_path):
    with pytest.raises(InvalidFileError) as caught:
        load_state_dict(save(content, "x.pt", tmp_path=tmp_path))
    assert caught.value.got == got
    assert caught.value.remedy == "save model.state_dict()"


def test_a_tensor_without_a_name_is_refused(tmp_path):
    nameless = {"": torch.ones(2, 2), "w": torch.ones(2, 2)}
    save_file(nameless, tmp_path / "x.safetensors")
    for source in (nameless, save(nameless, "x.pt", tmp_path=tmp_path), tmp_path / "x.safetensors"):
        with pytest.raises(InvalidFileError, match="expected a name for every tensor, got one named ''; name it"):
            load_state_dict(source)
    with pytest.raises(InvalidFileError, match="expected a name for every tensor"):
        read_meta_state_dict(tmp_path / "x.safetensors")


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    content = {"model": SD}
    content["itself"] = content
    assert_same(load_state_dict(content, key="model"), SD)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_names_the_class_and_what_to_do(legacy, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"model": network(), "epoch": 1}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InvalidFileError) as caught:
        load_state_dict(path)
    said = str(caught.value)
    assert "it requires torch.nn.modules.container.Sequential" in said
    assert "save model.state_dict()" in said
    assert said.isprintable()
    assert "[1m" not in said
