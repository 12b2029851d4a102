"""Run files: what a command line said comes back from its YAML, and nothing else is accepted."""

from dataclasses import dataclass, fields
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

import pytest
from program import parse_settings

from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._outputs import begin_folder, finish_folder, output_folder, resumable_folder
from hf_sane.records._run_files import RUN_FILE, leaving_run_file, read_run_file, run_file_text
from hf_sane.records._settings import CheckedSettings, setting

EXAMPLES = {f"hf-sane {verb.name}": verb for verb in VERBS}
EXAMPLES |= {f"hf-sane zoo {verb.name}": verb for verb in ZOO_VERBS}
TOKEN = "hf_" + "a" * 34


@dataclass(kw_only=True)
class Settings(CheckedSettings):
    """One field of every kind."""

    source: str | Path = setting("A place.", positional=True)
    output: Path | None = setting("Another.", default=None)
    rate: float = setting("A number.", default=1.0)
    count: int = setting("A whole number.", default=1)
    choice: Literal["no", "bf16"] = setting("One of two.", default="no")
    switch: bool = setting("On or off.", default=True)
    names: list[str] = setting("Several.", factory=list)
    widths: list[str | float] | str | float = setting("Numbers or names.", factory=list)
    model: dict[str, Any] | str | None = setting("An object.", default=None)
    judge: Any = setting("From Python.", default=None, only_python=True)

    def __post_init__(self):
        """All numbers will do."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_verb_is_repeated_from_its_example(name, tmp_path):
    """The example of the help is a command line of the verb, and its run file gives the same settings."""
    verb = EXAMPLES[name]
    settings, _ = verb.load()
    made = parse_settings(settings, verb.example.split(), name=name)
    path = tmp_path / RUN_FILE
    path.write_text(run_file_text(name, made))
    again = parse_settings(settings, ["--config", str(path)], name=name)
    assert again == made
    named = {
        entry.name for entry in fields(settings) if not entry.metadata["only_python"] and not entry.metadata["once"]
    }
    assert {name for name in named if getattr(made, name) is not None} == read_run_file(path, name, settings).keys()
    if "output" in named:
        moved = parse_settings(settings, [f"--config={path}", "--output", "elsewhere"], name=name)
        assert str(moved.output) == "elsewhere"


def test_values_that_yaml_takes_for_others(tmp_path):
    made = Settings(
        source="1e-3",
        output=Path("~/null"),
        rate=-inf,
        count=-3,
        names=["yes", "2026-01-01", "0x1F", "a: b # c", "è\n\u2028'\"", "", "~"],
        widths=["auto", 1e-7, 2],
        model={"depth": 3, "of": [None, True], "é": {"x": 1e300}},
        switch=False,
        judge=print,
    )
    path = tmp_path / RUN_FILE
    path.write_text(run_file_text("verb", made), encoding="utf-8")
    made.judge = None
    assert Settings(**read_run_file(path, "verb", Settings)) == made
    path.write_text(run_file_text("verb", Settings(source="a", rate=nan)))
    assert str(read_run_file(path, "verb", Settings)["rate"]) == "nan"


def test_what_people_write_by_hand(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("verb: verb\nsettings:\n  source: ./a zoo\n  choice: no\n  rate: 1e-3\n  names: [on]\n  output:\n")
    assert read_run_file(path, "verb", Settings) == {
        "source": "./a zoo",
        "choice": "no",
        "rate": 0.001,
        "names": ["on"],
    }


def test_tokens_are_not_kept():
    assert TOKEN not in run_file_text("verb", Settings(source=f"https://user:{TOKEN}@host/x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "verb: verb\nsettings: {sauce: a}",
            "settings of verb, got sauce; see verb --help; did you mean 'source'",
        ),
        ("verb: verb\nsettings: {count: 1.5}", "settings.count: expected a whole number, got 1.5; compare it with"),
        ("verb: verb\nsettings: {rate: fast}", "settings.rate: expected a number, got 'fast'"),
        ("verb: verb\nsettings: {switch: yes}", "settings.switch: expected true or false, got 'yes'"),
        ("verb: verb\nsettings: {choice: fp8}", "settings.choice: expected one of 'no', 'bf16', got 'fp8'"),
        ("verb: verb\nsettings: {names: [1]}", "settings.names[0]: expected text, got 1"),
        ("verb: verb\nsettings: {judge: a}", "expected settings of verb, got judge"),
        ("verb: other\nsettings: {}", "verb: expected 'verb', got 'other'; run: other --config"),
        ("verb: verb\nsettings: {}\nextra: 1", "expected the fields verb and settings alone, got extra"),
        ("verb: verb", "expected a field 'settings'"),
        ("verb: verb\nsettings: {count: 1, count: 2}", "the field 'count' is repeated"),
        ("- a list", "expected an object, got a list of 1"),
        ("a: [", "expected a run file (YAML with `verb` and `settings`)"),
        ("a: !!python/object:os.system x", "expected a run file"),
    ],
)
def test_what_is_no_run_file_is_refused(text, message, tmp_path):
    path = tmp_path / RUN_FILE
    path.write_text(text)
    with pytest.raises(InvalidFileError) as refused:
        read_run_file(path, "verb", Settings)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_a_missing_one_says_what_is_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match="--config takes the run.yaml beside an output"):
        read_run_file(tmp_path / RUN_FILE, "verb", Settings)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RUN_FILE).touch()
    with pytest.raises(FileNotFoundError, match=f"that of this zoo is {tmp_path / 'data' / RUN_FILE}"):
        read_run_file(tmp_path / RUN_FILE, "verb", Settings)


def test_it_lies_in_the_output_and_not_in_what_is_inside_of_it(tmp_path):
    """It is there from the beginning where a long job fills a folder."""

    def found():
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(RUN_FILE))

    with leaving_run_file("verb", Settings(source="a")):
        with resumable_folder(tmp_path / "run", "job") as folder:
            begin_folder(folder, "job")
            assert found() == ["run/run.yaml"]
            with output_folder(folder / "model", "model") as partial:
                (partial / "weights").touch()
            assert "run.yaml" in finish_folder(folder, "job").files
        with output_folder(tmp_path / "second", "job"):
            pass
    assert found() == ["run/run.yaml"]
    assert read_run_file(tmp_path / "run/run.yaml", "verb", Settings)["source"] == "a"
    with output_folder(tmp_path / "from python", "job"):
        pass
    assert found() == ["run/run.yaml"]
