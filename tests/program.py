"""The program `hf-sane`, called in this process."""

from typer.testing import CliRunner, Result

from hf_sane.cli.app import app


def run_command(*arguments: object, exit_code: int = 0) -> Result:
    """Call `hf-sane` with arguments; `exit_code` is what it must end with."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result
