"""Checkpoints without their weights: the same names, shapes and dtypes as when they are loaded, nothing read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_sane.core._layout import Layout
from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.fixture
def tensors():
    found = {f"layer{index}.weight": torch.zeros(3, 4 + index, dtype=dtype) for index, dtype in enumerate(FLOATS)}
    found |= {f"buffer{index}": torch.zeros(2, dtype=dtype) for index, dtype in enumerate(INTEGERS)}
    return found | {"scalar": torch.zeros(()), "empty": torch.zeros(0, 3)}


def save_as(kind, tensors, folder):
    if kind == "file":
        save_file(tensors, folder / "other.safetensors")
        return folder / "other.safetensors"
    if kind == "folder":
        save_file(tensors, folder / "model.safetensors")
        return folder
    if kind == "single file in a folder":
        save_file(tensors, folder / "other.safetensors")
        return folder
    if kind == "pickle":
        torch.save({"state_dict": tensors}, folder / "network.th")
        return folder / "network.th"
    names = list(tensors)
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder if kind == "shards" else folder / "model.safetensors.index.json"


@pytest.mark.parametrize("kind", ["file", "folder", "single file in a folder", "pickle", "shards", "index"])
def test_it_tells_what_loading_would_give(kind, tensors, tmp_path):
    source = save_as(kind, tensors, tmp_path)
    found, loaded = read_meta_state_dict(source), load_state_dict(source)
    assert list(found) == list(loaded)
    assert found.keys() == tensors.keys()
    for name, tensor in loaded.items():
        assert found[name].is_meta
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
    assert Layout.from_state_dict(found, token_dim=5) == Layout.from_state_dict(loaded, token_dim=5)
    assert read_meta_state_dict(str(source)).keys() == tensors.keys()


def test_prefixes_are_taken_off_as_in_loading(tmp_path):
    save_file({"module.a.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert list(read_meta_state_dict(tmp_path)) == ["a.weight"]


def test_the_weights_are_not_read(tensors, tmp_path, monkeypatch):
    """A sparse file of 8 GiB: only its header exists."""
    header = {"a.weight": {"dtype": "F32", "shape": [2**15, 2**16], "data_offsets": [0, 2**33]}}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**33)
    assert read_meta_state_dict(tmp_path)["a.weight"].shape == (2**15, 2**16)


def test_a_repository_gives_its_headers(tensors, tmp_path, local_hub):
    save_file(tensors, tmp_path / "model.safetensors")
    content = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    repository = local_hub.storage.add_files("models", "someone/network", content)
    repository.tags["v1"] = repository.head.sha
    save_file({"later": torch.zeros(2)}, tmp_path / "model.safetensors")
    content = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    local_hub.storage.add_files("models", "someone/network", content)
    assert read_meta_state_dict("someone/network", revision="v1").keys() == tensors.keys()
    assert list(read_meta_state_dict("someone/network")) == ["later"]


@pytest.mark.parametrize("source", ["no/such/folder", "missing.safetensors", "missing.pt"])
def test_a_missing_path_is_no_repository(source):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*; give an existing path or a Hub repo id"):
        read_meta_state_dict(source)


def test_a_folder_must_say_which_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no safetensors; it holds no files"):
        read_meta_state_dict(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(FileNotFoundError, match="holds 2 safetensors files and none of .*; pass the file itself"):
        read_meta_state_dict(tmp_path)


@pytest.mark.parametrize("keep", [4, 40, -8])
def test_a_truncated_file_is_refused(keep, tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(ValueError, match="truncated"):
        read_meta_state_dict(tmp_path)


def test_a_shard_must_hold_what_the_index_says(tensors, tmp_path):
    index = save_as("index", tensors, tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["missing"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"that model-00001-of-00002.safetensors holds, got \['missing'\], which it lacks"
    ):
        read_meta_state_dict(tmp_path)


def test_an_unknown_dtype_is_refused(tmp_path):
    text = json.dumps({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"0")
    with pytest.raises(ValueError, match=r"dtype: expected one of F64, F32.*, got \['F3'\]; convert it first"):
        read_meta_state_dict(tmp_path)


def test_pickles_that_hold_more_than_weights_are_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True"):
        read_meta_state_dict(tmp_path / "code.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors.*, got an object of the type list"):
        read_meta_state_dict(tmp_path / "list.pt")


@pytest.mark.parametrize("read", [read_meta_state_dict, load_state_dict])
@pytest.mark.parametrize("place", ["folder", "repository"])
def test_an_index_that_promises_safetensors_and_names_pickles_is_refused_before_they_are_fetched(
    read, place, tmp_path, local_hub
):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    local_hub.storage.add_files("models", "someone/network", files)
    with pytest.raises(InvalidFileError) as caught:
        read(tmp_path if place == "folder" else "someone/network")
    assert str(caught.value).endswith(
        "model.safetensors.index.json: weight_map.a: expected a safetensors file, as the name of the index says, "
        "got 'pytorch_model-00001-of-00001.bin'; do not trust this folder; if it is yours, rename the index to "
        "pytorch_model.bin.index.json and pass its path"
    )
    assert not [request for request in local_hub.log if request.path.endswith(".bin")]
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / "pytorch_model.bin.index.json")
    assert list(read(tmp_path / "pytorch_model.bin.index.json")) == ["a"]
