"""What the explorer shows of a scan."""

import json

import pytest
import torch
from safetensors.torch import save_file

import hf_sane
from hf_sane.explorer._scans import is_scan, list_findings, list_scans, list_tensors, read_scans
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.explore import ExploreResult, open_scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, one with NaN, and the output of their scan."""
    folder = tmp_path_factory.mktemp("scan")
    for name, value in {"good": 0.5, "bad": float("nan")}.items():
        tensors = {"layer.weight": torch.randn(8, 6, generator=torch.Generator().manual_seed(0))}
        tensors["layer.weight"][0, 0] = value
        save_file(tensors, folder / f"{name}.safetensors")
    hf_sane.scan(folder, output=folder / "out", fail_on=["never"])
    return folder


def test_a_scan_is_shown_from_its_output(folder):
    assert is_scan(folder / "out")
    assert not is_scan(folder)
    scans = read_scans(folder / "out")
    header, rows = list_scans(scans)
    assert header == ["checkpoint", "findings", "format", "weights"]
    found = {row[0].rpartition("/")[2]: row for row in rows}
    assert found["good.safetensors"][3] == "48"
    assert "error" in found["bad.safetensors"][1]
    (broken,) = [scan for scan in scans if "bad" in scan["source"]]
    assert next(row[:2] for row in list_findings(broken)[1]) == ["error", "nan"]
    header, ((name, shape, *_),) = list_tensors(broken)
    assert (header[-1], name, shape) == ("stable rank", "layer.weight", "8, 6")


def test_checkpoints_are_scanned_first(folder):
    def told(scans):
        return [(row[0], row[1]) for row in list_scans(scans)[1]]

    assert told(open_scans(folder / "bad.safetensors")) == [
        x for x in told(open_scans(folder / "out")) if "bad" in x[0]
    ]


def test_the_page_ends_with_the_number_of_checkpoints():
    record = RunRecord(command="explore", results={"networks": 2})
    for shown in ("networks", "checkpoints"):
        result = ExploreResult(record=record, address="http://127.0.0.1:7860/", shown=shown)
        assert str(result).startswith(f"2 {shown} were shown at http://127.0.0.1:7860/")


def test_a_damaged_report_is_refused(folder, tmp_path):
    report = json.loads((folder / "out/report.json").read_text())
    report["scans"][0]["findings"] = [{"rule": "nan"}]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert not is_scan(tmp_path)
    with pytest.raises(ValueError, match=r"scans\[0\].findings\[0\]: expected a field .severity.*scan again"):
        read_scans(tmp_path)
