"""Run tests in the environment of this Python, and add versions and result to the record of the matrix.

    python benchmarks/dependency_matrix.py --environment lowest --output runs/matrix/record.json

The record has one entry per environment; those of others stay. `nox` calls this in environments of its own with the
lowest and newest permitted versions of the dependencies, and for each version of Python. The tests are a selection
from the rooms in which the dependencies are used most; `--tests` names others. Five minutes each.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from running import new_parser, start

from hf_sane.records._failures import run_script
from hf_sane.records._run_record import installed_versions

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/core",
    "tests/models",
    "tests/training",
    "tests/sampling",
    "tests/hub/test_patience_everywhere.py",
    "tests/workflows/test_several_processes.py",
    "tests/tokenization/test_safetensors_header.py",
)
PACKAGES = [
    "torch",
    "transformers",
    "datasets",
    "huggingface-hub",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "typer",
    "jinja2",
    "pyyaml",
    "Pillow",
    "tqdm",
    "filelock",
    "evaluate",
    "peft",
    "scikit-learn",
    "matplotlib",
    "gradio",
    "picklescan",
    "gguf",
    "onnx",
]


def run_tests(tests: Sequence[str]) -> dict[str, Any]:
    """Numbers of passed and failed tests, names of failed ones, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, check=False)
        seconds = time.perf_counter() - started
        if ended.returncode not in (0, 1):
            raise RuntimeError(f"expected tests that run, but pytest ended with {ended.returncode}; see above")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failed": failed,
        "seconds": round(seconds, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests and update the record; exits with 1 if a test fails."""
    parser = new_parser(__doc__, needs_output=True)
    parser.add_argument("--environment", required=True, help="name of the entry, such as lowest or 3.12")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files or folders of tests")
    options, record = start(parser, argv)
    found = run_tests(options.tests)
    before = json.loads(options.output.read_text(encoding="utf-8"))["results"] if options.output.exists() else {}
    entry = {
        "python": sys.version.split()[0],
        "packages": installed_versions(PACKAGES),
        "tests": options.tests,
        **found,
        "command": record.command,
        "commit": record.commit,
        "cpu": record.hardware["cpu"],
    }
    record.finish({**before, options.environment: entry})
    record.save(options.output)
    print(f"{options.environment}: {found['passed']} passed, {len(found['failed'])} failed, {found['seconds']} s")
    return int(bool(found["failed"]))


if __name__ == "__main__":
    run_script(main, name="dependency_matrix.py")
