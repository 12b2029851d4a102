"""Notebooks: valid, without outputs or traces of a machine, and of public names alone; `make notebooks` runs them."""

import ast
import json
from pathlib import Path

import pytest

import hf_sane

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names_of(code):
    """Attributes of `hf_sane` that code uses, and modules of it that it imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_sane":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sane"):
            yield f"{node.module} in an import"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hf_sane."))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_uses_what_there_is(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    lines = "".join("".join(cell["source"]) + "\n" for cell in code)
    used = list(names_of(lines))
    assert used
    assert [name for name in used if not hasattr(hf_sane, name)] == []
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert [line for line in text.splitlines() if len(line) > 119] == []
    for link in [part.partition(")")[0] for part in text.replace("\n", " ").split("](")[1:]]:
        assert (path.parent / link).is_file(), link


def test_there_is_one_for_each_kind_of_person():
    assert [path.stem for path in NOTEBOOKS] == ["map_a_zoo", "screen_checkpoints", "start_from_images"]
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if path.name not in index] == []
