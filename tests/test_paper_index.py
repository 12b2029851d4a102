"""The paper index names code and tests that exist."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import hf_sane.core
from hf_sane.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reference" / "paper_index.md").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`(hf_sane\.[\w.]+)`", TEXT)))
SETTINGS = sorted(set(re.findall(r"`hf_sane[\w.]+`, with `(\w+)|`hf_sane[^|]+ and `(\w+)` \|", TEXT)))
API = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`([a-z]+/test_[a-z_]+\.py)(?:::(test_[a-z_0-9]+))?`", TEXT)))


def defined(path):
    """Names of the top-level functions and classes of a file."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def test_the_index_is_full():
    assert len(CODE) > 30
    assert len(SETTINGS) > 12
    assert len(TESTS) > 30
    assert TEXT.count("::test_") == len(re.findall(r"`[a-z]+/test_[a-z_]+\.py::test_[a-z_0-9]+`", TEXT))


@pytest.mark.parametrize("name", CODE)
def test_public_names_are_in_the_reference(name):
    assert f"\n::: {name}\n" in API


@pytest.mark.parametrize("names", SETTINGS, ids="".join)
def test_settings_exist(names):
    settings = [verb.load()[0] for verb in VERBS] + [hf_sane.core.Layout]
    assert "".join(names) in {field.name for kind in settings for field in fields(kind)}


@pytest.mark.parametrize(("file", "name"), TESTS, ids=lambda value: value)
def test_tests_exist(file, name):
    names = defined(ROOT / "tests" / file)
    assert name in names if name else any(found.startswith("test_") for found in names)


def test_settings_of_the_model_exist():
    from hf_sane import SANEConfig
    from hf_sane.training._settings import PretrainSettings

    objects = re.findall(r"model='(\{[^']*\})'", TEXT)
    assert objects
    for text in objects:
        assert PretrainSettings(zoo=["zoo"], output="run", model=text).model
        SANEConfig(**PretrainSettings(zoo=["zoo"], output="run", model=text).model)
