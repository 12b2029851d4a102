"""Every Python fence of the docs runs, in an empty folder and without network."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_sane.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(page):
    """Python fences of a page, with the line they start in."""
    found = re.finditer(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [(page.read_text(encoding="utf-8")[: match.start()].count("\n") + 2, match.group(1)) for match in found]


def test_there_is_something_to_run():
    assert fences(ROOT / "README.md")


# In processes of their own: plug-ins by tests/plugins, README and tutorials with the wheel by tests/test_packaging.py.
IN_PROCESSES = (ROOT / "README.md", ROOT / "docs" / "architecture.md", *(ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if fences(page) and page not in IN_PROCESSES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_fences_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for line, code in fences(page):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)  # errors name the line of the page


def shell_commands():
    """Calls of `hf-sane` in shell fences of all pages: page name and arguments."""
    for page in PAGES:
        for block in re.findall(
            r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("hf-sane "):
                    words = shlex.split(line, comments=True)[1:]
                    yield page.name, words[: words.index("|")] if "|" in words else words


@pytest.mark.parametrize(
    ("page", "arguments"),
    list(shell_commands()),
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_shell_commands_use_options_that_exist(page, arguments):
    verb = arguments[: 2 if arguments[0] == "zoo" else 1]
    output = CliRunner().invoke(app, [*verb, "--help"]).output
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", output))
    assert {option.partition("=")[0] for option in arguments if option.startswith("-")} <= known, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_of_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
