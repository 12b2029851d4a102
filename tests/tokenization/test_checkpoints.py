import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_sane.tokenization.checkpoints import load_state_dict, strip_prefixes


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
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True.*could run code; convert it"):
        load_state_dict(path)
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True"):
        load_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


def test_pickles_of_something_else_are_refused(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="expected a dict of tensors .*got list"):
        load_state_dict(path)
    torch.save({"epoch": 3, "model": {"w": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r"got a dict of \['dict', 'int'\]"):
        load_state_dict(path)


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_truncated_safetensors(tmp_path, tensors, length):
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="is not a whole safetensors file .*download or save it again"):
        load_state_dict(path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_that_points_outside_is_refused(sharded, file):
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": file}}))
    with pytest.raises(ValueError, match="which is not a file beside it; refused"):
        load_state_dict(sharded)


def test_broken_indices(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "c": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks \['c'\] which"):
        load_state_dict(sharded)
    index.write_text(json.dumps(content))
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names the shard model-00002-of-00002.safetensors, which is missing"):
        load_state_dict(sharded)
    for broken in ('{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}'):
        index.write_text(broken)
        with pytest.raises(
            ValueError, match="is no shard index: expected its 'weight_map' to give a file name for every"
        ):
            load_state_dict(sharded)
    for broken in ("{", "{}", "[]"):
        index.write_text(broken)
        with pytest.raises(ValueError, match="is no shard index: expected JSON with a 'weight_map'"):
            load_state_dict(sharded)


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
