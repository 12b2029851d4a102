"""Files are what their first bytes say they are, whatever their names."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._formats import file_format, weights_reader
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}
READ = ("checkpoint.pth.tar", "net.pkl", "net", "net.safetensors", "net.bin", "net.gguf", "net.json")


def torch_file(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zip_file(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tar_file():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"), io.BytesIO())
    return buffer.getvalue()


def npz_file():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3))
    return buffer.getvalue()


def npy_file():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "nested"])
def test_what_is_read_is_read_under_any_name(kind, name, tmp_path):
    content = {
        "safetensors": lambda: save(TENSORS),
        "zip": lambda: torch_file(TENSORS),
        "legacy": lambda: torch_file(TENSORS, _use_new_zipfile_serialization=False),
        "nested": lambda: torch_file({"model": TENSORS, "epoch": 3}),
    }[kind]()
    path = tmp_path / name
    path.write_bytes(content)
    for read in (load_state_dict, open_checkpoint):
        found = read(path)
        assert sorted(found) == sorted(TENSORS)
        assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    outlines = read_meta_state_dict(str(path))
    assert {key: tensor.shape for key, tensor in outlines.items()} == {k: t.shape for k, t in TENSORS.items()}


def test_an_index_may_have_any_name(tmp_path):
    (tmp_path / "part.safetensors").write_bytes(save(TENSORS))
    (tmp_path / "index").write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "part.safetensors")}))
    assert (
        sorted(load_state_dict(tmp_path / "index")) == sorted(open_checkpoint(tmp_path / "index")) == sorted(TENSORS)
    )


def test_the_shards_of_an_index_must_be_safetensors(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "part.safetensors"}}))
    for content, got in (
        (UNREAD["lfs"][0], "a Git LFS pointer in place of the file; fetch the file itself with git lfs pull"),
        (torch_file(TENSORS), "expected a safetensors file, got a PyTorch file"),
    ):
        (tmp_path / "part.safetensors").write_bytes(content)
        for read in (load_state_dict, read_meta_state_dict, open_checkpoint):
            with pytest.raises(InvalidFileError, match=got):
                read(tmp_path)


def pickled_shards(folder, tensors):
    """Two shards of `torch.save` and their index, as Transformers 4 wrote them."""
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:1], "pytorch_model-00002-of-00002.bin": names[1:]}
    for file, inside in parts.items():
        torch.save({name: tensors[name] for name in inside}, folder / file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, inside in parts.items() for name in inside}}))
    return index


def test_an_index_of_pickles_is_read_shard_by_shard(tmp_path):
    tensors = {
        "module.b.weight": torch.randn(3, 2),
        "module.a.weight": torch.randn(2, 2),
        "module.a.bias": torch.ones(2),
    }
    index = pickled_shards(tmp_path, tensors)
    expected = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    for read in (load_state_dict, open_checkpoint):
        found = read(index)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    outlines = read_meta_state_dict(index)
    assert {name: (t.shape, t.dtype) for name, t in outlines.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert all(tensor.is_meta for tensor in outlines.values())
    with pytest.raises(
        FileNotFoundError, match=r"pytorch_model.bin.index.json, in PyTorch's format: pass the file itself"
    ):
        load_state_dict(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("code of a stranger",))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"b": Evil()}, r"got a file that cannot be opened with weights_only=True \(it requires (builtins\.)?print\)"),
        ({"b": {"c": torch.ones(1)}}, "expected a shard: tensors by name, got an object of the type dict"),
        ([torch.ones(1)], "expected a shard: tensors by name, got an object of the type list"),
        (
            {"c": torch.ones(1)},
            r"expected tensors that pytorch_model-00002-of-00002.bin holds, got \['b'\], which it lacks",
        ),
    ],
)
def test_pickled_shards_hold_tensors_and_nothing_else(content, expected, tmp_path, capsys):
    index = pickled_shards(tmp_path, {"a": torch.ones(2), "b": torch.ones(3)})
    torch.save(content, tmp_path / "pytorch_model-00002-of-00002.bin")
    for read in (load_state_dict, read_meta_state_dict, open_checkpoint):
        with pytest.raises(InvalidFileError, match=expected):
            read(index)
    assert capsys.readouterr().out == ""


ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x10\n\x04Conv" + bytes(40)
UNREAD = {
    "gguf": (b"GGUF\x03\0\0\0" + bytes(40), "a GGUF file", "gguf_file="),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "onnx": (ONNX, "an ONNX file", "numpy_helper"),
    "savedmodel": (b"\x08\x01\x12\x99\x02\n\x10" + bytes(40), "a TensorFlow SavedModel", "TensorFlow"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", "h5py"),
    "npz": (npz_file(), "a NumPy archive", "safetensors.numpy.save_file"),
    "npy": (npy_file(), "a NumPy array", "safetensors.numpy.save_file"),
    "keras": (zip_file("config.json", "model.weights.h5"), "a Keras archive", "Keras"),
    "zip": (zip_file("a/model.safetensors"), "a zip archive without", "unpack it"),
    "tar": (tar_file(), "a tar archive", "unpack it"),
    "gzip": (gzip.compress(save(TENSORS)), "a gzip archive", "unpack it"),
    "torchscript": (
        zip_file("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"),
        "a TorchScript archive",
        "torch.jit.load",
    ),
    "pickle": (pickle.dumps({"w": [1, 2]}), "a Python pickle not written by torch.save", "could run code"),
    "msgpack": (b"\x81\xa6params\x80" + bytes(8), "a MessagePack file", "flax.serialization"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite file", "converted from"),
    "json": (b'{"architectures": ["Bert"]}', "a JSON file", "pass the weights file"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page", "download the file itself"),
    "text": ("Gewichte: keine. Größe: 3".encode(), "a text", "pass the weights file"),
    "tf index": (
        bytes(range(200, 256)) + bytes.fromhex("57fb808b247547db"),
        "a TensorFlow checkpoint",
        "load_checkpoint",
    ),
    "empty": (b"", "an empty file", "download it again"),
    "noise": (bytes(range(128, 256)), "a file of unknown format", "download it again"),
}


@pytest.mark.parametrize("name", ["model.pt", "model", "model.bin"])
@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_named_with_a_remedy(kind, name, tmp_path):
    content, what, remedy = UNREAD[kind]
    (tmp_path / name).write_bytes(content)
    for read in (load_state_dict, read_meta_state_dict, open_checkpoint):
        with pytest.raises(InvalidFileError) as caught:
            read(tmp_path / name)
        assert what in caught.value.got
        assert remedy in caught.value.remedy
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model"])
def test_a_pointer_is_known_under_the_name_of_what_it_stands_for(name, tmp_path):
    (tmp_path / name).write_bytes(UNREAD["lfs"][0])
    with pytest.raises(InvalidFileError, match="a Git LFS pointer in place of the file; fetch .*git lfs pull"):
        load_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><html>404</html>", "got a web page; download the file itself, not the page that shows it"),
        (b"Entry not found", "got a text; pass the weights file"),
        (
            b'{"error": "Repository not found"}',
            "got a JSON file that is not a shard index; pass the weights file",
        ),
    ],
)
def test_what_a_failed_download_leaves_under_the_name_of_safetensors_is_named(content, named, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidFileError) as caught:
        load_state_dict(tmp_path)
    assert str(caught.value).endswith(named)


def test_a_text_whose_last_letter_is_cut_by_the_head_is_a_text(tmp_path):
    (tmp_path / "text").write_text("a" * 511 + "ä" + "b" * 100, encoding="utf-8")
    assert file_format(tmp_path / "text").name == "a text"
    (tmp_path / "noise").write_bytes(b"a" * 300 + b"\xff" + b"a" * 300)
    assert file_format(tmp_path / "noise").name == "a file of unknown format"


def test_a_header_length_must_be_one_that_the_format_allows(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 100_000_001) + b"{" + bytes(9))
    assert file_format(tmp_path / "x").reader is None
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 100_000_001) + b"{" + bytes(9))
    assert weights_reader(tmp_path / "x.safetensors") == "safetensors"  # its reader says what is wrong


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x8B1F, 0x5A42])
def test_the_length_of_a_header_may_look_like_a_mark(length, tmp_path):
    """Pickles start with 80 02, gzip with 1F 8B, bzip2 with BZ; so may the length of a safetensors header."""
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = struct.pack("<Q", length) + header.ljust(length) + bytes(4)
    (tmp_path / "x").write_bytes(content)
    assert load_state_dict(tmp_path / "x")["w"].tolist() == [0.0]
