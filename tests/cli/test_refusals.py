"""Every choice of every verb refuses what it does not know with what it knows; with `--json`, errors are JSON."""

import json
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from hf_sane.cli.app import app
from hf_sane.cli.verbs import VERBS as DOORS
from hf_sane.cli.verbs import ZOO_VERBS
from hf_sane.records._failures import describe_error
from hf_sane.records._settings import option_name
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo.windows._windows import VIEWS


def verbs(command, path=()):
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from verbs(inner, (*path, name))
        else:
            yield (*path, name), inner


VERBS = dict(verbs(typer.main.get_command(app)))


def choices_of(kind):
    """Of a `Literal`, however it is wrapped."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((found for part in get_args(kind) if (found := choices_of(part))), ())


CHOICES = [
    (path, option.opts[0], choices)
    for path, command in VERBS.items()
    for option in command.params
    if (choices := choices_of(option.type_descriptor.annotation)) and option.opts[0].startswith("--")
]
OF_DOORS = {(verb.name,): verb for verb in DOORS} | {("zoo", verb.name): verb for verb in ZOO_VERBS}
SETTINGS = [
    (path, "" if entry.metadata["positional"] else option_name(entry), choices_of(entry.type))
    for path, verb in OF_DOORS.items()
    for entry in fields(verb.load()[0])
    if choices_of(entry.type)
]
JSON_VERBS = [*OF_DOORS]
JSON_VERBS += [path for path, command in VERBS.items() if any("--json" in option.opts for option in command.params)]


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def misspelt(choice):
    return choice[:1] + choice[1:].replace(choice[1], "", 1) + "x" if len(choice) > 2 else choice + "x"


def test_the_search_finds_options():
    assert len(CHOICES) + len(SETTINGS) >= 20
    assert {("info",), ("analyze",), ("zoo", "show")} <= set(JSON_VERBS)


@pytest.mark.parametrize(("path", "option", "choices"), [*CHOICES, *SETTINGS], ids=lambda value: "-".join(value))
def test_a_wrong_choice_says_what_is_right(path, option, choices):
    wrong = misspelt(choices[0])
    refused = invoke(*path, *filter(None, [option]), wrong)
    assert refused.exit_code == 2
    assert wrong in refused.stderr
    assert all(f"'{choice}'" in refused.stderr for choice in choices), refused.stderr
    assert "did you mean '" in refused.stderr
    assert "validator" not in refused.stderr
    assert "Error:" not in refused.stderr.replace("\nError: Invalid value", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pretrain", "--zoo", "x", "--output", "y", "--views", "alligned"), "did you mean 'aligned'?"),
        (("pretrain", "--zoo", "x", "--output", "y", "--views", "original,alligned"), "did you mean 'aligned'?"),
        (("zoo", "build", "--output", "y", "--optimizers", "adm"), "did you mean 'adam'?"),
    ],
)
def test_lists_of_choices_too(arguments, said):
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("hf-sane: expected ")
    assert said in refused.stderr
    assert "validat" not in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_python_gets_the_choices_too():
    with pytest.raises(Exception, match="views") as raised:
        PretrainSettings(zoo=["x"], output="y", views=["permutted"])
    assert describe_error(raised.value) == (
        f"expected views to be one or two of {', '.join(map(repr, VIEWS))}, got ['permutted']; did you mean "
        "'permuted'?"
    )
    with pytest.raises(Exception, match="second_network") as raised:
        PretrainSettings(zoo=["x"], output="y", second_network="same_rum")
    said = describe_error(raised.value)
    assert said.startswith("expected second_network to be one of 'same'")
    assert said.endswith("got 'same_rum'; did you mean 'same_run'?")


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        *((path, arguments) for path in JSON_VERBS for arguments in (("no/such/thing",), ("--no-such-option",))),
        *((path, ()) for path in JSON_VERBS if path not in (("demo",), ("doctor",))),  # which need none
    ],
    ids=lambda value: "-".join(value) or "none",
)
def test_errors_of_json_verbs_are_json(path, arguments):
    refused = invoke(*path, *arguments, "--json")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    answer = json.loads(refused.stderr)
    assert answer.keys() == {"error", "exit_code"}
    assert answer["exit_code"] == 2
    assert len(answer["error"]) > 20


def test_damaged_files_are_json_errors_too(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    for verb in (("info",), ("analyze",)):
        refused = invoke(*verb, tmp_path / "model.safetensors", "--json")
        assert refused.exit_code == 2
        assert "model.safetensors" in json.loads(refused.stderr)["error"]
