"""The built wheel holds everything that runs: templates, the typing marker, what tutorials need."""

import importlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_sane"
DATA_SUFFIXES = {".py", ".md", ".typed", ".json", ".safetensors"}


@pytest.fixture(scope="module")
def tutorials():
    """The benchmark that runs tutorials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("tutorials")


@pytest.fixture(scope="module")
def wheel(tutorials, tmp_path_factory):
    with zipfile.ZipFile(tutorials.build_wheel(tmp_path_factory.mktemp("packaging"))) as archive:
        yield archive


def test_the_wheel_holds_every_source_and_data_file(wheel):
    expected = {
        f"hf_sane/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix in DATA_SUFFIXES
    }
    assert len(expected) > 50
    assert expected <= set(wheel.namelist())
    # Experiments and benchmarks stay in the repository.
    assert {name.partition("/")[0].partition("-")[0] for name in wheel.namelist()} == {"hf_sane"}


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


def test_the_tutorials_run_with_the_wheel_in_empty_folders(wheel, tutorials, fresh_python, tmp_path):
    wheel.extractall(tmp_path / "released")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    arguments = (tmp_path / "released", *tutorials.PAGES)
    (tmp_path / "pages").mkdir()
    printed = fresh_python(tutorials.PROGRAM, *arguments, env=environment, cwd=tmp_path / "pages")
    ended = json.loads(printed.splitlines()[-1])
    assert ended.keys() == {page.stem for page in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert {"3. Encode, embed and rebuild a network"} <= ended["first_steps"].keys()
    assert {"5. Sample new networks, and load them"} <= ended["your_networks"].keys()


def test_make_demo_leaves_the_checkout_clean():
    """The demo gets one path to write to, which git ignores: no file of the repository is handed to it."""
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (command,) = (line for line in recipe.splitlines() if " demo " in line)
    paths = [word for word in command.partition(" demo ")[2].split() if not word.startswith("--")]
    assert paths == ["demo_output"]
    assert "/demo_output/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
