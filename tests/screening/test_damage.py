"""Damaged files and odd tensors: one finding each, and the rest is scanned."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

import hf_sane
from hf_sane.tokenization._formats import PICKLE, TEXT, UNKNOWN, file_format

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


class Planted:
    def __reduce__(self):
        return (eval, ("1",))


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(600.0).reshape(30, 20), "a.bias": torch.zeros(30)}


def member(path: Path, name: str) -> int:
    """Where the content of a member of an archive begins, roughly."""
    with zipfile.ZipFile(path) as archive:
        return next(x.header_offset for x in archive.infolist() if x.filename.endswith(name)) + 300


def flipped(path: Path, name: str) -> bytes:
    content, place = bytearray(path.read_bytes()), member(path, name)
    content[place : place + 8] = bytes(255 ^ x for x in content[place : place + 8])
    return bytes(content)


def zip_file(folder: Path) -> Path:
    torch.save(weights(), folder / "made.zip")
    return folder / "made.zip"


def legacy(folder: Path) -> bytes:
    torch.save(weights(), folder / "made.old", _use_new_zipfile_serialization=False)
    return (folder / "made.old").read_bytes()


DAMAGE = {
    "truncated": lambda folder: zip_file(folder).read_bytes()[:1500],
    "no central directory": lambda folder: zip_file(folder).read_bytes().partition(b"PK\x01\x02")[0],
    "values flipped": lambda folder: flipped(zip_file(folder), "data/0"),
    "pickle flipped": lambda folder: flipped(zip_file(folder), "data.pkl"),
    "old and truncated": lambda folder: legacy(folder)[:-500],
    "old and flipped": lambda folder: legacy(folder).replace(b"collections", b"\x86ollections", 1),
    "a web page": lambda folder: b"<!doctype html><html></html>",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_one_error_and_does_not_stop_the_others(kind, tmp_path):
    (folder := tmp_path / "folder").mkdir()
    (folder / "bad.pt").write_bytes(DAMAGE[kind](tmp_path))
    torch.save(weights(), folder / "good.pt")
    bad, good = hf_sane.scan(folder, fail_on=["unreadable"]).scans
    assert [(x.rule, x.severity) for x in bad.findings] == [("unreadable", "error")]
    assert bad.num_weights == 0
    assert good.num_weights == 630


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_next_to_good_weights_fails_by_default(kind, tmp_path, hf_sane_command):
    (folder := tmp_path / "folder" / "below").mkdir(parents=True)
    save_file(weights(), folder.parent / "model.safetensors")
    (folder / "optimizer.pt").write_bytes(DAMAGE[kind](tmp_path))
    result = hf_sane.scan(folder.parent)
    (found,) = [x for x in result.scans[0].findings if x.severity == "error"]
    assert found.rule == "damaged"
    assert found.message.startswith("below/optimizer.pt: expected ")
    assert result.exit_code == 1
    assert result.scans[0].num_weights == 630
    assert hf_sane.scan(folder.parent, fail_on=["damaged"]).exit_code == 1
    assert hf_sane.scan(folder.parent, fail_on=["nan"]).exit_code == 0


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_recognised_and_their_opcodes_are_scanned(protocol, tmp_path):
    for name in ("x.pkl", "x.bin", "unnamed"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": Planted()}, protocol=protocol))
        assert file_format(tmp_path / name) == PICKLE
        (scan,) = hf_sane.scan(tmp_path / name).scans
        assert (scan.findings[0].rule, scan.findings[0].severity) == ("pickle", "error")
        assert scan.findings[0].message.endswith(("builtins.eval", "__builtin__.eval"))


@pytest.mark.parametrize("content", [b"cat\ndog\n", b"N. B.", b"Values are\n1 2\n.", b"(a) is first, (b) is second."])
def test_texts_are_no_pickles(content, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    assert file_format(tmp_path / "x.txt") in (TEXT, UNKNOWN)


def test_a_pickle_whose_opcodes_confuse_the_scanner_is_an_error(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04cos\nsystem\n\x93.")  # STACK_GLOBAL without names
    result = hf_sane.scan(tmp_path)
    assert result.exit_code == 1


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_tensors_without_plain_values_are_skipped_with_a_reason(tmp_path):
    odd = {
        "none": torch.empty(0),
        "rows": torch.empty(0, 5),
        "sparse": torch.eye(4).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    }
    torch.save(weights() | odd, tmp_path / "odd.pt")
    (scan,) = hf_sane.scan(tmp_path / "odd.pt").scans
    assert scan.skipped.keys() >= odd.keys()
    assert "sparse_coo" in scan.skipped["sparse"]
    assert "qint8" in scan.skipped["quantised"]
    assert scan.skipped["rows"] == "0x5: it has no values"
    assert scan.num_weights == 630
    save_file(weights() | {"rows": torch.empty(0, 5)}, tmp_path / "odd.safetensors")
    for budget in ("", "1%"):
        (scan,) = hf_sane.scan(tmp_path / "odd.safetensors", budget=budget).scans
        assert scan.skipped["rows"] == "0x5: it has no values"


@pytest.mark.parametrize(("name", "content"), [("x.safetensors", POINTER), ("x.bin", POINTER), ("x.safetensors", b"")])
def test_what_git_left_behind_is_an_error_everywhere(name, content, tmp_path):
    (folder := tmp_path / "many").mkdir()
    (folder / name).write_bytes(content)
    save_file(weights(), folder / "good.safetensors")
    save_file(weights(), folder / "better.safetensors")
    found = {Path(scan.source).name: scan for scan in hf_sane.scan(folder).scans}
    (alone,) = hf_sane.scan(folder / name).scans
    for scan in (found[name], alone):
        assert [(x.rule, x.severity) for x in scan.findings] == [("unreadable", "error")]
        assert "git lfs pull" in scan.findings[0].remedy
    (beside := tmp_path / "one").mkdir()
    (beside / name).write_bytes(content)
    save_file(weights(), beside / "model.safetensors")
    (scan,) = hf_sane.scan(beside).scans
    (lost,) = [x for x in scan.findings if x.severity == "error"]
    assert lost.rule == "damaged"
    assert "git lfs pull" in lost.remedy


def test_everything_next_to_the_weights_is_told(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    save_file(weights(), tmp_path / "other.safetensors")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "more.txt").write_text("nothing")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "above").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.bin").write_bytes(b"")
    torch.save({"a": Planted()}, tmp_path / "training_args.bin")
    torch.save({"a": torch.ones(3)}, tmp_path / "plain")
    result = hf_sane.scan(tmp_path)
    (scan,) = result.scans
    errors = [(x.rule, x.message.partition(":")[0]) for x in scan.findings if x.severity == "error"]
    assert errors == [("damaged", "gone.safetensors"), ("pickle", "training_args.bin"), ("damaged", "x.gguf")]
    assert scan.skipped["other.safetensors"] == (
        "next to the weights, not scanned: a safetensors file; pass it by its path"
    )
    assert scan.skipped["x.h5"].startswith("next to the weights, not scanned: an HDF5 file")
    assert scan.skipped["notes.txt"] == "no weights: a text"
    assert scan.skipped["pipe"] == "no weights: a folder, pipe or device, not a file"
    assert scan.skipped["above"] == "next to the weights, not scanned: a link to a folder"
    told = " ".join([*scan.skipped, *(x.message for x in scan.findings)])
    assert all(path.name in told for path in tmp_path.iterdir() if path.name not in ("model.safetensors", ".git"))
    (warning,) = [x for x in scan.findings if x.rule == "pickle" and x.severity == "warning"]
    assert warning.message.endswith("plain, training_args.bin")
    assert "other.safetensors: next to the weights, not scanned" in str(result)
    assert "more.txt, notes.txt: no weights: a text" in str(result)
    assert "other.safetensors" in result.to_markdown()


@pytest.mark.parametrize(
    ("name", "content", "severity"),
    [("config.json", "{broken", "error"), ("config.json", "[]", "error"), ("README.md", "---\n: [\n---\n", "warning")],
)
def test_a_damaged_card_or_configuration_does_not_stop_the_scan(name, content, severity, tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / name).write_text(content)
    (scan,) = hf_sane.scan(tmp_path).scans
    assert scan.num_weights == 630
    (found,) = [x for x in scan.findings if x.rule != "rank"]
    assert (found.rule, found.severity) == ("damaged", severity)
    assert found.message.startswith(f"{name}: expected ")


def test_a_damaged_configuration_on_the_hub_does_not_stop_the_scan(local_hub):
    local_hub.storage.add_files("models", "org/x", {"model.safetensors": save(weights()), "config.json": b"{broken"})
    (scan,) = hf_sane.scan("org/x").scans
    assert scan.num_weights == 630
    assert [x.rule for x in scan.findings] == ["damaged", "rank", "licence"]
    assert scan.skipped["config.json"] == "no weights, by its name"


def fused(kind: str) -> dict[str, torch.Tensor]:
    """Four experts in one tensor, of which the third is zero."""
    if kind == "MXFP4":
        codes = torch.arange(4 * 6 * 2 * 16).reshape(4, 6, 2, 16).to(torch.uint8)
        codes[2] = 0
        return {"mlp.experts.down_proj_blocks": codes, "mlp.experts.down_proj_scales": codes[..., 0].clone()}
    values = torch.randn(4, 40, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 1.5, 30)
    values[2] = 0
    return {kind: values}


@pytest.mark.parametrize(
    "kind", ["mlp.experts.gate_up_proj", "blk.0.ffn_up_exps.weight", "block_sparse_moe.output_linear.weight", "MXFP4"]
)
@pytest.mark.parametrize("budget", ["", "1%"])
def test_a_zero_expert_in_a_tensor_of_several_is_named(kind, budget, tmp_path):
    tensors = fused(kind)
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        (scan,) = hf_sane.scan(tmp_path / name, budget=budget).scans
        (found,) = [x for x in scan.findings if x.rule == "constant"]
        assert found.tensors == (f"{next(iter(tensors))}[2]",)


def archive(content: dict[str, object]) -> bytes:
    torch.save(content, stream := io.BytesIO())
    return stream.getvalue()


def test_pickles_of_a_repository_are_scanned_within_a_limit(local_hub, monkeypatch):
    files = {
        "model.safetensors": save(weights()),
        "training_args.bin": archive({"a": Planted()}),
        "below/optimizer.pt": archive({"a": torch.ones(3)})[:-50],
        "big.pt": archive({"a": Planted(), "w": torch.ones(2**16)}),
        "old.pkl": pickle.dumps({"a": bytes(2**17)}),
        "other.safetensors": save(weights()),
    }
    local_hub.storage.add_files("models", "org/mixed", files)
    monkeypatch.setattr("hf_sane.screening._beside.MAX_PICKLE_BYTES", 2**16)
    monkeypatch.setattr("hf_sane.screening._beside.READ_SIZE", 2**13)
    result = hf_sane.scan("org/mixed")
    (scan,) = result.scans
    errors = [(x.rule, x.message.partition(":")[0]) for x in scan.findings if x.severity == "error"]
    assert errors == [("damaged", "below/optimizer.pt"), ("pickle", "big.pt"), ("pickle", "training_args.bin")]
    assert scan.skipped.keys() == {"old.pkl", "other.safetensors"}
    assert scan.skipped["old.pkl"].startswith("next to the weights, not scanned: 131,")
    assert result.exit_code == 1
    sent = {name: sum(x.sent for x in local_hub.log if x.path.endswith(name) and x.sent) for name in files}
    assert 0 < sent["big.pt"] < 2**16 < len(files["big.pt"])
    assert sent["other.safetensors"] == 0
    assert scan.bytes_downloaded == sum(sent.values())
