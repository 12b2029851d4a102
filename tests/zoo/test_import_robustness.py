"""One bad file never stops an import, each reason is said once, and checkpoints of one run stay in one split."""

import json
import os
import struct
from collections import Counter

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save, save_file

from hf_sane.records._outputs import begin_folder, output_folder
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.importing._importing import import_zoo, left_out
from hf_sane.zoo.importing._settings import ImportSettings


def weights(seed):
    return {"0.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))}


def header(text):
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


# File of a model folder that has good weights otherwise, or its weights; what the reason must say.
BAD = {
    "yaml": ("README.md", b"---\nlicense: [mit\n---\nText\n", "YAML"),
    "yaml_tag": ("README.md", b"---\nlicense: !!python/object/apply:os.system ['true']\n---\n", "YAML"),
    "yaml_list": ("README.md", b"---\n- 1\n- 2\n---\n", "model card"),
    "latin": ("README.md", b"---\nlicense: \xff\n---\n", "model card"),
    "huge_card": ("README.md", b"x" * 2_000_000, "at most 1,048,576 bytes"),
    "deep": ("config.json", b"[" * 100_000, "config.json"),
    "listed": ("config.json", b"[1, 2]", "config.json"),
    "utf16": ("config.json", '{"a": 1}'.encode("utf-16"), "config.json"),
    "wrong_own": ("config.json", b'{"model_type": "sane_cnn", "conv_channels": "x"}', "conv_channels"),
    "negative": (
        "model.safetensors",
        header(json.dumps({"w": {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, 0]}})),
        "shape",
    ),
    "deep_header": ("model.safetensors", header("[" * 100_000), "maximum recursion depth"),
    "empty": ("model.safetensors", b"", "it is an empty file"),
    "claims": ("model.safetensors", struct.pack("<Q", 2**63), "model.safetensors"),
}


@pytest.fixture
def folder(tmp_path):
    """Twelve good model folders, and one for each entry of `BAD`."""
    root = tmp_path / "models"
    for index in range(12):
        (root / f"good_{index:02}").mkdir(parents=True)
        save_file(weights(index), root / f"good_{index:02}" / "model.safetensors")
    for name, (file, content, _) in BAD.items():
        (root / name).mkdir()
        save_file(weights(hash(name) % 1000), root / name / "model.safetensors")
        (root / name / file).write_bytes(content)
    return root


def test_one_bad_folder_does_not_stop_the_others(folder, tmp_path):
    os.symlink("nowhere.safetensors", folder / "good_00" / "linked.safetensors.old")
    (folder / "broken").mkdir()
    os.symlink("nowhere", folder / "broken" / "model.safetensors")
    (folder / "broken" / "loop.safetensors").symlink_to(folder / "broken" / "loop.safetensors")
    (folder / "folder.safetensors").mkdir()
    result = import_zoo(ImportSettings(folder=str(folder), token_dim=4), tmp_path / "zoo")
    became = {entry.run_id: entry for entry in result.entries}
    assert sorted(name for name, entry in became.items() if entry.status == "taken") == [
        f"good_{index:02}" for index in range(12)
    ]
    for name, (_, _, said) in BAD.items():
        assert became[name].status == "skipped", name
        assert said in became[name].reason, (name, became[name].reason)
        assert len(became[name].reason) <= 500
        assert became[name].reason.isprintable()
    assert "a link to a file that does not exist" in became["broken"].reason
    assert len(Zoo.load(tmp_path / "zoo")) == 12


def test_one_bad_repository_does_not_stop_the_others(local_hub, tmp_path):
    names = []
    for index in range(3):
        local_hub.storage.add_files("models", f"org/good-{index}", {"model.safetensors": save(weights(index))})
        names.append(f"org/good-{index}")
    for name, (file, content, _) in BAD.items():
        files = {"model.safetensors": save(weights(50)), file: content}
        local_hub.storage.add_files("models", f"org/{name}", files)
        names.append(f"org/{name}")
    result = import_zoo(
        ImportSettings(repos=names, token_dim=4), tmp_path / "zoo", api=HfApi(endpoint=local_hub.address)
    )
    became = {entry.run_id: entry.status for entry in result.entries}
    assert [name for name, status in became.items() if name.startswith("org/good") and status != "taken"] == []
    assert became.keys() == set(names)
    assert {became[f"org/{name}"] for name in ("negative", "deep_header", "deep", "empty")} == {"skipped"}


def test_outputs_that_are_unfinished_or_changed_are_skipped(tmp_path):
    root = tmp_path / "models"
    for index in range(5):
        with output_folder(root / f"run_{index}", "soup") as partial:
            save_file(weights(index), partial / "model.safetensors")
    save_file(weights(9), root / "run_3" / "model.safetensors")
    begin_folder(root / "run_4", "soup")
    result = import_zoo(ImportSettings(folder=str(root), token_dim=4), tmp_path / "zoo")
    became = {entry.run_id: entry for entry in result.entries}
    assert [entry.status for entry in became.values()] == ["taken"] * 3 + ["skipped"] * 2
    assert "expected the content that hf_sane_manifest.json lists" in became["run_3"].reason
    assert "got an interrupted soup" in became["run_4"].reason


def test_a_name_that_is_no_unicode_is_skipped(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(weights(0), folder / "good.safetensors")
    (tmp_path / "copy.safetensors").write_bytes((folder / "good.safetensors").read_bytes())
    os.rename(os.fsencode(tmp_path / "copy.safetensors"), os.fsencode(folder) + b"/bad_\xff.safetensors")
    arguments = ImportSettings(folder=str(folder), token_dim=4, split_shares=[1, 0, 0])
    result = import_zoo(arguments, tmp_path / "zoo")
    assert Counter(entry.status for entry in result.entries) == {"taken": 1, "skipped": 1}
    assert "not valid Unicode" in next(entry.reason for entry in result.entries if entry.status == "skipped")


def test_damaged_files_share_a_reason(tmp_path):
    save_file(weights(0), tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"<html>")
        (tmp_path / name.replace("pt", "safetensors")).write_bytes(content[:-4])
    settings = ImportSettings(folder=tmp_path, token_dim=4, split_shares=[1, 0, 0], allow_pickle=True)
    found = left_out(import_zoo(settings, tmp_path / "zoo").entries)
    assert list(found.values()) == [["a.pt", "b.pt"], ["a.safetensors", "b.safetensors"]]


def test_the_same_reason_is_said_once_with_a_count(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from hf_sane.cli.app import app

    folder = tmp_path / "models"
    folder.mkdir()
    save_file(weights(0), folder / "good.safetensors")
    for index in range(60):
        torch.save(weights(index), folder / f"epoch_{index}.pt")
    arguments = ["zoo", "import", "--folder", str(folder), "--token-dim", "4"]
    shown = CliRunner().invoke(app, [*arguments, "--split-shares", "1,0,0", "-o", str(tmp_path / "zoo")]).stdout
    assert shown.count("which can run code when they are opened") == 1
    assert "skipped: 60, it holds only pickles" in shown
    assert "and 55 more" in shown
    assert shown.count(".pt") == 5
    (folder / "good.safetensors").unlink()
    refused = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert (
        "none of 60 networks could be imported (epoch_0.pt, epoch_1.pt, epoch_10.pt and 57 more: it holds only pickles"
        in (refused.stderr)
    )
    assert refused.stderr.count("which can run code") == 1
    assert not (tmp_path / "other").exists() or not any((tmp_path / "other").glob("*"))


def runs(root, layout):
    """Four runs of three checkpoints; returns the run of each network."""
    for run in range(4):
        for epoch in range(3):
            path = root / layout.format(run=run, epoch=epoch)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights(10 * run + epoch), path)


def homes(zoo):
    """Run to the splits that hold its checkpoints; the run is the digit behind `run_`."""
    found = {}
    for name, split in zoo.splits.items():
        for run_id in split.run_ids:
            found.setdefault(run_id.partition("run_")[2][0], set()).add(name)
    return found


LAYOUTS = ["run_{run}/epoch_{epoch}.safetensors", "run_{run}/checkpoint-{epoch}/model.safetensors"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "deep/run_{run}/weights/{epoch}.safetensors"])
@pytest.mark.parametrize("seed", range(3))
def test_checkpoints_of_one_run_are_in_one_split(layout, seed, tmp_path, caplog):
    runs(tmp_path / "runs", layout)
    result = import_zoo(ImportSettings(folder=str(tmp_path / "runs"), token_dim=4, seed=seed), tmp_path / "zoo")
    found = homes(result.zoo)
    assert sorted(found) == list("0123")
    assert {len(splits) for splits in found.values()} == {1}
    assert all(len(split) for split in result.zoo.splits.values())
    assert "in several splits" not in caplog.text
    assert result.zoo.facts.data["parted"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_that_parts_a_run_is_warned_of(layout, tmp_path, caplog):
    runs(tmp_path / "runs", layout)
    arguments = ImportSettings(folder=str(tmp_path / "runs"), token_dim=4, group_by="network")
    result = import_zoo(arguments, tmp_path / "zoo")
    parted = sorted(run for run, splits in homes(result.zoo).items() if len(splits) > 1)
    assert parted
    assert "networks of one folder or repository are in several splits, grouped by network" in caplog.text
    assert f"run_{parted[0]}" in caplog.text
    assert result.zoo.facts.data["parted"] == len(parted)
    assert f"networks of {len(parted)} folders" in (tmp_path / "zoo" / "README.md").read_text()


def test_files_beside_each_other_in_the_folder_itself_are_one_group(tmp_path):
    runs(tmp_path / "runs", "run_{run}_{epoch}.safetensors")
    with pytest.raises(ValueError, match=r"groups by repository .* got 1 of 12 networks.*set group_by network"):
        import_zoo(ImportSettings(folder=str(tmp_path / "runs"), token_dim=4), tmp_path / "zoo")


def test_model_folders_beside_each_other_are_repositories(tmp_path):
    runs(tmp_path / "runs", "author_{run}/model_{epoch}/model.safetensors")
    result = import_zoo(ImportSettings(folder=str(tmp_path / "runs"), token_dim=4), tmp_path / "zoo")
    assert [len(split) for split in result.zoo.splits.values()] == [8, 2, 2]
    assert result.zoo.facts.data["parted"] == 0
