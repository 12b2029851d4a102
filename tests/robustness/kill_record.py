"""The run record of `make kill`, gathered from the tests wherever they ran."""

import sys
from pathlib import Path

import pytest

from hf_sane.records.run_record import RunRecord

PROPERTY = "kill_points"  # of a test: name of the verb, to how often it was stopped
COUNTED = ("events", "kills", "interrupts", "states", "failures")


class KillRecord:
    """A plugin of pytest that writes the record when all tests have ended."""

    def __init__(self, path: Path, points: str) -> None:
        self.path, self.runs = path, {}
        self.record = RunRecord.start(command=["make", "kill"], arguments={"points": points})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for found in (value for name, value in report.user_properties if name == PROPERTY):
                for run, counts in found.items():
                    sys.stderr.write(
                        "".join(f"\n{failure}\n" for failure in counts["failures"])
                    )  # long before the end
                    self.runs[run] = {**counts, "failures": len(counts["failures"])}

    def pytest_sessionfinish(self) -> None:
        total = {name: sum(counts[name] for counts in self.runs.values()) for name in COUNTED}
        self.record.finish({"runs": dict(sorted(self.runs.items())), "total": total}).save(self.path)
