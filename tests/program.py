"""The program `hf-sane` and its options, read in this process."""

from collections.abc import Sequence
from typing import Any

from json_schemas import check_output
from typer.testing import CliRunner, Result

from hf_sane.cli.app import app
from hf_sane.workflows import command_line


def run_command(*arguments: object, exit_code: int = 0) -> Result:
    """Call `hf-sane` with arguments; `exit_code` is what it must end with. JSON must be as its schema says."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    if "--json" in words and exit_code in (0, 1):
        check_output(words, result.stdout)
    return result


def parse_settings(settings: type, argv: Sequence[str], *, name: str) -> Any:
    """Settings that a command line of a program gives, without a run."""
    outcome: list[Any] = []
    command_line._parse(settings, argv, name, lambda made, given: outcome.append(made))
    return outcome[0]
