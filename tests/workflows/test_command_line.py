"""Options from a settings dataclass: every kind of field, only what was given, old spellings, errors."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import typer

from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import option_name, setting
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.command_line import OLD_SPELLINGS_END, run_workflow
from hf_sane.workflows.probe import ProbeSettings
from hf_sane.workflows.results import Result, Table
from hf_sane.workflows.soup import SoupSettings

USAGE_ERROR: Any = typer.BadParameter.__base__


@dataclass(kw_only=True)
class Inherited:
    """Base."""

    halo_size: int = setting("Context.", default=0)


@dataclass(kw_only=True)
class Settings(Inherited):
    """Settings of a test."""

    needed: str = setting("Needed.", formerly="--required")
    output: Path | None = setting("A place.", default=None, short="-o", formerly="--output_dir")
    num_models: int = setting("How many.", default=3)
    rate: float = setting("How fast.", default=0.5)
    choice: Literal["a", "b"] = setting("One of two.", default="a")
    switch: bool = setting("On or off.", default=True)
    maybe: bool | None = setting("On, off or chosen.", default=None)
    numbers: list[int] = setting("Several.", factory=lambda: [1, 2])
    paths: list[str] = setting("Places.", factory=list, split=False)
    model: dict[str, Any] | str | None = setting("As JSON.", default=None)
    callback: Any = setting("Not on the command line.", default=None, only_python=True)


@dataclass(kw_only=True)
class FilesSettings:
    """Settings with an argument that has no name."""

    files: list[str] = setting("Files.", positional=True)
    which: str | None = setting("Which.", default=None)


@dataclass(kw_only=True)
class Told(Result):
    """What a test workflow found."""

    settings: Any

    def tables(self):
        return [Table(("name", "value"), [["rate", 0.5], ["[bold]", None]], title="Found")]


def run(*argv, settings=Settings):
    """Settings that a command line gives."""

    def workflow(given):
        """Do it.

        Args:
            given: Settings.
        """
        return Told(record=RunRecord(command="x", results={"rate": 1.5}), notes=["left out: 1"], settings=given)

    return run_workflow(settings, workflow, [str(word) for word in argv], name="hf-sane verb").settings


def changed(*argv):
    """Fields that differ from the defaults."""
    found, default = run("--needed", "x", *argv), Settings(needed="x")
    return {name: value for name, value in vars(found).items() if value != getattr(default, name)}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {}),
        (("-o", "here"), {"output": Path("here")}),
        (("--num-models", 5, "--rate", "1e-3", "--halo-size", 2), {"num_models": 5, "rate": 1e-3, "halo_size": 2}),
        (("--no-switch", "--maybe"), {"switch": False, "maybe": True}),
        (("--no-maybe",), {"maybe": False}),
        (("--numbers", "3,4"), {"numbers": [3, 4]}),
        (("--numbers", 3, "--numbers", "4,5"), {"numbers": [3, 4, 5]}),
        (("--paths", "a,b", "--paths", "c"), {"paths": ["a,b", "c"]}),
        (("--model", '{"a": 1}', "--choice", "b"), {"model": '{"a": 1}', "choice": "b"}),
    ],
)
def test_options_become_fields(argv, expected, capsys):
    assert changed(*argv) == expected
    assert "old spelling" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected", "note"),
    [
        (("--num_models", 5), {"num_models": 5}, "--num_models is now --num-models"),
        (("--num_models=5",), {"num_models": 5}, "--num_models is now --num-models"),
        (("--output_dir", "x"), {"output": Path("x")}, "--output_dir is now --output"),
        (("--output-dir", "x"), {"output": Path("x")}, "--output-dir is now --output"),
        (("--switch", "False"), {"switch": False}, "--switch False is now --no-switch"),
        (("--no_maybe",), {"maybe": False}, "--no_maybe is now --no-maybe"),
        (("--numbers", 3, 4, "--rate", 1), {"numbers": [3, 4], "rate": 1.0}, "--numbers 3 4 is now --numbers 3,4"),
        (("--paths", "a", "b,c"), {"paths": ["a", "b,c"]}, "repeat --paths"),
    ],
)
def test_old_spellings_work_and_say_what_to_use(argv, expected, note, capsys):
    assert changed(*argv) == expected
    assert f"hf-sane verb: {note}; the old spelling works until version {OLD_SPELLINGS_END}" in capsys.readouterr().err


def test_arguments_without_a_name_keep_their_commas():
    assert run("a,b", "c", "--which", "d", settings=FilesSettings) == FilesSettings(files=["a,b", "c"], which="d")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--needed", "x", "--choice", "c"), "'c' is not one of 'a', 'b'"),
        (("--needed", "x", "--numbers", "1,b"), "expected integers separated by commas, got 'b'"),
        (("--needed", "x", "--callback", "y"), "No such option: --callback"),
        ((), "Missing option '--needed'"),
    ],
)
def test_wrong_use_is_refused(argv, message):
    with pytest.raises(USAGE_ERROR) as refused:
        run(*argv)
    assert message in refused.value.format_message()


def test_the_result_is_printed_or_told_as_json(capsys):
    run("--needed", "x")
    told = capsys.readouterr()
    assert told.out.splitlines() == ["Found", "name    value", "rate      0.5", "[bold]      -"]
    assert told.err == "left out: 1\n"
    run("--needed", "x", "--json")
    assert capsys.readouterr().out == '{\n  "rate": 1.5,\n  "notes": [\n    "left out: 1"\n  ]\n}\n'


def test_help_shows_own_options_first_with_defaults(capsys):
    with pytest.raises((SystemExit, typer.Exit)):
        run("--help")
    shown = capsys.readouterr().out
    assert "Do it." in shown
    assert "Args:" not in shown
    assert shown.index("--needed") < shown.index("--halo-size")
    assert "How many.  [default: 3]" in " ".join(shown.split()).replace("How many. [", "How many.  [")


def test_one_spelling_everywhere():
    """The same idea is the same option of every verb, and Python takes what the command line takes."""
    entries = [entry for verb in (*VERBS, *ZOO_VERBS) for entry in fields(verb.load()[0])]
    names = {option_name(entry) for entry in entries if not entry.metadata["positional"]}
    former = {old for entry in entries for old in entry.metadata["formerly"]}
    assert {"--bandwidths", "--num-kept", "--anchor-epoch", "--num-epochs", "--data", "--config"} <= former
    assert names & former == {"--zoo"}  # which is positional in the verbs of `hf-sane zoo`
    trained = PretrainSettings(zoo="zoo", output="run", epochs=2)
    assert trained == PretrainSettings(zoo="zoo", output="run", num_epochs=2)
    assert SoupSettings(ingredients="a", output=None, images="digits").data == "digits"
    assert ProbeSettings(sane="sane", zoo="zoo", zoo_config="mnist").config == "mnist"
    with pytest.raises(TypeError, match="unexpected keyword argument 'config'"):
        ProbeSettings(sane="sane", zoo="zoo", zoo_config="mnist", config="mnist")
