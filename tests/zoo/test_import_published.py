"""Zoos as others publish them: folders of Ray Tune, archives of such, and the array of Unterthiner et al."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn

from hf_sane.records._errors import InvalidFileError
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.importing._arrays import LAYOUT, WEIGHTS, ArrayZoo
from hf_sane.zoo.importing._importing import ImportResult, import_zoo
from hf_sane.zoo.importing._settings import ImportSettings
from hf_sane.zoo.importing._trees import ArchiveTree, open_tree


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


RUNS, EPOCHS = 4, (0, 1, 5)


def write_run(folder: Path, run: int) -> None:
    """One run as Ray Tune and the model zoos write it, one line of results cut off and one repeated."""
    place = folder / f"NN_tune_trainable_{run:05d}_seed={run}"
    place.mkdir(parents=True)
    settings = {
        "seed": run,
        "optim::lr": 0.001 * (run + 1),
        "optim::wd": 0.0,
        "model::nlin": "tanh",
        "model::dropout": 0.5,
    }
    settings |= {"model::init_type": "uniform", "dataset::dump": "/netscratch/someone/dataset.pt"}
    (place / "params.json").write_text(json.dumps(settings))
    lines = []
    for epoch in range(6):
        told = {
            "train_loss": 2.0 - epoch / 10,
            "train_acc": 0.3 + epoch / 10 + run / 100,
            "test_acc": 0.2 + epoch / 10,
        }
        told |= {
            "test_loss": 2.1 - epoch / 10,
            "training_iteration": epoch,
            "hostname": "node7",
            "pid": 12,
            "config": settings,
        }
        lines.append(json.dumps(told))
    lines.insert(0, json.dumps({"training_iteration": 0, "test_acc": 0.99}))  # before the run was resumed
    (place / "result.json").write_text("\n".join([*lines, '{"training_iter']))
    for epoch in EPOCHS:
        checkpoint = place / f"checkpoint_{epoch:06d}"
        checkpoint.mkdir()
        torch.save(network(10 * run + epoch).state_dict(), checkpoint / "checkpoints")
        torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, checkpoint / "optimizer")
        (checkpoint / ".is_checkpoint").touch()
        (checkpoint / "checkpoints.tune_metadata").write_bytes(pickle.dumps({"iteration": epoch}))
    (place / "params.pkl").write_bytes(pickle.dumps(settings))
    torch.save({"trainset": torch.zeros(4, 2)}, folder / "dataset.pt")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoos") / "zoo_mnist"
    for run in range(RUNS):
        write_run(folder, run)
    return folder


def import_published(folder: Path, output: Path) -> ImportResult:
    return import_zoo(ImportSettings(folder=folder, token_dim=40, allow_pickle=True), output)


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportResult:
    return import_published(published, tmp_path_factory.mktemp("imported") / "zoo")


def rows(zoo: Zoo) -> dict[tuple[str, int], tuple]:
    """Run and epoch to split, row and properties."""
    found = {}
    for name, split in zoo.splits.items():
        for index, key in enumerate(zip(split.run_ids, split.column("epoch").tolist(), strict=True)):
            found[key] = (name, index, split)
    return found


def test_a_published_zoo_has_its_epochs_accuracies_and_settings(imported):
    found = rows(imported.zoo)
    assert len(found) == RUNS * len(EPOCHS)
    assert {entry.status for entry in imported.entries} == {"taken"}  # nothing is said of what belongs to the format
    _, index, split = found["NN_tune_trainable_00002_seed=2", 5]
    expected = {"train_accuracy": 0.82, "test_accuracy": 0.7, "test_loss": 1.6, "learning_rate": 0.003}
    assert {key: split.column(key)[index] for key in expected} == pytest.approx(expected)
    assert split.column("generalization_gap")[index] == pytest.approx(0.12)
    assert [split.column(key)[index] for key in ("activation", "initialization", "seed")] == ["tanh", "uniform", 2]
    _, first, split_of_first = found["NN_tune_trainable_00000_seed=0", 0]
    assert split_of_first.column("test_accuracy")[first] == pytest.approx(0.2)  # the last line of an epoch counts
    original = network(10 * 2 + 5).state_dict()
    assert all(torch.equal(split.state_dict(index)[key], tensor) for key, tensor in original.items())


def test_a_run_is_in_one_split_and_nothing_of_the_machine_is_published(imported):
    splits: dict[str, set[str]] = {}
    for (run, _), (name, *_) in rows(imported.zoo).items():
        splits.setdefault(run, set()).add(name)
    assert [len(found) for found in splits.values()] == [1] * RUNS
    text = json.dumps(imported.zoo.facts.to_dict())
    assert "netscratch" not in text
    assert "node7" not in text
    columns = imported.zoo.splits["train"].table.dataset.column_names
    assert not {"pid", "hostname", "config_seed"} & set(columns)
    assert f"lines of result.json that are not JSON, left out: {RUNS}" in imported.notes


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_an_archive_is_read_without_unpacking_it(kind, published, imported, tmp_path, monkeypatch):
    path = tmp_path / f"zoo_mnist.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(published.rglob("*")):
                archive.write(file, file.relative_to(published))
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            archive.add(published, arcname=".")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    most = 0

    def watch(_: object) -> None:
        nonlocal most
        unpacked = [file.stat().st_size for file in tmp_path.glob("hf_sane-archive-*/*/*")]
        most = max(most, sum(unpacked))

    listed = []
    list_members = ArchiveTree._list
    monkeypatch.setattr(ArchiveTree, "_list", lambda tree: listed.append(tree.path) or list_members(tree))
    settings = ImportSettings(folder=path, token_dim=40, allow_pickle=True)
    zoo = import_zoo(settings, tmp_path / "zoo", on_entry=watch).zoo
    assert listed == [path]  # once, for the networks and what is known about their runs
    whole = sum(file.stat().st_size for file in published.rglob("*") if file.is_file())
    assert 0 < most < whole
    mine, theirs = rows(zoo), rows(imported.zoo)
    assert mine.keys() == theirs.keys()
    for key, (name, index, split) in mine.items():
        other_name, other, other_split = theirs[key]
        assert name == other_name
        assert torch.equal(split.tokens(index), other_split.tokens(other))
        assert split.column("test_accuracy")[index] == other_split.column("test_accuracy")[other]


def test_damaged_runs_are_told_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "zoo_mnist"
    for run in range(RUNS):
        write_run(folder, run)
    first, second, third, fourth = sorted(path for path in folder.iterdir() if path.is_dir())
    (first / "params.json").write_text('{"seed": ')
    (second / "result.json").unlink()
    (third / "checkpoint_000001" / "checkpoints").write_bytes(b"")
    cut = third / "checkpoint_000005" / "checkpoints"
    cut.write_bytes(cut.read_bytes()[:400])
    (folder / "interrupted").mkdir()
    (folder / "interrupted" / "params.json").write_text("{}")
    (folder / "nothing").mkdir()
    result = import_zoo(ImportSettings(folder=folder, token_dim=40, allow_pickle=True), tmp_path / "zoo")
    reasons = {entry.run_id: entry.reason for entry in result.entries if entry.status != "taken"}
    assert reasons.pop(f"{third.name}/checkpoint_000005/checkpoints").startswith(
        "expected a whole file of torch.save, got a file that is damaged or cut off"
    )
    assert reasons == {
        f"{third.name}/checkpoint_000001": "no network is in this folder: checkpoints is an empty file",
        "interrupted": "no network is in this folder: params.json is a JSON file that is not a shard index",
        "nothing": "no network is in this folder: it is empty",
    }
    found = rows(result.zoo)
    assert len(found) == RUNS * len(EPOCHS) - 2
    for run, known in ((first, [None, 0.7]), (second, [0.002, None]), (fourth, [0.004, 0.7])):
        _, index, split = found[run.name, 5]
        values = [split.column(name)[index] for name in ("learning_rate", "test_accuracy")]
        assert [None if np.isnan(value) else round(value, 4) for value in values] == known
    assert (
        f"runs without settings, since params.json is missing or not a JSON object: 1 ({first.name})" in result.notes
    )
    assert any("networks without results in result.json: 3" in note for note in result.notes)


def test_archives_are_known_by_their_first_bytes(published, tmp_path):
    """A zip of a zoo that was cut off ends in the zip of a network: it is still no file of PyTorch."""
    whole = tmp_path / "zoo.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for file in sorted(published.rglob("*/checkpoints")):
            archive.write(file, file.relative_to(published))
    nameless = whole.rename(tmp_path / "zoo")
    assert open_tree(nameless).sizes.keys() == {
        str(file.relative_to(published)) for file in published.rglob("*/checkpoints")
    }
    assert ImportSettings(folder=nameless).folder == str(nameless)
    content = nameless.read_bytes()
    (tmp_path / "some.zip").write_bytes(content[: content.index(b"PK\x05\x06") + 22])  # the end of the first network
    assert len(open_tree(tmp_path / "some.zip").sizes) == 1
    for name, wrong, reason in (
        ("cut.zip", content[:400], "an archive that is damaged, or was cut off"),
        ("page.zip", b"<!doctype html>", "got a web page; download the file itself"),
        ("empty.tar.gz", b"", "expected a folder, or a tar or zip archive, got an empty file"),
    ):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(InvalidFileError, match=reason):
            import_zoo(ImportSettings(folder=tmp_path / name), tmp_path / "out")


class Pipe(io.RawIOBase):
    """A file that can only be written in order, so that sizes in a zip follow their members."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def pack(folder: Path, path: Path, names: Sequence[str]) -> None:
    """Pack files in this order."""
    if path.name.endswith((".zip", "streamed")):
        with path.open("wb") as file:
            target = file if path.suffix == ".zip" else Pipe(file)
            kind = zipfile.ZIP_STORED if path.name == "stored.zip" else zipfile.ZIP_DEFLATED
            with zipfile.ZipFile(target, "w", kind) as archive:
                for name in names:
                    archive.write(folder / name, name)
    else:
        with tarfile.open(path, f"w{path.suffix.replace('.tar', '').replace('.', ':')}") as archive:
            for name in names:
                archive.add(folder / name, name)


@pytest.mark.parametrize("name", ["stored.zip", "packed.zip", "streamed", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_archives_that_are_cut_off_give_what_comes_before(name, published, tmp_path):
    files = sorted(str(path.relative_to(published)) for path in published.rglob("*") if path.is_file())
    pack(published, tmp_path / name, files)
    content = (tmp_path / name).read_bytes()
    whole = open_tree(tmp_path / name)
    assert (whole.cut, sorted(whole.sizes)) == (None, files)
    counts = set()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        tree = open_tree(tmp_path / name)
        found = list(tree.sizes)
        assert found == files[: len(found)]
        assert tree.cut == f"the archive was cut off after {found[-1]}; {len(found)} files were read"
        for path in found:
            assert tree.fetch(path).read_bytes() == (published / path).read_bytes(), path
        counts.add(len(found))
    assert len(counts) > 1
    assert min(counts) < len(files)


def test_a_tar_that_is_cut_off_between_two_files_is_noticed(published, tmp_path):
    files = sorted(str(path.relative_to(published)) for path in published.rglob("*") if path.is_file())
    pack(published, tmp_path / "a.tar", files)
    with tarfile.open(tmp_path / "a.tar") as archive:
        place = archive.getmembers()[-1].offset
    content = (tmp_path / "a.tar").read_bytes()
    for end in (place, place + 100):
        (tmp_path / "a.tar").write_bytes(content[:end])
        tree = open_tree(tmp_path / "a.tar")
        assert (len(tree.sizes), tree.cut is None) == (len(files) - 1, False)


def test_a_zoo_of_an_archive_that_was_cut_off_says_so_and_is_imported_again(published, tmp_path):
    files = sorted(str(path.relative_to(published)) for path in published.rglob("*") if path.is_file())
    pack(published, tmp_path / "a.tar", files)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) * 2 // 3])
    settings = ImportSettings(folder=tmp_path / "a.tar", token_dim=5, allow_pickle=True, split_shares=[1, 0, 0])
    found = import_zoo(settings, tmp_path / "zoo")
    (entry,) = [entry for entry in found.entries if entry.status == "failed"]
    assert entry.run_id == "a"
    cut = open_tree(tmp_path / "a.tar").cut
    assert entry.reason == f"{cut}; download it again"
    assert found.zoo.facts.data["cut"] == cut
    assert entry.reason in [excluded["reason"] for excluded in found.zoo.facts.excluded]
    assert found.zoo.run_record.data["cut"] == cut
    (tmp_path / "a.tar").write_bytes(whole)
    again = import_zoo(settings, tmp_path / "zoo")
    assert len(again.zoo.splits["train"]) > len(found.zoo.splits["train"])
    assert "cut" not in again.zoo.facts.data


def test_damaged_and_hostile_archives_are_refused(tmp_path):
    broken = tmp_path / "a.zip"
    broken.write_bytes(b"PK\x03\x04 no zip at all")
    cut = tmp_path / "b.tar.gz"
    with tarfile.open(cut, "w:gz") as archive:
        member = tarfile.TarInfo("x.safetensors")
        member.size = 100_000
        archive.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    cut.write_bytes(cut.read_bytes()[:5000])
    for path in (broken, cut):
        with pytest.raises(InvalidFileError, match="expected a tar or zip archive"):
            open_tree(path).fetch("x.safetensors")
    hostile = tmp_path / "c.tar"
    with tarfile.open(hostile, "w") as archive:
        for name in ("../../evil", "/etc/evil", "good"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    tree = ArchiveTree(hostile)
    assert list(tree.sizes) == ["good"]
    assert tree.fetch("good").read_bytes() == b"evil"
    assert not list(tmp_path.parent.glob("evil"))


# The small-CNN zoo, in its format: biases before kernels, tensors as TensorFlow has them.
SHAPES = {
    "sequential/conv2d/bias:0": (4,),
    "sequential/conv2d/kernel:0": (3, 3, 1, 4),
    "sequential/dense/bias:0": (3,),
    "sequential/dense/kernel:0": (4, 3),
}


def write_arrays(folder: Path, count: int = 8, **changes: object) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    lines, start = ["varname,start_idx,end_idx,size,shape"], 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        lines.append(f'{name},{start},{start + size},{size},"{shape}"')
        start += size
    weights = np.random.default_rng(0).standard_normal((count, start)).astype(np.float32)
    np.save(folder / "weights.npy", changes.get("weights", weights))
    (folder / "layout.csv").write_text(str(changes.get("layout", "\n".join(lines))))
    table = ["config.activation,config.learning_rate,config.w_init,modeldir,step,test_accuracy,train_accuracy"]
    for row in range(changes.get("rows", count)):
        run, step = row // 2, (0, 86)[row % 2]
        place = changes.get("runs", "/cns/runs/{}").format(run, step)
        table.append(f"relu,{0.001 * (run + 1)},normal,{place},{step},{0.1 + row / 100},{0.2 + row / 100}")
    (folder / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(table).encode()))
    return weights


@pytest.mark.parametrize("written", ["/cns/runs/{}/permanent_ckpt-{}", "/cns/runs/{}/checkpoint_{}/"])
def test_folders_named_after_a_checkpoint_are_one_run(written, tmp_path):
    write_arrays(tmp_path / "mnist", runs=written)
    zoo = import_zoo(ImportSettings(folder=tmp_path, token_dim=13), tmp_path / "zoo").zoo
    assert sorted(rows(zoo)) == [(str(run), step) for run in range(4) for step in (0, 86)]
    members = [set(split.column("run_id")) for split in zoo.splits.values()]
    assert sum(map(len, members)) == len(set.union(*members)) == 4


def test_the_array_of_small_cnns_is_a_zoo(tmp_path, monkeypatch):
    weights = write_arrays(tmp_path / "mnist")
    read = []
    state_dict = ArrayZoo.state_dict
    monkeypatch.setattr(ArrayZoo, "state_dict", lambda zoo, row: read.append(row) or state_dict(zoo, row))
    result = import_zoo(ImportSettings(folder=tmp_path, token_dim=13), tmp_path / "zoo")
    assert read == list(range(8))  # every row once: a header needs none
    found = rows(result.zoo)
    assert sorted(found) == [(str(run), step) for run in range(4) for step in (0, 86)]
    assert {entry.reason for entry in result.entries} == {None}
    _, index, split = found["2", 86]
    assert split.column("test_accuracy")[index] == pytest.approx(0.15)
    assert split.column("learning_rate")[index] == pytest.approx(0.003)
    assert [split.column(name)[index] for name in ("activation", "initialization")] == ["relu", "normal"]
    tensors = split.state_dict(index)
    assert set(tensors) == {"conv2d.weight", "conv2d.bias", "dense.weight", "dense.bias"}
    assert tensors["conv2d.weight"].shape == (4, 1, 3, 3)
    # The same function, computed as TensorFlow would: inputs [N, H, W, C], kernels [h, w, in, out].
    row = weights[5]
    kernel, dense = row[4:40].reshape(3, 3, 1, 4), row[43:].reshape(4, 3)
    image = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    hidden = np.einsum("hw,hwo->o", image, kernel[:, :, 0]) + row[:4]
    expected = hidden @ dense + row[40:43]
    ours = torch.nn.functional.conv2d(
        torch.tensor(image)[None, None], tensors["conv2d.weight"], tensors["conv2d.bias"]
    )
    ours = torch.nn.functional.linear(ours.flatten(1), tensors["dense.weight"], tensors["dense.bias"])
    np.testing.assert_allclose(ours[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": 7}, "expected as many networks as metrics.csv.gz has rows, 7, got 8"),
        ({"weights": np.zeros((8, 9), np.float32)}, "expected floating-point rows of 55 weights"),
        ({"weights": np.array([[{}]], dtype=object)}, "expected an array of weights"),
        ({"weights.npy": b""}, "expected an array of weights (npy), got an empty file"),
        ({"layout.csv": None}, "expected the file layout.csv next to it, which maps columns to tensors, got none"),
        ({"layout": "varname,start_idx\nx,1"}, "expected the columns varname, start_idx, end_idx, shape"),
        ({"layout": 'varname,start_idx,end_idx,shape\nx/bias:0,1,5,"(4,)"'}, "starts at column 0"),
        ({"layout": 'varname,start_idx,end_idx,shape\nx/bias:0,0,4,"__import__(1)"'}, "a shape such as"),
    ],
)
def test_arrays_that_do_not_fit_say_so_and_the_rest_goes_on(changes, reason, tmp_path):
    write_arrays(tmp_path / "in" / "cnns", **changes)
    for name in (WEIGHTS, LAYOUT):
        if name in changes:
            (tmp_path / "in" / "cnns" / name).write_bytes(changes[name] or b"")
            if changes[name] is None:
                (tmp_path / "in" / "cnns" / name).unlink()
    torch.save(network(0).state_dict(), tmp_path / "in" / "loose.pt")
    settings = ImportSettings(folder=tmp_path / "in", token_dim=13, allow_pickle=True, split_shares=[1, 0, 0])
    damaged, loose = import_zoo(settings, tmp_path / "zoo").entries
    assert (damaged.run_id, damaged.status, loose.status) == ("cnns/weights.npy", "skipped", "taken")
    assert reason in damaged.reason


def test_an_array_without_properties_warns_that_its_runs_are_unknown(tmp_path, caplog):
    write_arrays(tmp_path / "cnns")
    (tmp_path / "cnns" / "metrics.csv.gz").unlink()
    assert len(ArrayZoo(open_tree(tmp_path), PurePosixPath("cnns"))) == 8
    assert "cnns/weights.npy: no metrics.csv next to it, so nothing is known about its networks" in caplog.text


def test_a_folder_may_be_named_without_its_option(tmp_path):
    (tmp_path / "nets").mkdir()
    settings = ImportSettings(repos=[str(tmp_path / "nets")])
    assert (settings.folder, settings.repos) == (str(tmp_path / "nets"), [])
    refused = "folder must be an existing folder, or a tar or zip archive, got"
    with pytest.raises(StrictDataclassClassValidationError, match=refused):
        ImportSettings(folder=tmp_path / "no")
