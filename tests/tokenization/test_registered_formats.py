"""A file format from outside the package: after one registration, every way of reading a network takes it."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization import _formats as formats
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._formats import file_format, register_format
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.tokenization._token_stream import stream_if_large


def read_npz(path):
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def npz(monkeypatch):
    monkeypatch.setattr(formats.FORMATS, "_entries", dict(formats.FORMATS._entries))
    register_format("a NumPy archive", lambda head, path: head.startswith(b"PK") and path.suffix == ".npz", read_npz)
    return formats.FORMATS.find("a NumPy archive")[1]


@pytest.fixture
def network(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    np.savez(tmp_path / "network.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return model, tmp_path / "network.npz"


def test_without_the_registration_it_is_refused_by_name(network):
    with pytest.raises(InvalidFileError, match=r"got a NumPy archive \(npz\); save its arrays with safetensors"):
        load_state_dict(network[1])


def test_every_reader_takes_it(npz, network):
    model, path = network
    assert file_format(path) is npz
    found = load_state_dict(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert {n: t.shape for n, t in read_meta_state_dict(path).items()} == {n: t.shape for n, t in found.items()}
    assert torch.equal(open_checkpoint(path)["0.weight"], model[0].weight)
    extractor = SANEFeatureExtractor(token_dim=4, normalization="none")
    assert torch.equal(extractor.encode(path).tokens, extractor.encode(model).tokens)
    assert stream_if_large(path, extractor, max_memory_bytes=1) is None


def test_what_its_reader_cannot_read_is_refused_with_the_file(npz, network):
    path = network[1]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidFileError, match=r"network.npz: expected a whole file: a NumPy archive"):
        load_state_dict(path)


def test_a_name_is_taken_once(npz):
    with pytest.raises(ValueError, match="there is a format 'a NumPy archive' already"):
        register_format("a NumPy archive", lambda head, path: False, read_npz)
