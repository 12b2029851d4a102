"""Who may write where in a zoo folder, what loaders believe, and what happens to the files of others."""

import json
import stat
from dataclasses import replace

import pytest
import torch

from hf_sane.records._errors import InvalidFileError
from hf_sane.records._locks import FolderInUseError, folder_lock
from hf_sane.records._manifests import MANIFEST, Manifest
from hf_sane.zoo._alignment import align_folder
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import read_sections
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo._writing import WORK_NAME, writing_zoo


@pytest.fixture
def folder(tiny_zoo, tmp_path):
    return tiny_zoo.save(tmp_path / "zoo")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["README.md", "data/train-00000-of-00003.parquet", "data/notes.txt"])
@pytest.mark.parametrize(
    "write", [lambda zoo, folder: zoo.save(folder), lambda zoo, folder: mix_zoos({"a": zoo}, folder)]
)
def test_files_of_somebody_are_refused_and_stay(tiny_zoo, tmp_path, name, write):
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    with pytest.raises(FileExistsError, match="not ours to replace; choose a new or an empty folder"):
        write(tiny_zoo, tmp_path / "theirs")
    assert content(tmp_path) == {path.relative_to(tmp_path): b"theirs"}


def test_a_data_folder_of_somebody_inside_a_zoo_is_refused_and_stays(tiny_zoo, folder):
    (folder / "second").mkdir()
    (folder / "second" / "train-00000-of-00003.parquet").write_text("theirs")
    before = content(folder)
    with pytest.raises(
        FileExistsError, match="second holds files that this library did not write, or that were changed"
    ):
        tiny_zoo.save(folder, "second")
    assert content(folder) == before


def test_a_finished_zoo_is_replaced_on_request_and_only_if_nobody_changed_it(tiny_zoo, folder):
    half = Zoo({name: split.select(slice(None, 4)) for name, split in tiny_zoo.splits.items()}, tiny_zoo.facts)
    with pytest.raises(FileExistsError, match="already holds a finished zoo named 'default'"):
        half.save(folder)
    half.save(folder, replace=True)
    assert len(Zoo.load(folder)) == 12
    (folder / "data" / "notes.txt").write_text("theirs")
    with pytest.raises(FileExistsError, match=r"this library did not write, or that were changed \(notes.txt\)"):
        tiny_zoo.save(folder, replace=True)
    assert len(Zoo.load(folder)) == 12
    assert (folder / "data" / "notes.txt").read_text() == "theirs"


def test_an_edited_card_stays_and_is_said_to(tiny_zoo, folder, caplog):
    card = folder / "README.md"
    tiny_zoo.save(folder, "second")
    assert "second/train-*.parquet" in card.read_text()
    assert not caplog.records
    card.write_text("mine")
    tiny_zoo.save(folder, "third")
    assert card.read_text() == "mine"
    assert f"{card} was edited by hand and is not overwritten" in caplog.text
    assert len(Zoo.load(folder, "third")) == len(tiny_zoo)


def test_a_card_that_an_older_version_wrote_is_ours(tiny_zoo, folder, monkeypatch, caplog):
    """It is no longer what this version would write: the manifest knows its digest."""
    monkeypatch.setattr("hf_sane.zoo._writing.zoo_card", lambda zoos: f"# {', '.join(zoos)}\n")
    tiny_zoo.save(folder, "second")
    assert (folder / "README.md").read_text() == "# default, second\n"
    assert not caplog.records


def test_sections_of_other_zoos_stay_as_they_are(tiny_zoo, folder):
    path = folder / "zoo.json"
    known = json.loads(path.read_text())
    known["configs"]["default"]["name"] = "of another version"
    path.write_text(json.dumps(known))
    tiny_zoo.save(folder, "second")
    assert read_sections(folder)["default"] == known["configs"]["default"]


def test_what_is_not_finished_or_changed_is_not_loaded(tiny_zoo, folder):
    manifest = Manifest.load(folder / "data")
    assert manifest.job == "zoo"
    assert {"alignment.safetensors", "run.json", "train-00000-of-00001.parquet"} <= manifest.files.keys()
    path = folder / "zoo.json"
    text = path.read_text()
    path.write_text(text.replace('"name": "digits"', '"name": "other"'))
    for load in (Zoo.load, ZooStream.open):
        with pytest.raises(
            InvalidFileError,
            match=r"configs.default: expected a finished zoo in data, got one with missing or foreign files",
        ):
            load(folder)
    path.write_text(text)
    (folder / "data" / "alignment.safetensors").unlink()
    for load in (Zoo.load, ZooStream.open):
        with pytest.raises(InvalidFileError, match="alignment.safetensors: expected .* bytes, got no such file"):
            load(folder)


def test_zoos_from_before_there_were_manifests_load_unless_a_build_was_interrupted(tiny_zoo, folder):
    (folder / "data" / MANIFEST).unlink()
    assert len(Zoo.load(folder)) == len(tiny_zoo)
    assert align_folder(folder).alignment.references == tiny_zoo.alignment.references
    assert len(Zoo.load(folder)) == len(tiny_zoo)
    (folder / "data" / MANIFEST).unlink()
    (folder / "data" / "alignment.safetensors").unlink()
    (folder / WORK_NAME / "default").mkdir(parents=True)  # what a build that was killed before alignment left
    for load in (Zoo.load, ZooStream.open):
        with pytest.raises(InvalidFileError, match="since writing was interrupted"):
            load(folder)


def test_an_alignment_is_added_without_a_copy_of_the_rows(tiny_zoo, tmp_path):
    plain = Zoo(
        {name: split.__class__(split.table, split.facts) for name, split in tiny_zoo.splits.items()}, tiny_zoo.facts
    )
    folder = plain.save(tmp_path / "zoo")
    rows = folder / "data" / "train-00000-of-00001.parquet"
    before = rows.stat()
    assert Zoo.load(folder).alignment is None
    align_folder(folder)
    after = rows.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    found = Zoo.load(folder).alignment
    for key, permutation in tiny_zoo.alignment.permutations.items():
        assert all(torch.equal(found.permutations[key][axis], index) for axis, index in permutation.items())
    assert {path.name for path in folder.iterdir()} == {"README.md", "zoo.json", "data", ".cache"}


def test_one_process_writes_a_folder(tiny_zoo, tmp_path):
    with folder_lock(tmp_path / "zoo"), pytest.raises(FolderInUseError, match="is being written by process"):
        tiny_zoo.save(tmp_path / "zoo")
    tiny_zoo.save(tmp_path / "zoo")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_others_may_read_every_file(folder):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    (folder / "new").touch()
    assert modes == {stat.S_IMODE((folder / "new").stat().st_mode)}


def test_a_block_that_fails_leaves_what_was_there(tiny_zoo, folder, tmp_path):
    before = content(folder)
    (tmp_path / "empty").mkdir()
    for place, config in ((folder, "second"), (tmp_path / "empty", "default"), (tmp_path / "new", "default")):
        with pytest.raises(ZeroDivisionError), writing_zoo(place, config) as writer:
            writer.begin()
            raise ZeroDivisionError
    assert content(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "zoo"]
    assert not list((tmp_path / "empty").iterdir())


def test_a_replacement_that_fails_changes_nothing(tiny_zoo, folder, monkeypatch):
    half = Zoo({name: split.select(slice(None, 4)) for name, split in tiny_zoo.splits.items()}, tiny_zoo.facts)
    half = Zoo(half.splits, replace(tiny_zoo.facts, name="half"))
    before = content(folder)

    def fail(*_):
        raise KeyboardInterrupt

    for place, config in ((folder, "default"), (folder, "second"), (folder.parent / "new", "default")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as interruption:
            patched.setattr("hf_sane.zoo._writing.move_folder", fail)
            half.save(place, config, replace=True)
        assert interruption.value.__notes__ == [f"nothing was written to {place}; to start again, repeat the call"]
        assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["zoo"]
    half.save(folder, replace=True)
    assert Zoo.load(folder).facts.name == "half"
