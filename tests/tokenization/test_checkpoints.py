import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._pickles import unpickle
from hf_sane.tokenization._state_dicts import strip_prefixes


@pytest.fixture
def tensors():
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "b": torch.arange(3)}


@pytest.fixture
def sharded(tmp_path, tensors):
    save_file({"a.weight": tensors["a.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"a.bias": tensors["a.bias"], "b": tensors["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    files = {"a.weight": "model-00001-of-00002.safetensors"} | dict.fromkeys(
        ("a.bias", "b"), "model-00002-of-00002.safetensors"
    )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tmp_path


def assert_equal(found, expected):
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickles_that_hold_only_weights(tmp_path, tensors, suffix, wrapped):
    path = tmp_path / f"net{suffix}"
    torch.save({"state_dict": tensors, "best_prec1": 91.7} if wrapped else tensors, path)
    assert_equal(load_state_dict(path), tensors)


def test_shards_by_folder_and_by_index(sharded, tensors):
    assert_equal(load_state_dict(sharded), tensors)
    assert_equal(load_state_dict(sharded / "model.safetensors.index.json"), tensors)


def test_a_folder_with_one_file_of_any_name(tmp_path, tensors):
    save_file(tensors, tmp_path / "policy.safetensors")
    assert_equal(load_state_dict(tmp_path), tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 2 safetensors files and none of"):
        load_state_dict(tmp_path)


def test_wrapper_prefixes_go_only_when_all_names_carry_them(tensors):
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    assert list(strip_prefixes(wrapped)) == list(tensors)
    partly = {**wrapped, "extra": torch.ones(1)}
    assert list(strip_prefixes(partly)) == list(partly)
    assert list(load_state_dict(nn.DataParallel(nn.Linear(2, 2)))) == ["weight", "bias"]
    assert strip_prefixes({}) == {}


def test_modules_are_shared_not_copied():
    model = nn.Linear(2, 2)
    assert load_state_dict(model)["weight"].data_ptr() == model.weight.data_ptr()


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_with_code_are_refused(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"w": torch.ones(2), "x": Malicious()}, path)
    with pytest.raises(
        ValueError, match="cannot be opened with weights_only=True.*could run code; if you trust it, convert it"
    ):
        load_state_dict(path)
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match="a Python pickle not written by torch.save; opening it could run code"):
        load_state_dict(path)
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True"):
        unpickle(path)
    assert "code ran" not in capsys.readouterr().out


def test_pickles_of_something_else_are_refused(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="expected a dictionary of tensors.*got an object of the type list"):
        load_state_dict(path)
    torch.save({"epoch": 3, "model": {"w": 1}}, path)
    with pytest.raises(ValueError, match=r"got a dictionary of 2 entries \('epoch': int, 'model': dict\)"):
        load_state_dict(path)


@pytest.mark.parametrize("length", [4, 60, -1])
def test_truncated_safetensors(tmp_path, tensors, length):
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="expected a whole safetensors file.*download or save it again"):
        load_state_dict(path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_that_points_outside_is_refused(sharded, file):
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": file}}))
    with pytest.raises(
        ValueError, match="expected the name of a file next to the index, got .*; do not trust this folder"
    ):
        load_state_dict(sharded)


def test_broken_indices(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "c": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(
        ValueError, match=r"expected tensors that model-00001-of-00002.safetensors holds, got \['c'\], which it lacks"
    ):
        load_state_dict(sharded)
    index.write_text(json.dumps(content))
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names the shard model-00002-of-00002.safetensors, which is missing"):
        load_state_dict(sharded)
    for broken, field in [
        ('{"weight_map": []}', "weight_map: expected an object, got a list of 0"),
        ('{"weight_map": {}}', "weight_map: expected a file name for every tensor"),
        ('{"weight_map": {"a": 1}}', "weight_map.a: expected text, got 1"),
        ('{"weight_map": {"a": null}}', "weight_map.a: expected text, got null"),
        ('{"weight_map": {"a": "b\\u0000"}}', "weight_map.a: expected the name of a file next to the index"),
        ("{}", "expected a field 'weight_map', got an empty object"),
        ("{", "expected a shard index"),
        ("[]", "expected a shard index"),
        ("[" * 100_000, "expected a shard index"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "the field 'a' is repeated"),
    ]:
        index.write_text(broken)
        with pytest.raises(InvalidFileError, match=field):
            load_state_dict(sharded)


def test_an_index_must_know_every_tensor_of_its_shards(sharded):
    """A tensor that is in a shard and not in the index would be left out without a word."""
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for name, message in [
        ("a.bias", r"expected every tensor of model-00002-of-00002.safetensors, got none of \['a.bias'\]"),
        ("b", "expected tensors of all 2 shards, got tensors of 1"),
    ]:
        content["weight_map"].pop(name)
        index.write_text(json.dumps(content))
        for read in (load_state_dict, read_meta_state_dict, open_checkpoint):
            with pytest.raises(InvalidFileError, match=message):
                read(sharded)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Malicious(), protocol=2), r"\(it requires builtins.print\)|\(it requires print\)"),
        (b"", "expected a whole file of torch.save, got a file that is damaged or cut off; save it or download"),
        (b"\x80\x02K", "got a file that is damaged or cut off"),
        (b"\x80\x02c", "got a file that"),
        (b"PK\x03\x04 no archive", "got a file that is damaged or cut off"),
    ],
)
def test_what_torch_says_becomes_one_plain_sentence(content, reason, tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(content)
    with pytest.raises(InvalidFileError, match=reason) as caught:
        unpickle(path)
    assert str(caught.value).isprintable()  # no line breaks, no colours
    assert "add_safe_globals" not in str(caught.value)


@pytest.mark.parametrize("kind", ["network.pt", "legacy.pt", "network.safetensors", "network.npz"])
def test_a_file_that_is_cut_off_is_called_so_at_any_length(kind, tmp_path):
    """PyTorch reads the wrong places of some zip archives, for which the system reports an invalid argument."""
    path, weights = tmp_path / kind, {"a": torch.randn(8, 40), "b": torch.ones(40)}
    if kind.endswith(".pt"):
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "network.pt")
    elif kind.endswith(".npz"):
        np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        save_file(weights, path)
    content = path.read_bytes()
    lengths = [*range(16, len(content), len(content) // 40), len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(InvalidFileError, match=r"damaged|truncated|cut off") as caught:
            load_state_dict(path)
        assert not any(word in str(caught.value) for word in ("Errno", "PytorchStreamReader", "EOFError"))


def test_a_module_names_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pt")
    with pytest.raises(InvalidFileError, match=r"it requires torch.nn.modules.linear.Linear\)"):
        load_state_dict(tmp_path / "network.pt")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """Strides of zero: eight terabytes in a kilobyte."""
    torch.save({"a": torch.zeros(1).expand(2**41)}, tmp_path / "network.pt")
    with pytest.raises(
        InvalidFileError, match="expected tensors that are in the file, got tensors of 8,796,093,022,208"
    ):
        load_state_dict(tmp_path / "network.pt")
    torch.save({3: torch.zeros(1)}, tmp_path / "network.pt")
    with pytest.raises(
        InvalidFileError, match=r"got a dictionary of 1 entries \(3: Tensor\); save model.state_dict\(\)"
    ):
        load_state_dict(tmp_path / "network.pt")


@pytest.mark.parametrize("source", ["./nothing", "folder/of/nothing", "net.safetensors", "/nowhere"])
def test_paths_that_do_not_exist(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*existing path or a Hub repo id"):
        load_state_dict(source)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_state_dict(tmp_path / source.lstrip("/"))


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="expected a state dict, module, path or Hub repo id, got int"):
        load_state_dict(3)
