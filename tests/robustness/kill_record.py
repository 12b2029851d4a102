"""The run record of `make kill`, gathered from the tests wherever they ran."""

import sys
from pathlib import Path

import pytest

from hf_sane.records._run_record import RunRecord

PROPERTY = "kill_points"  # of a test: name of the verb, to how often it was stopped
COUNTED = ("events", "kills", "interrupts", "states", "failures")


class KillRecord:
    """A plugin of pytest that writes the record after every verb: a run that is cut short keeps what it had.

    Verbs that are in the record and do not run stay in it, each with the commit that it ran at.
    """

    def __init__(self, path: Path, points: str) -> None:
        self.path = path
        self.record = RunRecord.start(arguments={"points": points})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [value for name, value in report.user_properties if name == PROPERTY and report.when == "call"]
        for run, counts in ((run, counts) for runs in found for run, counts in runs.items()):
            sys.stderr.write("".join(f"\n{failure}\n" for failure in counts["failures"]))  # long before the end
            runs = RunRecord.load(self.path).results["runs"] if self.path.exists() else {}
            runs[run] = {**counts, "failures": len(counts["failures"]), "commit": self.record.commit}
            total = {name: sum(counts[name] for counts in runs.values()) for name in COUNTED}
            self.record.finish({"runs": dict(sorted(runs.items())), "total": total}).save(self.path)
