"""Run the tutorials with the built wheel, in empty folders, and time their sections from the start of Python.

    python benchmarks/tutorials.py --output runs/benchmarks/tutorials.json

The wheel is built and unpacked, and comes first on the import path of a separate process that runs the pages. About
two minutes on 2 cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from running import finish, new_parser, start

from hf_sane.records._failures import run_script

ROOT = Path(__file__).parents[1]
NAMES = ("first_steps", "your_networks", "your_images", "published_zoos")
PAGES = tuple(ROOT / "docs" / "tutorials" / f"{name}.md" for name in NAMES)
PACKAGED = ("pyproject.toml", "README.md", "LICENSE")
# Runs the Python of pages, section by section, each page in an empty folder below this one.
PROGRAM = """
import json, os, re, sys, time
from pathlib import Path

began = time.perf_counter()
released, *pages = sys.argv[1:]
sys.path.insert(0, released)
import hf_sane

assert Path(hf_sane.__file__).is_relative_to(released), hf_sane.__file__
here, seconds = Path.cwd(), {}
for page in map(Path, pages):
    os.makedirs(here / page.stem)
    os.chdir(here / page.stem)
    names = {"__name__": page.stem}
    for section in re.split("^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        for code in re.findall("^```python\\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE):
            exec(compile(code, f"{page.name}, {section.splitlines()[0]}", "exec"), names)
            seconds.setdefault(page.stem, {})[section.splitlines()[0]] = time.perf_counter() - began
print(json.dumps(seconds))
"""


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a new folder, from a copy of the sources, so that these stay unchanged."""
    folder.mkdir(exist_ok=True)
    for name in PACKAGED:
        shutil.copy(ROOT / name, folder)
    package = Path("src") / "hf_sane"
    shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def measure(folder: Path) -> dict[str, Any]:
    """Seconds to the end of each section of every page, and to the first results."""
    released = folder / "released"
    with zipfile.ZipFile(build_wheel(folder / "build")) as wheel:
        wheel.extractall(released)
    (folder / "pages").mkdir()
    seconds: dict[str, dict[str, float]] = {}
    for page in PAGES:
        command = [sys.executable, "-c", PROGRAM, str(released), str(page)]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        ran = subprocess.run(command, cwd=folder / "pages", env=offline, check=True, capture_output=True, text=True)
        seconds |= json.loads(ran.stdout.splitlines()[-1])
    embedding = _of_section(seconds["first_steps"], "embed")
    sampled = _of_section(seconds["your_networks"], "Sample")
    return {"seconds": seconds, "seconds_to": {"first embedding": embedding, "first sampled network": sampled}}


def _of_section(seconds: dict[str, float], word: str) -> float:
    return next(value for title, value in seconds.items() if word in title)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    arguments, record = start(new_parser(__doc__), argv)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder).resolve())
    return finish(record, results, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="tutorials.py")
