"""The matrix of dependencies gains an entry per environment, and keeps the others."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "dependency_matrix.py"


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("dependency_matrix", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_environment_has_an_entry_and_failures_have_names(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    (tmp_path / "test_good.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "test_bad.py").write_text("def test_one(): pass\ndef test_wrong(): assert False\n")
    output = tmp_path / "record.json"
    arguments = ["--output", str(output), "--tests"]
    assert matrix.main(["--environment", "newest", *arguments, "test_good.py"]) == 0
    assert matrix.main(["--environment", "lowest", *arguments, "test_good.py", "test_bad.py"]) == 1
    entries = json.loads(output.read_text())["results"]
    assert list(entries) == ["newest", "lowest"]
    assert (entries["newest"]["passed"], entries["newest"]["failed"]) == (2, [])
    assert (entries["lowest"]["passed"], entries["lowest"]["failed"]) == (3, ["test_bad.test_wrong"])
    assert {"torch", "transformers", "huggingface-hub"} <= entries["lowest"]["packages"].keys()
    assert matrix.main(["--environment", "lowest", *arguments, "test_good.py"]) == 0
    assert json.loads(output.read_text())["results"]["lowest"]["failed"] == []


def test_without_a_report_there_is_no_entry(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    output = tmp_path / "record.json"
    assert matrix.main(["--environment", "x", "--output", str(output), "--tests", "test_missing.py"]) != 0
