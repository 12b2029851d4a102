"""The paper index names code and tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reference" / "paper_index.md").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`([a-z_]+/[a-z_]+\.py): ([A-Za-z_0-9]+)`", TEXT)))
TESTS = sorted(set(re.findall(r"`([a-z]+/test_[a-z_]+\.py)(?:::(test_[a-z_0-9]+))?`", TEXT)))


def defined(path):
    """Names of the top-level functions and classes of a file."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def test_the_index_is_full():
    assert len(CODE) > 40
    assert len(TESTS) > 30


@pytest.mark.parametrize(("file", "name"), CODE, ids=lambda value: value)
def test_code_exists(file, name):
    assert name in defined(ROOT / "src" / "hf_sane" / file)


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
