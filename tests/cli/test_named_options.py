"""Remedies in messages of a verb name options that this verb has."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import hf_sane
from hf_sane.cli.verbs import VERBS, ZOO_VERBS

WORKFLOWS = Path(hf_sane.__file__).parent / "workflows"
SHARED = {"--config", "--json", "--quiet", "--help"}
# Options of other verbs and programs, which the texts name together with these.
OF_OTHERS = {
    "doctor": {"onnx", "refine-method"},  # start --onnx, sample --refine-method
    "explore": {"repo-type", "public", "space"},  # hf upload
    "structure": {"split-shares"},  # zoo import
    "push": {"allow-pickle", "public"},
    "pull": {"public"},
}


def named_options(path: Path) -> set[str]:
    """Options that the texts of a file name, such as `--zoo` in "pass a zoo (--zoo)"; not those of former versions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    former = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "formerly"
        for inner in ast.walk(node)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in former
    ]
    return {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)} - SHARED


@pytest.mark.parametrize("verb", [*VERBS, *ZOO_VERBS], ids=lambda verb: verb.name)
def test_messages_name_options_of_their_verb(verb):
    path = WORKFLOWS / f"{verb.workflow.replace('.', '/')}.py"
    known = OF_OTHERS.get(verb.name, set()) | {entry.name.replace("_", "-") for entry in fields(verb.load()[0])}
    options = {option.removeprefix("--").removeprefix("no-") for option in named_options(path)}
    assert options <= known


def test_there_are_options_to_check():
    assert "--sane" in named_options(WORKFLOWS / "start.py")
