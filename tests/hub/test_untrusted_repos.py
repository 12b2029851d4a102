"""Malicious repositories over a real server: no code runs, nothing is written outside, no huge downloads."""

import ast
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import hf_sane
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._pickles import unpickle


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("EVIL RAN",)


def test_a_client_refuses_them_before_it_downloads(tmp_path, local_hub, capfd):
    index = json.dumps({"weight_map": {"w": "../../evil.safetensors"}}).encode()
    local_hub.storage.add_files("models", "org/climbs", {"model.safetensors.index.json": index})
    local_hub.storage.add_files("models", "org/pickled", {"pytorch_model.bin": pickle.dumps(Evil())})
    local_hub.storage.add_files("models", "org/large", {"model.safetensors": save({"w": torch.zeros(64)})})
    with pytest.raises(
        ValueError, match="expected the name of a file next to the index, got '../../evil.safetensors'"
    ):
        load_state_dict("org/climbs")
    pickled = "it holds pytorch_model.bin, in PyTorch's format: not downloaded, since it could run code"
    with pytest.raises(FileNotFoundError, match=pickled):
        load_state_dict("org/pickled")
    large = "bytes of weights, more than the limit of 100; pass a larger max_bytes"
    with pytest.raises(ValueError, match=large):
        load_state_dict("org/large", max_bytes=100)
    assert len(load_state_dict("org/large")["w"]) == 64
    assert read_meta_state_dict("org/large")["w"].shape == (64,)
    assert not local_hub.sent("evil|pytorch_model")
    assert "EVIL RAN" not in "".join(capfd.readouterr())
    assert not list(tmp_path.rglob("evil*"))


def test_a_pickle_that_runs_code_is_not_opened(tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="a Python pickle not written by torch.save; opening it could run code"):
        load_state_dict(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True"):
        unpickle(tmp_path / "model.pt")
    torch.save({"w": torch.zeros(2), "extra": Evil()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="cannot be opened with weights_only=True"):
        load_state_dict(tmp_path / "model.pth")
    assert "EVIL" not in capsys.readouterr().out


def test_a_tar_that_climbs_out_is_not_unpacked(tmp_path):
    """PyTorch once saved tar files; with `weights_only=True` it refuses them, so nothing is unpacked."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "model.pth", "w") as archive:
        for name in ("storages", "../../evil.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match="a tar archive; unpack it"):
        load_state_dict(folder / "model.pth")
    with pytest.raises(ValueError, match=r"expected a whole file of torch\.save"):
        unpickle(folder / "model.pth")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["model.pth"]


def test_nothing_in_the_library_trusts_code_of_repositories():
    """Calls pass `trust_remote_code=False` or nothing, and no function takes it: who wants it asks Transformers."""
    trusting = []
    for path in Path(hf_sane.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_refusal = isinstance(node, ast.keyword) and ast.unparse(node.value) == "False"
            if isinstance(node, ast.keyword | ast.arg) and node.arg == "trust_remote_code" and not is_refusal:
                trusting.append(f"{path.name}:{node.lineno}")
    assert not trusting
