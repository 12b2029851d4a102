"""Checkpoints read tensor by tensor: the same as loading them, and only one in memory."""

import json
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_sane.tokenization import _lazy_checkpoints as lazy_checkpoints
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint, open_checkpoint


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    names = ["module.a.weight", "module.a.bias", "module.b.weight", "module.c"]
    return {name: torch.randn(3, 4 + i, generator=generator) for i, name in enumerate(names)}


def save(kind, tensors, folder):
    if kind == "file":
        save_file(tensors, folder / "other.safetensors")
        return folder / "other.safetensors"
    if kind == "folder":
        save_file(tensors, folder / "model.safetensors")
        return str(folder)
    if kind == "pickle":
        torch.save(tensors, folder / "network.pth")
        return folder / "network.pth"
    weight_map = {}
    for number, name in enumerate(tensors):
        weight_map[name] = f"model-{number % 2}.safetensors"
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder if kind == "shards" else folder / "model.safetensors.index.json"


@pytest.mark.parametrize("kind", ["file", "folder", "shards", "index", "pickle"])
def test_the_same_tensors_as_loading(kind, tensors, tmp_path):
    source = save(kind, tensors, tmp_path)
    found, loaded = open_checkpoint(source), load_state_dict(source)
    assert isinstance(found, LazyCheckpoint) == (kind != "pickle")
    assert list(found) == list(loaded)
    assert len(found) == 4
    assert all(torch.equal(found[name], tensor) for name, tensor in loaded.items())
    assert "a.weight" in found
    assert "module.a.weight" not in found


def test_outlines_need_no_reading(tensors, tmp_path, monkeypatch):
    found = open_checkpoint(save("file", tensors, tmp_path))
    monkeypatch.setattr(lazy_checkpoints, "safe_open", None)
    assert {name: tuple(tensor.shape) for name, tensor in found.outlines.items()} == {
        name.removeprefix("module."): tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_what_is_in_memory_is_shared():
    network = nn.Linear(3, 2)
    assert open_checkpoint(network)["weight"].data_ptr() == network.weight.data_ptr()
    weight = torch.ones(2)
    assert open_checkpoint({"weight": weight})["weight"] is weight


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_nothing_that_was_read_stays(kind, tensors, tmp_path):
    found = open_checkpoint(save(kind, tensors, tmp_path))
    for name in found:
        read = weakref.ref(found[name])
        assert read() is None


@pytest.mark.parametrize("source", ["missing.safetensors", "./missing", "a/b/c"])
def test_missing_files_are_named(source):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*; give an existing path or a Hub repo id"):
        open_checkpoint(source)


def test_other_sources_are_refused():
    with pytest.raises(TypeError, match="expected a state dict, module, path or Hub repo id, got int"):
        open_checkpoint(3)


def test_a_file_is_mapped_anew_now_and_then(tensors, tmp_path, monkeypatch):
    opened, open_file = [], lazy_checkpoints.safe_open
    found = open_checkpoint(save("shards", tensors, tmp_path))
    monkeypatch.setattr(lazy_checkpoints, "safe_open", lambda *a, **k: opened.append(a) or open_file(*a, **k))
    names = sorted(found, key=lambda name: str(found._places[name]))  # two tensors of each file after one another
    for name in names:
        assert torch.equal(found[name], tensors[f"module.{name}"])
        assert torch.equal(found.rows(name, 1, 3), tensors[f"module.{name}"][1:3])
    assert len(opened) == 2
    monkeypatch.setattr(lazy_checkpoints, "MAX_MAPPED_BYTES", 0)
    for name in names:
        assert torch.equal(found[name], tensors[f"module.{name}"])
    assert len(opened) == 2 + len(names)
