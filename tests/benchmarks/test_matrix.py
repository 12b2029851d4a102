"""The matrix of dependencies gains an entry per environment, and keeps the others."""

import json

import dependency_matrix
import pytest

from hf_sane.records._run_record import RunRecord


def test_each_environment_has_an_entry_and_failures_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(dependency_matrix, "ROOT", tmp_path)
    (tmp_path / "test_good.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "test_bad.py").write_text("def test_one(): pass\ndef test_wrong(): assert False\n")
    output = tmp_path / "record.json"
    RunRecord(command="before", results={"newest": {"passed": 7}, "lowest": {"passed": 9}}).save(output)
    arguments = ["--output", str(output), "--environment", "lowest", "--tests"]
    assert dependency_matrix.main([*arguments, "test_good.py", "test_bad.py"]) == 1
    entries = json.loads(output.read_text())["results"]
    assert entries["newest"] == {"passed": 7}
    assert (entries["lowest"]["passed"], entries["lowest"]["failed"]) == (3, ["test_bad.test_wrong"])
    assert {"torch", "transformers", "huggingface-hub"} <= entries["lowest"]["packages"].keys()
    before = output.read_bytes()
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        dependency_matrix.main([*arguments, "test_missing.py"])
    assert output.read_bytes() == before
