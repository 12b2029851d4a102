"""Bars of long work: on a terminal after two seconds, with rate and remaining time; none when it shall be quiet."""

import io
import logging
import re
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

import hf_sane
from hf_sane.records import _progress
from hf_sane.records._progress import announce, keeping_warnings, progress, quietly, tracked
from hf_sane.workflows.command_line import hide_loading_bars
from hf_sane.zoo._writing import remove_networks

PACKAGE = Path(hf_sane.__file__).parent


class Terminal(io.StringIO):
    """What a terminal was told."""

    def isatty(self):
        """As it is."""
        return True


@pytest.fixture(autouse=True)
def without_delay(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 1e-9)


def work():
    """Something long; gives what a terminal shows of it."""
    with redirect_stderr(Terminal()) as terminal:
        announce("--- a stage")
        with progress(total=30_000, desc="reading", unit="token") as bar:
            for _ in tracked(range(3), desc="training", unit="epoch"):
                bar.update(10_000)
                bar.refresh()
    return terminal.getvalue()


def test_a_bar_tells_how_far_how_fast_and_how_long():
    told = work()
    assert told.startswith("--- a stage\n")
    assert re.search(r"reading: +67%\|.+\| 20\.0k/30\.0k \[\d\d:\d\d<\d\d:\d\d, .*token/s\]", told)


def test_short_work_shows_no_bar(monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 600.0)
    with redirect_stderr(Terminal()) as terminal:
        assert list(tracked(range(3), desc="training", unit="epoch")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_quiet_work_shows_nothing_of_downloads_neither():
    warnings = []
    enable_progress_bars()
    hide_loading_bars()
    assert not are_progress_bars_disabled()
    with quietly(), keeping_warnings(warnings):
        assert work() == ""
        assert are_progress_bars_disabled()
        logging.getLogger("hf_sane.some.module").warning("%d images left out", 3)
    assert warnings == ["3 images left out"]
    assert not are_progress_bars_disabled()
    with quietly(), quietly(is_quiet=False):
        assert work() == ""


def test_no_other_module_makes_bars():
    makers = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"(from|import) tqdm", path.read_text())}
    assert makers == {"_progress.py"}


def test_removing_what_an_import_has_read_shows_a_bar(tmp_path, monkeypatch):
    """Silence of ten seconds, for thousands of networks, looks as if the import hung."""
    monkeypatch.setattr(_progress, "DELAY", 0.0)  # shown at once
    for name in ("a", "b"):
        for index in range(5):
            file = tmp_path / ".import" / name / f"{index}" / "network.safetensors"
            file.parent.mkdir(parents=True)
            file.touch()
    for name in ("a", "b"):
        with redirect_stderr(Terminal()) as terminal:
            remove_networks(tmp_path, name)
        assert re.search(r"remove what was read: .* [0-5]/5 ", terminal.getvalue())
        assert not (tmp_path / ".import" / name).exists()
        assert (tmp_path / ".import").exists() == (name == "a")
