"""All text keeps to the line length of the code, and pages of the documentation are of one kind each."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE_LENGTH = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["line-length"]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = ["CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "CITATION.cff", "Makefile", "pyproject.toml", "mkdocs.yml"]
SOURCES = ("src", "scripts", "experiments", "benchmarks", "tests", "configs")
CODE = [
    *(ROOT / name for name in OTHERS),
    *(
        path
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".js", ".html", ".md", ".yaml", ".toml"} and "pretrained" not in path.parts
    ),
]
ONE_LINE = re.compile(r"\s*(\||#|!\[|\S+$)")  # table rows, headings, pictures, and words without a space, such as URLs


def long_lines(text):
    """Numbers of the lines that are too long and could be wrapped."""
    return [
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > LINE_LENGTH and not ONE_LINE.match(line)
    ]


def test_long_lines_are_found():
    long = "a word " * 20
    assert long_lines(f"short\n{long}\n- {long}\n") == [2, 3]
    assert not long_lines(f"| {long} |\n# {long}\nhttps://example.com/{'x' * 120}\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_a_page_are_short(page):
    assert not long_lines(page.read_text(encoding="utf-8"))


def test_lines_of_code_and_templates_are_short():
    """Here, only rows of Markdown tables cannot be wrapped, and addresses."""
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in CODE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > LINE_LENGTH and not (path.suffix == ".md" and line.startswith("| ")) and "https://" not in line
    ]
    assert len(CODE) > 500
    assert long == []


def test_there_is_one_folder_for_each_kind_of_page():
    folders = {page.parent.name for page in PAGES if page.parent.parent == ROOT / "docs"}
    assert folders == {"tutorials", "how-to", "explanation", "reference", "results"}
    # The plan of the house and the list of all pages are of no kind.
    assert [page.name for page in PAGES if page.parent == ROOT / "docs"] == ["architecture.md", "index.md"]


def test_generated_blocks_are_on_pages_of_results_and_tell_how_long_tutorials_take():
    generated = {page.parent.name for page in PAGES if re.search(r"<!-- \w+:start -->", page.read_text("utf-8"))}
    assert generated == {"results", "tutorials", ROOT.name}  # and the README


GENERATED = re.compile(r"<!-- (\w+):start -->.*?<!-- \1:end -->|^```.*?^```", re.DOTALL | re.MULTILINE)
DURATION = re.compile(r"\b\d[\d.,]* (?:s|ms|seconds?|minutes?|hours?)\b")


def test_a_duration_by_hand_is_found():
    assert DURATION.search("The map is drawn in 0.03 s, on one core.")
    assert not DURATION.search(GENERATED.sub("", "<!-- timing:start -->\nIt took 52 s.\n<!-- timing:end -->"))


@pytest.mark.parametrize("folder", ["tutorials", "how-to", "explanation"])
def test_durations_on_pages_come_from_records(folder):
    """Those of other pages are on the page of a result or, for programs, settings."""
    for page in sorted((ROOT / "docs" / folder).glob("*.md")):
        assert not DURATION.findall(GENERATED.sub("", page.read_text(encoding="utf-8"))), page
