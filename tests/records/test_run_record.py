"""Run records: what they note, what they leave out, and that a file is whole or absent."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sane.records._files import write_atomically
from hf_sane.records._run_record import RunRecord, read_commit, read_hardware, read_versions


def git(folder, *arguments):
    settings = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", folder, *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    package = tmp_path / "repository" / "src" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(tmp_path / "repository", "init")
    git(tmp_path / "repository", "add", "-A")
    git(tmp_path / "repository", "commit", "-m", "first")
    return tmp_path / "repository"


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = RunRecord.start(
        seed=3, command=["hf-sane", "probe", "a zoo"], arguments={"noise": 0.1}, data={"zoo": ["z"]}
    )
    record.finish({"r2": {"epoch": 0.5}}, data={"split": {"train": 7}})
    loaded = RunRecord.load(record.save(tmp_path / "deeper" / "run.json"))
    assert loaded == record
    assert loaded.command == "hf-sane probe 'a zoo'"
    assert loaded.data == {"zoo": ["z"], "split": {"train": 7}}
    assert loaded.seconds > 0
    assert loaded.peak_rss_bytes > 10**6
    assert loaded.started_at.endswith("+00:00")
    assert loaded.versions["torch"] == torch.__version__


def test_numbers_of_other_libraries_become_plain_and_non_finite_ones_null(tmp_path):
    results = {
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(1),
        "array": np.arange(3),
        "tensor": torch.tensor([1.0, float("nan")]),
        "path": Path("a/b"),
        "tuple": (1, "two", None),
        4: float("inf"),
    }
    record = RunRecord.start(command=["x"]).finish(results)
    text = record.save(tmp_path / "run.json").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse)["results"] == {
        "scalar": 0.5,
        "count": 3,
        "flag": True,
        "array": [0, 1, 2],
        "tensor": [1.0, None],
        "path": str(Path("a/b")),
        "tuple": [1, "two", None],
        "4": None,
    }


def test_unknown_facts_stay_out_of_the_file():
    assert RunRecord(command="x").to_dict() == {"command": "x"}
    assert RunRecord(command="x", seed=0, has_uncommitted_changes=False).to_dict() == {
        "command": "x",
        "seed": 0,
        "has_uncommitted_changes": False,
    }


def test_the_command_is_that_of_this_process_unless_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/hf-sane", "info", "it's"])
    assert RunRecord.start().command == "hf-sane info 'it'\"'\"'s'"


def test_what_json_cannot_hold_is_refused_by_name():
    record = RunRecord.start(command=["x"]).finish({"table": [1, {"cell": object()}]})
    with pytest.raises(
        TypeError, match=r"results.table\[1\].cell: expected numbers, text, lists or mappings, got object"
    ):
        record.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a run record .*, got an error: Expecting"),
        ("[1]", "expected a run record .*, got an error: a list of 1"),
        ('{"seed": 1}', "expected a field 'command', got an object with 1 fields"),
        ('{"command": "x", "sed": 1}', r"expected fields among command, seed.*, got \['sed'\]"),
        ('{"command": "x", "seconds": "3"}', "seconds: expected a number or null, got '3'"),
        ('{"command": "x", "versions": {"torch": 2}}', "versions.torch: expected text, got 2"),
        ('{"command": null}', "command: expected text, got null"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunRecord.load(tmp_path / "run.json")


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = RunRecord(command="old").save(tmp_path / "run.json")
    with pytest.raises(TypeError):
        RunRecord(command="new", results={"x": object()}).save(path)

    def crash_while_writing():
        with write_atomically(path) as partial:
            partial.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash_while_writing()
    assert RunRecord.load(path).command == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_clean_repository_gives_its_commit(repository):
    package = repository / "src" / "package"
    head = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert read_commit(package) == (head.stdout.strip(), False)
    (repository / "results.json").write_text("{}")
    assert read_commit(package)[1] is False  # an output is no change of the code
    (package / "new.py").write_text("y = 2\n")
    assert read_commit(package)[1] is True
    (package / "new.py").unlink()
    (package / "code.py").write_text("x = 2\n")
    assert read_commit(package)[1] is True


def test_a_package_inside_another_project_has_no_commit(repository, tmp_path):
    installed = repository / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("x = 1\n")
    assert read_commit(installed) == (None, None)
    outside = tmp_path / "outside"
    outside.mkdir()
    assert read_commit(outside) == (None, None)


def test_without_git_there_is_no_commit(repository, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert read_commit(repository / "src" / "package") == (None, None)


def test_hardware_and_versions_are_plain_facts():
    hardware = read_hardware()
    assert hardware["cores"] >= hardware["usable_cores"] >= 1
    assert hardware["memory_bytes"] > 2**28
    assert hardware["vector_instructions"] == torch.backends.cpu.get_cpu_capability()
    assert "gpus" not in hardware or hardware["gpus"]
    assert {"python", "system", "torch", "transformers", "hf_sane"} <= read_versions().keys()
    json.dumps([hardware, read_versions()])


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr("hf_sane.records._run_record.PACKAGES", ("numpy", "no-such-package-at-all"))
    assert read_versions().keys() == {"python", "system", "numpy"}
