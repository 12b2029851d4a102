"""The program `hf-sane`, called in this process."""

from json_schemas import check_output
from typer.testing import CliRunner, Result

from hf_sane.cli.app import app


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
