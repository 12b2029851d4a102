"""Tables of a scan: its checkpoints, and the findings and tensors of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sane.cards._tables import fact_text
from hf_sane.explorer._atlas import Table
from hf_sane.records._documents import read_document
from hf_sane.records._errors import shorten
from hf_sane.records._outputs import check_finished

REPORT, JOB = "report.json", "scan"
TENSOR_COLUMNS = ("name", "shape", "dtype", "mean", "std", "kurtosis", "alpha", "stable_rank")
FINDING_COLUMNS = ("severity", "rule", "message", "remedy")

Scans = Sequence[Mapping[str, Any]]  # as `hf-sane scan --json` prints them


def is_scan(folder: str | Path) -> bool:
    """Whether a folder is the output of a scan."""
    if not Path(folder, REPORT).is_file():
        return False
    manifest = check_finished(folder)
    return manifest is not None and manifest.job == JOB


def read_scans(folder: str | Path) -> Scans:
    """The scans in the output of `hf-sane scan`.

    Raises:
        InvalidFileError: If the report is damaged.
    """
    document = read_document(Path(folder, REPORT), expected="the report of a scan", remedy="scan again")
    entries = document["scans"].entries()
    for entry in entries:
        for name in ("source", "format"):
            entry[name].text()
        entry["weights"].whole()
        for finding in entry["findings"].entries():
            for name in FINDING_COLUMNS:
                finding[name].text()
        for tensor in entry["tensors"].entries():
            tensor["name"].text()
    return [entry.mapping() for entry in entries]


def list_scans(scans: Scans) -> Table:
    """One row per checkpoint."""
    rows = [[scan["source"], _counts(scan["findings"]), scan["format"], scan["weights"]] for scan in scans]
    return ["checkpoint", "findings", "format", "weights"], _texts(rows)


def list_findings(scan: Mapping[str, Any]) -> Table:
    """One row per finding, with what to do about it."""
    return list(FINDING_COLUMNS), _texts([[row[name] for name in FINDING_COLUMNS] for row in scan["findings"]])


def list_tensors(scan: Mapping[str, Any]) -> Table:
    """One row per tensor, with statistics and, if it was read in full, its spectrum."""
    rows = [[row.get(name) for name in TENSOR_COLUMNS] for row in scan["tensors"]]
    return [name.replace("_", " ") for name in TENSOR_COLUMNS], _texts(rows)


def _counts(findings: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(finding["severity"] for finding in findings)
    return ", ".join(f"{count} {severity}" for severity, count in counts.items()) or "none"


def _texts(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [[fact_text(cell, shorten) for cell in row] for row in rows]
