"""The road of a scan: files, folders, repositories, what is read of them, and how it ends."""

import json
import os
import pickle
import re
import shlex
import threading
import weakref
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hub_server import Fault
from jsonschema import Draft4Validator
from safetensors.torch import save, save_file

import hf_sane
from hf_sane.screening import _pickles
from hf_sane.screening._scan_spectra import Arrivals, compute_spectra
from hf_sane.screening._statistics import Moments, tensor_statistics
from hf_sane.tokenization import _byte_ranges
from hf_sane.tokenization._byte_ranges import JOINED_GAP, MAX_REQUEST_BYTES, HubFile, joined, split_range
from hf_sane.tokenization._kept_ranges import KeptRanges, kept_bytes


def network(scale: float = 1.0, size: int = 700) -> dict[str, torch.Tensor]:
    """Three large matrices and a bias."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"layers.{index}.weight": scale
        * torch.randn(size, 600, generator=generator)
        * (1 + torch.rand(size, 1, generator=generator))
        for index in range(3)
    }
    return weights | {"layers.0.bias": torch.ones(size)}


class Planted:
    def __reduce__(self):
        return (os.system, ("touch planted_code_ran",))


def test_a_file_that_is_read_whole_has_the_statistics_of_its_tensors(tmp_path):
    tensors = network()
    save_file(tensors, tmp_path / "model.safetensors")
    (scan,) = hf_sane.scan(tmp_path / "model.safetensors").scans
    assert {x.name: x.row() for x in scan.tensors} == {n: tensor_statistics(n, t).row() for n, t in tensors.items()}
    assert scan.bytes_read == scan.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert scan.num_weights == sum(tensor.numel() for tensor in tensors.values())
    assert {layer.name for layer in scan.spectra.layers} == {name for name in tensors if "weight" in name}
    assert scan.findings == ()


def test_a_sample_reads_its_budget_and_comes_close(tmp_path):
    tensors = network(size=3000)
    save_file(tensors, tmp_path / "model.safetensors")
    result = hf_sane.scan(tmp_path / "model.safetensors", budget="30%")
    (scan,) = result.scans
    assert scan.bytes_read == pytest.approx(0.3 * scan.num_bytes, rel=0.1)
    for found in scan.tensors:
        assert found.std == pytest.approx(tensors[found.name].std(correction=0).item(), abs=6 * found.std_error + 1e-9)
    assert scan.spectra is None
    assert "±" in str(result)


def test_a_repository_is_scanned_like_the_folder_it_is_a_copy_of_with_few_bytes(tmp_path, local_hub):
    tensors = network(size=3000)
    parts = [dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}}
    files = {name: save(part) for name, part in zip(names, parts, strict=True)}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "config.json": b"{}"}
    files["README.md"] = b"---\nlicense: mit\n---\n"
    local_hub.storage.add_files("models", "org/big", files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    total = sum(len(content) for content in files.values())
    local_hub.faults.append(Fault(pattern="safetensors$", status=503, headers={"Retry-After": "0"}))
    (there,) = hf_sane.scan("org/big", budget="10%").scans
    (here,) = hf_sane.scan(tmp_path, budget="10%").scans
    assert [x.row() for x in there.tensors] == [x.row() for x in here.tensors]
    assert there.findings == here.findings == ()
    assert there.bytes_read == here.bytes_read
    answers = [x for x in local_hub.log if x.path.endswith(".safetensors") and x.status == HTTPStatus.PARTIAL_CONTENT]
    sent = sum(answer.sent for answer in answers)
    assert there.bytes_downloaded == sent < 0.2 * total
    assert here.bytes_downloaded is None


def downloads(hub, start=0):
    """Bytes of weights that the Hub sent, answer by answer."""
    return [x.sent for x in hub.log[start:] if x.path.endswith(".safetensors") and x.status < 300 and x.sent]


def test_an_interrupted_scan_goes_on_with_what_it_has_read(local_hub, monkeypatch, hf_sane_command):
    content = save(network(size=3000))
    local_hub.storage.add_files("models", "org/big", {"model.safetensors": content})
    (whole,) = hf_sane.scan("org/big", budget="40%").scans
    add, count = Moments.add, iter(range(1000))

    def interrupt(self, values, part):
        if next(count) == 20:
            raise KeyboardInterrupt
        add(self, values, part)

    start = len(local_hub.log)
    with monkeypatch.context() as patch:
        patch.setattr(Moments, "add", interrupt)
        told = hf_sane_command("scan", "org/big", "--budget", "40%", exit_code=130)
    assert re.search(r"bytes read from the Hub are kept; to continue: .*scan org/big --budget 40%", told.stderr)
    before = sum(downloads(local_hub, start))
    assert before > 0
    start = len(local_hub.log)
    (again,) = hf_sane.scan("org/big", budget="40%").scans
    assert [x.row() for x in again.tensors] == [x.row() for x in whole.tensors]
    assert sum(downloads(local_hub, start)) + before == whole.bytes_downloaded
    assert kept_bytes() == 0


def test_what_nobody_went_on_with_for_a_week_is_removed_and_what_is_newer_stays(local_hub):
    local_hub.storage.add_files("models", "org/big", {"model.safetensors": save(network())})
    old, new = KeptRanges("old"), KeptRanges("new")
    for kept in (old, new):
        kept.keep(0, 4, b"kept", 100)
    (part,) = old.folder.iterdir()
    os.utime(part, (1, 1))
    hf_sane.scan("org/big")
    assert old.find(0, 4) is None
    assert new.find(0, 4) == (b"kept", 100)
    new.forget()


def test_a_damaged_header_on_the_hub_leaves_nothing_behind(local_hub):
    local_hub.storage.add_files(
        "models", "org/damaged", {"model.safetensors": (8).to_bytes(8, "little") + b"[[[[[[[["}
    )
    (scan,) = hf_sane.scan("org/damaged").scans
    assert [x.rule for x in scan.findings] == ["unreadable"]
    assert kept_bytes() == 0


def test_a_hub_that_fails_for_good_leaves_what_was_read(local_hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    content = save(network(size=3000))
    local_hub.storage.add_files("models", "org/big", {"model.safetensors": content})
    patience, calls = Moments.add, iter(range(1000))

    def fail(self, values, part):
        if next(calls) == 3:
            local_hub.faults.append(Fault(pattern="safetensors$", status=503, times=1000))
        patience(self, values, part)

    with monkeypatch.context() as patch:
        patch.setattr(Moments, "add", fail)
        with pytest.raises(ConnectionError, match="bytes read from the Hub are kept; to continue, repeat"):
            hf_sane.scan("org/big", budget="40%")
    local_hub.faults.clear()
    assert hf_sane.scan("org/big", budget="40%").scans[0].findings


def test_parts_are_fetched_in_parallel(local_hub):
    """The Hub answers no request for a part before another has arrived."""
    content = bytes(range(256)) * 4096
    local_hub.storage.add_files("models", "org/parts", {"model.safetensors": content})
    file = HubFile("org/parts", "model.safetensors")
    assert file.read(0, 8) == content[:8]
    local_hub.meeting = threading.Barrier(2)
    parts = [(start, start + 100) for start in range(0, len(content), 4 * JOINED_GAP)]
    assert len(parts) == 4
    assert list(file.read_ranges(parts)) == [content[start:stop] for start, stop in parts]


def test_a_scan_of_everything_asks_for_pieces_and_goes_on_within_a_tensor(local_hub, monkeypatch):
    """Requests have a largest size, and what came before the Hub failed is not asked for again."""
    monkeypatch.setattr(_byte_ranges, "MAX_REQUEST_BYTES", 2**14)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    tensors = {"one.weight": torch.randn(256, 512), "other.weight": torch.randn(3, 7)}
    content = save(tensors)
    local_hub.storage.add_files("models", "org/whole", {"model.safetensors": content})
    (whole,) = hf_sane.scan("org/whole", budget="100%").scans
    pieces = downloads(local_hub)
    assert sum(pieces) == whole.bytes_downloaded >= len(content)
    assert max(pieces[1:]) <= 2**14  # the first is the header's
    assert len(pieces) > 256 * 512 * 4 // 2**14
    keep, count = KeptRanges.keep, iter(range(1000))

    def fail(self, *part):
        keep(self, *part)
        if next(count) == 20:
            local_hub.faults.append(Fault(pattern="safetensors$", status=503, times=1000))

    start = len(local_hub.log)
    with monkeypatch.context() as patch:
        patch.setattr(KeptRanges, "keep", fail)
        with pytest.raises(ConnectionError, match="bytes read from the Hub are kept; to continue, repeat"):
            hf_sane.scan("org/whole", budget="100%")
    before = sum(downloads(local_hub, start))
    assert before >= 20 * 2**13
    local_hub.faults.clear()
    start = len(local_hub.log)
    (again,) = hf_sane.scan("org/whole", budget="100%").scans
    assert [x.row() for x in again.tensors] == [x.row() for x in whole.tensors]
    assert sum(downloads(local_hub, start)) + before == whole.bytes_downloaded


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_connection_that_breaks_off_is_made_again(has_ranges, local_hub, monkeypatch):
    """The client itself cannot go on within an answer."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    tensors = network()
    local_hub.storage.add_files("models", "org/net", {"model.safetensors": save(tensors)})
    local_hub.has_ranges = has_ranges
    local_hub.faults.append(Fault(pattern="safetensors$", cut_after=1000, times=2))
    (scan,) = hf_sane.scan("org/net", budget="100%").scans
    assert {x.name: x.row() for x in scan.tensors} == {n: tensor_statistics(n, t).row() for n, t in tensors.items()}
    assert 0 < sum(waited) <= 3
    assert local_hub.faults[0].times == 0
    local_hub.faults[:] = [Fault(pattern="safetensors$", cut_after=1000, times=1000)]
    with pytest.raises(ConnectionError, match=r"broke off 4 times while org/net/model.safetensors was read; check it"):
        hf_sane.scan("org/net", budget="100%")


def test_refusals_of_the_hub_have_a_remedy_and_faults_of_it_end_soon(local_hub, monkeypatch, hf_sane_command):
    local_hub.storage.add_files("models", "org/net", {"model.safetensors": save(network())})
    local_hub.storage.add_files("models", "org/good", {"model.safetensors": save(network())})
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for status, told in (
        (404, "404 Not Found to GET .*; check the name and the revision"),
        (403, "403 Forbidden to GET .*; log in"),
    ):
        local_hub.faults[:] = [Fault(pattern="org/net/.*safetensors$", status=status, times=1000)]
        good, refused = hf_sane.scan("org/good", "org/net").scans
        assert good.num_weights
        assert re.search(told, refused.findings[0].message)
        assert re.search(told, hf_sane_command("scan", "org/net", exit_code=2).stderr)
    assert not waited
    local_hub.faults[:] = [Fault(pattern="org/net/.*safetensors$", status=500, times=1000)]
    with pytest.raises(ConnectionError, match="500 Internal Server Error"):
        hf_sane.scan("org/net")
    assert sum(waited) <= 7


def test_a_server_without_ranges_is_read_once_or_refused(local_hub):
    local_hub.has_ranges = False
    content = save(network())
    local_hub.storage.add_files("models", "org/plain", {"model.safetensors": content})
    (scan,) = hf_sane.scan("org/plain", budget="100%").scans
    assert downloads(local_hub) == [len(content)]
    assert scan.bytes_downloaded == len(content)
    assert scan.num_weights == sum(x.numel() for x in network().values())
    start = len(local_hub.log)
    (refused,) = hf_sane.scan("org/plain", budget="10%").scans
    (found,) = refused.findings
    assert (found.rule, found.severity) == ("unreadable", "error")
    assert f"got the whole file of {len(content):,} bytes" in found.message
    assert "--budget 100%" in found.remedy
    assert kept_bytes() == 0
    assert hf_sane.info("org/plain").to_dict()["total"]["weights"] == scan.num_weights
    assert len(downloads(local_hub, start)) == 2  # one that was broken off, and one


def test_a_repository_that_is_missing_does_not_stop_the_others(local_hub):
    local_hub.storage.add_files("models", "org/there", {"model.safetensors": save(network())})
    there, missing = hf_sane.scan("org/there", "org/missing").scans
    assert there.num_weights > 0
    assert [(x.rule, x.severity) for x in missing.findings] == [("unreadable", "error")]
    assert "org/missing" in missing.findings[0].message


@pytest.mark.parametrize(
    ("name", "told"),
    [("llama.gguf", "expected a GGUF file of version 2 or 3, got version 0"), ("model.h5", "model.h5, which")],
)
def test_a_repository_of_which_nothing_was_read_says_so(name, told, local_hub):
    local_hub.storage.add_files(
        "models", "org/other", {name: b"GGUF" + bytes(40), "README.md": b"---\nlicense: mit\n---\n"}
    )
    (scan,) = hf_sane.scan("org/other").scans
    assert [(x.rule, x.severity) for x in scan.findings] == [("unreadable", "error")]
    assert told in scan.findings[0].message
    assert kept_bytes() == 0


def test_neighbours_are_asked_for_in_one_request():
    gap = JOINED_GAP
    assert list(joined([(0, 5), (5, 9), (9 + gap, 20 + gap), (21 + 2 * gap, 22 + 2 * gap)])) == [
        [(0, 5), (5, 9), (9 + gap, 20 + gap)],
        [(21 + 2 * gap, 22 + 2 * gap)],
    ]
    assert list(joined([])) == []
    most = MAX_REQUEST_BYTES
    assert list(joined([(0, 10), (10, most), (most, most + 1)])) == [[(0, 10), (10, most)], [(most, most + 1)]]
    assert split_range(3, 3) == [(3, 3)]
    assert split_range(3, 3 + most) == [(3, 3 + most)]
    assert split_range(3, 4 + 2 * most) == [(3, 3 + most), (3 + most, 3 + 2 * most), (3 + 2 * most, 4 + 2 * most)]


def test_what_lies_beside_the_weights_of_a_repository_is_told(local_hub):
    files = {
        "model.safetensors": save(
            network() | {name: torch.randn(40, 60) for name in ("lm_head.weight", "wte.weight")}
        ),
        "config.json": json.dumps(
            {"auto_map": {"AutoModel": "modeling_x.X"}, "text_config": {"tie_word_embeddings": True}}
        ).encode(),
        "modeling_x.py": b"raise SystemExit('planted')",
        "pytorch_model.bin": b"\x80\x04.",
    }
    local_hub.storage.add_files("models", "org/strange", files)
    (scan,) = hf_sane.scan("org/strange").scans
    assert [x.rule for x in scan.findings] == ["tied", "remote-code", "pickle", "licence"]
    assert set(scan.findings[0].tensors) == {"lm_head.weight", "wte.weight"}
    assert "modeling_x.py" in scan.findings[1].message
    assert "auto_map: AutoModel" in scan.findings[1].message


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with one of each."""
    folder = tmp_path / "mixed"
    (folder / "deep" / "one").mkdir(parents=True)
    save_file(network(), folder / "deep" / "one" / "model.safetensors")
    save_file(network() | {"layers.0.bias": torch.full((700,), torch.nan)}, folder / "broken.safetensors")
    (folder / "cut.safetensors").write_bytes(save(network())[:1000])
    (folder / "empty").mkdir()
    (folder / "empty.bin").write_bytes(b"")
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    save_file({"a": torch.empty(0, 5)}, folder / "nothing.safetensors")
    (folder / "deep" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "garbage.onnx").write_bytes(b"\x08\x07\x12" + bytes(range(200)))
    (folder / "photos.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "dir.safetensors").mkdir()
    (folder / "dir.safetensors" / "readme").write_text("nothing")
    (folder / "long.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "llama.gguf").write_bytes(b"GGUF" + bytes(40))
    (folder / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    (folder / "notes.txt").write_text("nothing")
    (folder / "page.bin").write_text("<!doctype html><html></html>")
    torch.save(network(), folder / "plain.pt")
    (folder / "runs.pkl").write_bytes(pickle.dumps(Planted()))
    torch.save({"w": torch.ones(2), "x": Planted()}, folder / "trap.pt")
    return folder


def test_every_file_of_a_folder_has_a_line_and_none_stops_the_others(mixed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = hf_sane.scan(mixed)
    found = {Path(scan.source).name: scan for scan in result.scans}
    rules = {name: [(x.rule, x.severity) for x in scan.findings] for name, scan in found.items()}
    assert rules == {
        "broken.safetensors": [("nan", "error")],
        "cut.safetensors": [("unreadable", "error")],
        "one": [("licence", "note")],
        "empty": [],
        "up": [],
        "empty.bin": [("unreadable", "error")],
        "gone.safetensors": [("unreadable", "error")],
        "garbage.onnx": [("unreadable", "error")],
        "long.safetensors": [("unreadable", "error")],
        "photos.zip": [("unreadable", "warning")],
        "pipe": [("unreadable", "warning")],
        "readme": [],
        "keras.h5": [("unreadable", "warning")],
        "llama.gguf": [("unreadable", "error")],
        "notes.txt": [],
        "loop.txt": [],
        "nothing.safetensors": [("unreadable", "error")],
        "page.bin": [("unreadable", "error")],
        "plain.pt": [("pickle", "warning")],
        "runs.pkl": [("pickle", "error")],
        "trap.pt": [("pickle", "error")],
    }
    assert "opening it would run" in found["runs.pkl"].findings[0].message
    assert "got a link to a file that is missing" in found["gone.safetensors"].findings[0].message
    assert found["loop.txt"].format == "no weights: a link to a file that is missing"
    nothing = "expected weights, got a safetensors file with only tensors without values"
    assert found["nothing.safetensors"].findings[0].message == nothing
    assert found["trap.pt"].format == "not read: a PyTorch file"
    assert found["keras.h5"].format == "not read: an HDF5 file (Keras)"
    assert found["empty"].format == "no weights: the folder is empty"
    assert found["notes.txt"].format == "no weights: a text"
    assert not (tmp_path / "planted_code_ran").exists()
    assert result.exit_code == 1
    for name in found:
        assert name in str(result)


def test_info_of_the_folder_has_a_line_for_each_too(mixed):
    result = hf_sane.info(mixed)
    found = {Path(path).name: facts for path, facts in result.checkpoints.items()}
    assert len(found) == len(result.checkpoints) == 20
    assert {name for name, facts in found.items() if "reason" not in facts} == {
        "broken.safetensors",
        "one",
        "plain.pt",
    }
    assert found["broken.safetensors"]["not_finite"] == {"layers.0.bias": 700}
    assert found["one"]["not_finite"] == {}
    assert result.exit_code == 1


def test_a_folder_that_may_not_be_read_does_not_stop_the_others(mixed, monkeypatch):
    """The owner of the machine may read everything, so the refusal is made."""
    listing = Path.iterdir

    def refuse(folder):
        if folder.name == "empty":
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = {Path(scan.source).name: scan for scan in hf_sane.scan(mixed).scans}
    assert found["plain.pt"].num_weights > 0
    assert "Permission denied" in found["empty"].findings[0].message


def test_without_picklescan_it_says_that_opcodes_were_not_scanned(mixed, monkeypatch):
    monkeypatch.setattr(_pickles, "find_spec", lambda name: None)
    (scan,) = hf_sane.scan(mixed / "plain.pt").scans
    (found,) = scan.findings
    assert found.severity == "warning"
    assert "picklescan is not installed" in found.message
    assert "hf_sane[scan]" in found.remedy


@pytest.mark.parametrize(
    ("fail_on", "expected"),
    [
        (["error"], 1),
        (["nan"], 1),
        (["untrained"], 0),
        (["never"], 0),
        (["note"], 1),
        (["std>0.5"], 1),
        (["std>100", "largest < 1e9"], 1),
        (["kurtosis>1000"], 1),
        (["alpha>0.1"], 1),
    ],
)
def test_the_exit_code_is_what_was_asked_for(fail_on, expected, tmp_path):
    save_file(network() | {"layers.0.bias": torch.full((700,), torch.nan)}, tmp_path / "x.safetensors")
    assert hf_sane.scan(tmp_path / "x.safetensors", fail_on=fail_on).exit_code == expected


def test_a_matrix_with_nan_is_scanned_but_has_no_spectrum(tmp_path):
    tensors = {"first.weight": torch.randn(70, 60), "other.weight": torch.randn(60, 70)}
    tensors["other.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "x.safetensors")
    result = hf_sane.scan(tmp_path / "x.safetensors")
    assert result.scans[0].skipped == {"other.weight": "no spectrum: NaN or infinite weights"}
    assert "\nskipped\n  other.weight: no spectrum: NaN or infinite weights\n" in str(result)
    assert "  - skipped: other.weight: no spectrum: NaN" in result.to_markdown()


def test_what_was_not_measured_does_not_pass(tmp_path, hf_sane_command):
    save_file(network(), tmp_path / "x.safetensors")
    told = hf_sane_command("scan", tmp_path / "x.safetensors", "--budget", "1%", "--fail-on", "alpha>1e6", exit_code=1)
    assert "alpha was not measured for layers.0.weight, layers.1.weight, layers.2.weight: not read in full; use " in (
        told.stdout.replace("\n", " ")
    )
    assert "layers.2.weight: no spectrum: not read in full; use --budget 100%" in told.stdout
    assert hf_sane.scan(tmp_path / "x.safetensors", budget="100%", fail_on=["alpha>1e6"]).exit_code == 0
    save_file({"bias": torch.ones(3)}, tmp_path / "x.safetensors")
    (failure,) = hf_sane.scan(tmp_path / "x.safetensors", fail_on=["alpha>1e6"]).failures
    assert failure.endswith("alpha was not measured: no matrix has 50 rows and columns")


def test_a_value_that_is_missing_fails_every_condition_with_its_reason(tmp_path):
    tensors = network(size=90) | {"layers.0.bias": torch.full((90,), torch.nan), "layers.1.bias": torch.ones(90)}
    tensors["layers.1.weight"] = tensors["layers.1.weight"].index_fill(0, torch.tensor([3]), torch.nan)
    tensors["layers.2.weight"] = torch.outer(torch.randn(90), torch.randn(600))
    tensors["layers.3.weight"] = torch.randn(2049, 2049, dtype=torch.float16)
    save_file(tensors, tmp_path / "x.safetensors")

    def failures(wanted: str, **options: object) -> list[str]:
        found = hf_sane.scan(tmp_path / "x.safetensors", fail_on=[wanted], **options).failures
        return [text.partition(" was not measured for ")[2] for text in found]

    for measure in ("std", "largest", "kurtosis"):
        assert failures(f"{measure}>1e9") == ["layers.0.bias: no value that was read is finite"]
    assert sorted(failures("alpha>1e9")) == [
        "layers.1.weight: NaN or infinite weights",
        "layers.2.weight: 1 eigenvalues are too few for a power law, a bulk or a phase (min_values: 50)",
        "layers.3.weight: more than 2,048 rows and columns; see hf-sane analyze",
    ]
    (told,) = failures("alpha>1e9", spectra=False)
    assert told.endswith("layers.2.weight and 1 more: spectra were not computed (--no-spectra)")
    (scan,) = hf_sane.scan(tmp_path / "x.safetensors").scans
    assert scan.skipped["layers.3.weight"] == "no spectrum: more than 2,048 rows and columns; see hf-sane analyze"


def test_every_matrix_that_was_read_has_a_spectrum_and_one_is_in_memory_at_a_time(tmp_path):
    """The last of many has rank 1."""
    held = weakref.WeakSet()
    tensors = network(size=90) | {"layers.9.weight": torch.outer(torch.randn(60), torch.randn(70))}
    save_file(tensors, tmp_path / "x.safetensors")
    (scan,) = hf_sane.scan(tmp_path / "x.safetensors").scans
    assert {layer.name for layer in scan.spectra.layers} == {name for name in tensors if "weight" in name}
    assert [x.tensors for x in scan.findings if x.rule == "rank"] == [("layers.9.weight",)]

    def arrive():
        for name, tensor in tensors.items():
            copy = tensor.clone()
            held.add(copy)
            yield tensor_statistics(name, tensor), copy if tensor.ndim > 1 else None
            del copy
            assert len(held) <= 1

    arrivals = Arrivals([name for name in tensors if "weight" in name], arrive())
    report = compute_spectra(arrivals, "x", seed=0)
    assert [layer.row() for layer in report.layers] == [layer.row() for layer in scan.spectra.layers]
    assert [x.name for x in arrivals.finish()] == list(tensors)


def test_huge_values_have_readable_cells_and_no_wrong_spectrum(tmp_path, recwarn):
    tensors = {"a.weight": torch.randn(70, 60, dtype=torch.float64) * 1e200}
    save_file(tensors | {"b.weight": torch.randn(70, 60) * 1e30}, tmp_path / "x.safetensors")
    result = hf_sane.scan(tmp_path / "x.safetensors", fail_on=["std>1"])
    assert not recwarn.list
    assert result.exit_code == 1
    assert max(map(len, re.findall(r"[\d,.]+", str(result)))) < 12
    assert "a.weight: no spectrum: the largest weight is beyond 1e-140 to 1e+140" in str(result)
    assert [layer.name for layer in result.scans[0].spectra.layers] == ["b.weight"]
    assert not [x for x in result.scans[0].findings if x.rule == "rank"]


@pytest.mark.parametrize("spectra", [True, False])
def test_fixed_tables_of_positions_are_no_fault(spectra, tmp_path):
    """Equal sinusoids in encoder and decoder, as in Marian and Whisper, have a low rank and another scale."""
    places, steps = torch.arange(400.0)[:, None], torch.exp(-torch.arange(32) * 9.2 / 32)
    table = torch.cat([(places * steps).sin(), (places * steps).cos()], 1)
    rows, columns = torch.randn(10, 90, 3), torch.randn(10, 3, 80)
    tensors = {f"layers.{i}.weight": 0.01 * (torch.randn(90, 80) + rows[i] @ columns[i]) for i in range(10)}
    tensors |= {f"{side}.embed_positions.weight": table.clone() for side in ("encoder", "decoder")}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    assert hf_sane.scan(tmp_path / "x.safetensors", spectra=spectra).scans[0].findings == ()
    (scan,) = hf_sane.scan(tmp_path / "x.pt", spectra=spectra).scans
    assert [x.rule for x in scan.findings] == ["pickle"]
    save_file({name.replace("positions", "other"): x for name, x in tensors.items()}, tmp_path / "x.safetensors")
    (other,) = hf_sane.scan(tmp_path / "x.safetensors", spectra=spectra).scans
    assert {x.rule for x in other.findings} >= {"duplicate", "outlier"}


STRANGE = {
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:3]]),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negated": lambda x: torch.complex(x, x).conj().imag,
    "expanded": lambda x: x[:1].expand(60, 70),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
def test_one_strange_tensor_stops_nothing(kind, tmp_path):
    good = torch.randn(60, 70)
    strange = STRANGE[kind](good)
    torch.save({"good.weight": good, "strange.weight": strange}, tmp_path / "x.pt")
    result = hf_sane.scan(tmp_path / "x.pt", fail_on=["std>1e9"])
    (scan,) = result.scans
    is_plain = kind in ("conjugate", "negated", "expanded")
    assert [x.name for x in scan.tensors] == ["good.weight", *(["strange.weight"] if is_plain else [])]
    assert scan.tensors[0].row() == tensor_statistics("good.weight", good).row()
    assert [x.name for x in scan.tensors if x.name == "strange.weight"] or "strange.weight" in scan.skipped
    assert result.exit_code == (0 if is_plain else 1)
    if kind == "negated":
        assert scan.tensors[1].mean == pytest.approx(-float(good.double().mean()), abs=1e-9)


def test_what_was_not_read_passes_no_rule_or_condition(tmp_path, hf_sane_command):
    (tmp_path / "x.safetensors").write_bytes(save(network())[:1000])
    for wanted in ("nan", "untrained", "alpha>8", "std>1"):
        (failure,) = hf_sane.scan(tmp_path / "x.safetensors", fail_on=[wanted]).failures
        assert failure.endswith(f"nothing of it was read, so {wanted} is unknown")
    assert hf_sane.scan(tmp_path / "x.safetensors", fail_on=["never"]).exit_code == 0
    told = hf_sane_command("scan", tmp_path / "x.safetensors", "--fail-on", "", exit_code=2).stderr
    assert "expected --fail-on to name a rule" in told


def test_matrices_of_8_bits_have_no_alpha_and_do_not_pass(tmp_path):
    tensors = network(size=90)
    tensors["layers.1.weight"] = tensors["layers.1.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "x.safetensors")
    (failure,) = hf_sane.scan(tmp_path / "x.safetensors", fail_on=["alpha>1e6"]).failures
    assert failure.endswith("alpha was not measured for layers.1.weight: 8 bits or less")


@pytest.mark.parametrize("wanted", ["alpha>e", "std>1-2"])
def test_a_limit_that_is_no_number_is_refused(wanted, tmp_path):
    with pytest.raises(ValueError, match="expected a number in the condition of --fail-on"):
        hf_sane.scan(tmp_path / "missing", fail_on=[wanted])


@pytest.mark.parametrize("wanted", ["nam", "beta>1", "std>", "std=1", ""])
def test_what_cannot_fail_is_refused_before_the_work(wanted, tmp_path):
    with pytest.raises(ValueError, match="expected --fail-on to be nan, constant, .*, got"):
        hf_sane.scan(tmp_path / "missing", fail_on=[wanted])


def test_reports_are_written_and_hold_what_was_found(mixed, tmp_path, hf_sane_command):
    (mixed / "x](http:evil) *.safetensors").write_bytes(b"?" * 20)
    Path(os.fsdecode(os.fsencode(mixed) + b"/not\xffUTF-8\n.safetensors")).write_bytes(b"?" * 20)
    arguments = ("--output", tmp_path / "out", "--sarif", tmp_path / "findings.sarif", "--fail-on", "never")
    hf_sane_command("scan", mixed, *arguments, exit_code=0)
    assert (tmp_path / "findings.sarif").read_bytes() == (tmp_path / "out" / "report.sarif").read_bytes()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["scans"]) == 23
    sarif = json.loads((tmp_path / "out" / "report.sarif").read_text())
    # The schema of SchemaStore, as the npm package @microsoft/jest-sarif (MIT) ships it.
    schema = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text())
    assert list(Draft4Validator(schema).iter_errors(sarif)) == []
    assert list(Draft4Validator(schema).iter_errors(sarif | {"version": "2.0.0"}))
    results = sarif["runs"][0]["results"]
    uris = {x["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for x in results}
    assert not any(" " in uri for uri in uris)
    assert any(uri.endswith("/not%FFUTF-8%0A.safetensors") for uri in uris)
    assert len(results) == sum(len(scan["findings"]) for scan in report["scans"])
    assert {x["level"] for x in results} == {"error", "warning", "note"}
    assert {x["ruleId"] for x in results} == {x["id"] for x in sarif["runs"][0]["tool"]["driver"]["rules"]}
    card = (tmp_path / "out" / "report.md").read_text()
    assert card.count("\n- ") == 23
    assert r"x\](http:evil) \*.safetensors" in card
    assert "**error** (nan)" in card


def test_the_verb_ends_with_the_code_of_its_result(mixed, hf_sane_command):
    found = hf_sane_command("scan", mixed / "broken.safetensors", "--json", exit_code=1)
    parsed = json.loads(found.stdout)
    assert parsed["failures"] == [f"{mixed / 'broken.safetensors'}: {parsed['scans'][0]['findings'][0]['message']}"]
    hf_sane_command("scan", mixed / "broken.safetensors", "--fail-on", "untrained,rank", exit_code=0)


def test_a_sarif_file_replaces_only_an_earlier_one(tmp_path, hf_sane_command):
    save_file({"bias": torch.full((3,), torch.nan)}, tmp_path / "x.safetensors")
    for path in (place := tmp_path / "new" / "x.sarif", place):
        hf_sane_command("scan", tmp_path / "x.safetensors", "--sarif", path, exit_code=1)
    (found,) = json.loads(place.read_text())["runs"][0]["results"]
    assert (found["ruleId"], found["level"]) == ("nan", "error")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is not a SARIF report"):
        hf_sane.scan(tmp_path / "x.safetensors", sarif=tmp_path / "notes.json")
    assert (tmp_path / "notes.json").read_text() == "{}"
    with pytest.raises(ValueError, match="outside of the folder of --output"):
        hf_sane.scan(tmp_path / "x.safetensors", output=tmp_path / "out", sarif=tmp_path / "out" / "x.sarif")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (["x"], {"budget": 1}, "expected a budget such as '1%' or '64MB', got 1; pass it as a text"),
        (["x"], {"fail_on": [3]}, "expected fail_on to be names of rules, .*, got 3"),
        ([{"a": torch.ones(3)}], {}, "expected files, folders or Hub repo ids, got dict; save its tensors first"),
        ([["x", torch.nn.Linear(2, 2)]], {}, "got Linear; save its tensors first"),
    ],
)
def test_arguments_of_another_type_are_refused_in_a_sentence(arguments, options, told):
    with pytest.raises(TypeError, match=told):
        hf_sane.scan(*arguments, **options)


def test_nothing_at_all_is_refused_in_a_sentence():
    for nothing in ((), ([],)):
        with pytest.raises(ValueError, match="expected at least one checkpoint to scan, got none; name a file"):
            hf_sane.scan(*nothing)


def test_errors_are_json_too(tmp_path, hf_sane_command):
    save_file({"bias": torch.ones(3)}, tmp_path / "x.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".git").mkdir()
    names = [tmp_path / "x.safetensors", tmp_path / "empty", tmp_path / "hidden", tmp_path / "missing.safetensors"]
    found = json.loads(hf_sane_command("scan", *names, "--json", exit_code=1).stdout)
    assert [scan["source"] for scan in found["scans"]] == [str(name) for name in names]
    assert [[x["rule"] for x in scan["findings"]] for scan in found["scans"]] == [[], *[["unreadable"]] * 3]
    assert [text.partition(": ")[0] for text in found["failures"]] == [str(name) for name in names[1:]]
    for name in names[1:]:
        alone = json.loads(hf_sane_command("scan", name, "--json", exit_code=2).stderr)
        assert alone["exit_code"] == 2
        assert str(name) in alone["error"]


def test_frames_have_a_row_per_tensor(tmp_path):
    for name in ("a", "b"):
        save_file(network(), tmp_path / f"{name}.safetensors")
    frame = hf_sane.scan([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).to_frame()
    assert len(frame) == 8
    assert np.isfinite(frame["std"]).all()
    assert set(frame["source"]) == {str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")}


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir()], ids=["nothing", "an empty folder"])
def test_nothing_to_scan_is_an_error(make, tmp_path):
    make(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match="no such file or folder|got the empty folder"):
        hf_sane.scan(tmp_path / "folder")


def test_the_workflow_file_of_the_guide_scans_a_folder_of_checkpoints(tmp_path, monkeypatch, hf_sane_command):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "scan.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1])
    steps = workflow["jobs"]["weights"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("run", "").startswith("hf-sane")]
    (tmp_path / "checkpoints").mkdir()
    save_file(network(), tmp_path / "checkpoints" / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    hf_sane_command(*shlex.split(command)[1:])
    (report,) = [step["with"]["sarif_file"] for step in steps if "sarif_file" in step.get("with", {})]
    assert json.loads(Path(report).read_text())["version"] == "2.1.0"
