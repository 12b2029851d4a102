"""The built wheel holds everything that runs: templates, the typing marker, what tutorials need."""

import ast
import importlib
import json
import os
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_sane"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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
    assert "hf-sane = hf_sane.cli.entry:main" in entry_points
    assert not [name for name in wheel.namelist() if name.startswith("tests/")]


def test_readme_and_tutorials_run_with_the_wheel_in_empty_folders(wheel, tutorials, fresh_python, tmp_path):
    wheel.extractall(tmp_path / "released")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    arguments = (tmp_path / "released", ROOT / "README.md", *tutorials.PAGES)
    (tmp_path / "pages").mkdir()
    printed = fresh_python(tutorials.PROGRAM, *arguments, env=environment, cwd=tmp_path / "pages")
    ended = json.loads(printed.splitlines()[-1])
    assert ended.keys() == {"README", *(page.stem for page in (ROOT / "docs" / "tutorials").glob("*.md"))}
    assert ended["README"].keys() == {"Quick start", "Train your own"}
    assert {"3. Encode, embed and rebuild a network"} <= ended["first_steps"].keys()
    assert {"5. Sample new networks, and load them"} <= ended["your_networks"].keys()


def test_make_demo_leaves_the_checkout_clean():
    """The demo gets one path to write to, which git ignores: no file of the repository is handed to it."""
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (command,) = (line for line in recipe.splitlines() if " demo " in line)
    paths = [word for word in command.partition(" demo ")[2].split() if not word.startswith("--")]
    assert paths == ["demo_output"]
    assert "/demo_output/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_workflow_runs_what_exists_on_the_versions_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [command.split()[1] for command in commands if command.startswith("make ")]
    assert sorted(targets) == ["demo", "test"]
    assert all(f"\n{target}: " in makefile for target in targets)
    sessions = [
        node.name
        for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    assert workflow["jobs"]["versions"]["strategy"]["matrix"]["session"] == sessions[:2]  # the third: Pythons
    assert min(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == PROJECT["requires-python"].strip(">=")


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]


def test_the_source_distribution_builds_the_package_and_its_tests(tmp_path):
    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(built) as archive:
        names = {member.partition("/")[2] for member in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src/hf_sane/__init__.py"} <= names
    assert "tests/test_packaging.py" in names
    assert not [name for name in names if name.startswith(("demo_output/", ".venv/", "site/"))]
    assert Path(built).stat().st_size < 40e6
