"""Install the built wheel into a clean environment outside of the checkout, and use it as a newcomer does.

    python benchmarks/released_wheel.py --output runs/matrix/wheel.json

In an empty folder and without the Hub: `doctor`, the lines of the README, the explorer's
self-test, and the demo. pip fetches the dependencies, at the versions in constraints.txt. A quarter of an hour on 2
cores.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from running import finish, new_parser, start
from tutorials import ROOT, build_wheel

from hf_sane.records._failures import run_script

EXTRAS = "demo,explore,scan,onnx"
MAX_OUTPUT = 400  # characters of the end of what a failed step printed
FENCE = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def steps(python: Path) -> dict[str, list[str]]:
    """Commands of a newcomer, by name."""
    program = [str(python.parent / "hf-sane")]
    readme = "\n".join(FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    return {
        "version": [*program, "--version"],
        "doctor": [*program, "doctor", "--no-hub"],
        "README": [str(python), "-c", readme],
        "explore --self-test": [*program, "explore", "--self-test"],
        "demo": [*program, "demo", "--output", "demo_output"],
    }


def run(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Exit code and seconds of a command in a folder; of a failed one also the end of its output."""
    began = time.perf_counter()
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = inherited | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    found: dict[str, Any] = {"exit_code": ran.returncode, "seconds": round(time.perf_counter() - began, 1)}
    return found if ran.returncode == 0 else found | {"output": (ran.stdout + ran.stderr)[-MAX_OUTPUT:]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Build, install and run; the record says which steps failed."""
    parser = new_parser(__doc__)
    parser.add_argument("--steps", nargs="+", help="names of the steps to run; by default all")
    arguments, record = start(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        wheel = build_wheel(place / "build")
        subprocess.run([sys.executable, "-m", "venv", str(place / "environment")], check=True)
        python = place / "environment" / "bin" / "python"
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *constraints, f"{wheel}[{EXTRAS}]"], check=True)
        (place / "empty").mkdir()
        found = {}
        for name, command in steps(python).items():
            if not arguments.steps or name in arguments.steps:
                found[name] = run(command, place / "empty")
                print(name, found[name])
    return finish(record, {"wheel": wheel.name, "extras": EXTRAS, "steps": found}, arguments.output)


if __name__ == "__main__":
    run_script(main, name="released_wheel.py")
