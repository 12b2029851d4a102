import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    spec = importlib.util.spec_from_file_location("update_results", ROOT / "experiments" / "update_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_say_what_the_records_say(script):
    assert script.main(["--check"]) == 0


def test_an_outdated_page_is_found_and_written(script, tmp_path, monkeypatch, capsys):
    for name in ("README.md", "docs", "runs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").unlink()
    text = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| anchors (trained networks) |", "| anchors (invented) |"))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(["--check"]) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert script.main([]) == 0
    assert (tmp_path / "README.md").read_text() == text


def test_a_page_without_markers_is_refused(script):
    with pytest.raises(ValueError, match="docs/page.md lacks the markers <!-- demo:start -->"):
        script.replaced("nothing", "docs/page.md", "demo", "table")
