"""The house rule, enforced: a floor imports only from floors below it, and nothing is too tall."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "hf_sane"
FLOORS = {
    "records": 0,
    "core": 1,
    "models": 2,
    "tokenization": 3,
    "architectures": 3,
    "symmetry": 4,
    "networks": 5,
    "zoo": 6,
    "training": 7,
    "sampling": 7,
    "probing": 7,
    "analysis": 7,
    "merging": 7,
    "hub": 8,
    "workflows": 10,
    "cli": 11,
}
REMOTE_CODE = {"models", "architectures"}  # these files travel to the Hub: siblings only, relatively
MAX_LINES = 600  # a hint, with room: a file has one subject, however long that is within reason
MAX_FUNCTION_LINES = 80
FILES = sorted(PACKAGE.rglob("*.py"))


def internal_imports(path: Path) -> set[str]:
    """Sub-packages of `hf_sane` that `path` imports anywhere, function bodies and type-checking blocks included."""
    found = set()
    room = path.relative_to(PACKAGE).parts[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert room in REMOTE_CODE, f"{path}:{node.lineno}: relative import outside the remote-code folders"
            assert node.level == 1, f"{path}:{node.lineno}: remote code imports siblings only"
            continue
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module != "hf_sane" else [f"hf_sane.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name and name.startswith("hf_sane.")}
    return found


def test_every_floor_is_on_the_plan():
    assert {p.relative_to(PACKAGE).parts[0] for p in FILES if p.parent != PACKAGE} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).parts[0]
    if here in FLOORS:  # hf_sane/__init__.py sits on the roof and may import every floor
        for there in internal_imports(path) - {here}:
            assert FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) must not import {there}"
            assert here not in REMOTE_CODE, f"{path}: remote code must be self-contained, imports hf_sane.{there}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body_start = node.body[0]
            has_docstring = isinstance(body_start, ast.Expr) and isinstance(body_start.value, ast.Constant)
            first = body_start.end_lineno if has_docstring else node.lineno
            length = (node.end_lineno or 0) - (first or 0)
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_no_module_disables_strict_validation():
    """`from __future__ import annotations` silently switches `@strict` configuration checks off."""
    assert FILES
    for path in FILES:
        assert "from __future__ import annotations" not in path.read_text(), path
