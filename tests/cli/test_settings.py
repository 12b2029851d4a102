"""Options from a dataclass: every kind of field, only what was given, errors of the command line."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from hf_sane.cli.settings import PASS_THROUGH, extra_option, run_with_settings
from hf_sane.training.settings import PretrainSettings
from hf_sane.zoo.building.settings import ZooSettings


@dataclass(kw_only=True)
class Settings:
    """Settings of a test.

    Attributes:
        rate, maybe: Said in the docstring,
            on two lines.
        count: Not shown: the field has a help text of its own.

    Raises:
        ValueError: Never.
    """

    required: list[str] = field(metadata={"help": "Needed."})
    count: int = field(default=3, metadata={"help": "How many."})
    rate: float = 0.5
    maybe: int | None = None
    choice: Literal["a", "b"] = "a"
    switch: bool = True
    numbers: list[int] = field(default_factory=lambda: [1, 2])
    bounds: list[float] | None = None
    model: dict[str, Any] | str | None = None


def run(*arguments, exit_code=0):
    """Run a program with [`Settings`] as options; returns what was given, or what was printed."""
    given = []
    app = typer.Typer()

    @app.callback()
    def group():
        pass

    @app.command("verb", **PASS_THROUGH)
    def verb(ctx: typer.Context):
        """Do it."""
        extra = [extra_option("where", str, "A place.", default="here")]
        run_with_settings(
            ctx, Settings, lambda chosen, *, where: given.append((chosen, where)), extra=extra, aliases={"maybe": "-m"}
        )

    result = CliRunner().invoke(app, ["verb", *arguments])
    assert result.exit_code == exit_code, result.output
    return given[0] if given else result.output


def test_only_what_was_given_is_passed_on():
    assert run("--required", "x") == ({"required": ["x"]}, "here")


def test_every_kind_of_field():
    chosen, where = run(
        *("--required", "x, y", "--count", "4", "--rate", "1", "--maybe", "5", "--choice", "b", "--no-switch"),
        *("--numbers", "7,8", "--bounds", "0,1e-3", "--model", '{"a": 1}', "--where", "there"),
    )
    expected = {
        "required": ["x", "y"],
        "count": 4,
        "rate": 1.0,
        "maybe": 5,
        "choice": "b",
        "switch": False,
        "numbers": [7, 8],
        "bounds": [0.0, 0.001],
        "model": '{"a": 1}',
    }
    assert chosen == expected
    assert {name: type(value) for name, value in chosen.items()} == {n: type(v) for n, v in expected.items()}
    assert where == "there"


def test_an_empty_list_and_a_second_name():
    assert run("--required", "x", "--numbers", "", "-m", "2")[0] == {"required": ["x"], "numbers": [], "maybe": 2}


def test_help_shows_texts_and_defaults():
    output = " ".join(run("--help").split())
    texts = (
        "Do it.",
        "Needed.",
        "How many. [default: 3]",
        "[default: 1,2]",
        "[default: on]",
        "[required]",
        "A place.",
    )
    assert [text for text in texts if text not in output] == []
    assert output.count("Said in the docstring, on two lines.") == 2
    assert "Not shown" not in output
    assert "Never" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--required'"),
        (("--required", "x", "--count", "many"), "Invalid value for '--count'"),
        (("--required", "x", "--choice", "c"), "Invalid value for '--choice'"),
        (("--required", "x", "--numbers", "1,two"), "Invalid value for '--numbers'"),
        (("--required", "x", "--counts", "1"), "No such option"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    assert message in run(*arguments, exit_code=2)


@pytest.mark.parametrize("settings", [PretrainSettings, ZooSettings], ids=lambda settings: settings.__name__)
def test_the_librarys_settings_become_options(settings, capsys):
    app = typer.Typer()
    app.callback()(lambda: None)

    @app.command("verb", **PASS_THROUGH)
    def verb(ctx: typer.Context):
        run_with_settings(ctx, settings, lambda chosen: None)

    output = CliRunner().invoke(app, ["verb", "--help"]).output
    names = [entry.name for entry in fields(settings)]
    assert len(names) > 20
    assert all(f"--{name.replace('_', '-')}" in output for name in names)
