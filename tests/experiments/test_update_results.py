import json
from pathlib import Path

import pytest
import update_results

ROOT = Path(__file__).parents[2]


def test_pages_say_what_the_records_say():
    assert update_results.main(["--check"]) == 0


def test_pages_of_results_hold_what_records_say():
    """Pages without a block that is written from records are explanations."""
    pages = sorted((ROOT / "docs" / "results").glob("*.md"))
    assert len(pages) > 15
    assert [page.name for page in pages if ":start -->" not in page.read_text(encoding="utf-8")] == []
    assert not (ROOT / "docs" / "results" / "first_hours.md").exists()


def test_an_outdated_page_is_found_and_written(tmp_path, monkeypatch, capsys):
    for name in ("README.md", "docs", "runs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").unlink()
    text = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| anchors (trained networks) |", "| anchors (invented) |"))
    monkeypatch.setattr(update_results, "ROOT", tmp_path)
    assert update_results.main(["--check"]) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert update_results.main([]) == 0
    assert (tmp_path / "README.md").read_text() == text


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="docs/page.md lacks the markers <!-- demo:start -->"):
        update_results.replaced("nothing", "docs/page.md", "demo", "table")


def test_records_name_no_place_of_the_machine_that_they_were_made_on():
    """Commands can be repeated elsewhere: their paths are relative."""
    records = list((ROOT / "runs").rglob("*.json"))
    assert len(records) > 50
    found = {}
    for path in records:
        command = json.loads(path.read_text(encoding="utf-8")).get("command", "")
        if absolute := [part for part in command.split() if part.startswith("/") or "=/" in part]:
            found[path.name] = absolute
    assert not found
