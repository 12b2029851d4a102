"""The built wheel holds everything that runs: templates, the typing marker."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_sane"
DATA_SUFFIXES = {".py", ".md", ".typed", ".json", ".safetensors"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that nothing is written into them."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "src" / "hf_sane", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (built,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_every_source_and_data_file(wheel):
    expected = {
        f"hf_sane/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in DATA_SUFFIXES
    }
    assert len(expected) > 50
    assert expected <= set(wheel.namelist())


@pytest.mark.parametrize(
    "name",
    [
        "hf_sane/py.typed",
        "hf_sane/cards/templates/sane_model.md",
        "hf_sane/cards/templates/code/sane.md",
        "hf_sane/pretrained/small_images/model.safetensors",
        "hf_sane/pretrained/small_images/anchors/anchor_0/model.safetensors",
    ],
)
def test_what_is_no_import_travels_too(wheel, name):
    assert wheel.getinfo(name).file_size > 0 or name.endswith("py.typed")


def test_the_wheel_says_what_it_is(wheel):
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    for line in ("Name: hf_sane", "Requires-Python: >=3.11", "License-Expression: MIT", "Provides-Extra: demo"):
        assert line in metadata
    (entry_points,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "hf-sane = hf_sane.cli.app:main" in entry_points
    assert not [name for name in wheel.namelist() if name.startswith("tests/")]


def test_make_demo_leaves_the_checkout_clean():
    """The demo gets one path to write to, which git ignores: no file of the repository is handed to it."""
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (command,) = (line for line in recipe.splitlines() if " demo " in line)
    paths = [word for word in command.partition(" demo ")[2].split() if not word.startswith("--")]
    assert paths == ["demo_output"]
    assert "/demo_output/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
