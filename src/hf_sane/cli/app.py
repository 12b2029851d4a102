"""The program `hf-sane`: its commands and its error handling."""

import json
import re
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_sane.cli.verbs import VERBS, ZOO_VERBS, add_verb, plugin_verbs
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._errors import did_you_mean
from hf_sane.records._failures import EXIT_CODE, INTERRUPTED, describe_error, expected_errors
from hf_sane.records._interruptions import describe_interruption, noting_outputs

USAGE_ERROR: Any = typer.BadParameter.__base__  # of typer's own copy of click
NOT_ONE_OF = re.compile(r"'(?P<got>[^']*)' is not one of (?P<choices>.*)")


class Program(TyperGroup):
    """A group of verbs that reports what the user can mend in one line, and everything else with its traceback.

    With `--json`, errors are JSON too: `{"error": "..."}` on standard error.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; expected errors end the program with a message and exit code 2, unless `--debug` is given.

        An interruption (Ctrl-C, SIGINT) ends it with exit code 130 and a line that says what is kept.
        """
        as_json = "--json" in (*ctx._protected_args, *ctx.args)
        with noting_outputs() as outputs:
            try:
                return super().invoke(ctx)
            except USAGE_ERROR as error:
                error.message = _explain_choice(error.message)
                if not as_json:
                    raise
                _report(error.format_message(), as_json=True)
                raise typer.Exit(EXIT_CODE) from error
            except expected_errors() as error:
                if ctx.params.get("debug"):
                    raise
                _report(describe_error(error), as_json=as_json)
                raise typer.Exit(EXIT_CODE) from error
            except KeyboardInterrupt as interruption:
                typer.echo(err=True)
                _report(describe_interruption(interruption, outputs), as_json=as_json)
                raise typer.Exit(INTERRUPTED) from interruption


def _report(message: str, *, as_json: bool) -> None:
    typer.echo(json.dumps({"error": message}) if as_json else f"hf-sane: {message}", err=True)


def _explain_choice(message: str) -> str:
    """Add to the refusal of an option's value which one was probably meant."""
    message = message.replace("Value error, ", "")
    if found := NOT_ONE_OF.search(message):
        return message.rstrip(".") + (did_you_mean(found["got"], re.findall(r"'([^']*)'", found["choices"])) or ".")
    return message


app = typer.Typer(
    name="hf-sane",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
zoo_app = typer.Typer(no_args_is_help=True, help="Build, import, align, mix and show zoos of networks.")
app.add_typer(zoo_app, name="zoo")
for verb in VERBS:
    add_verb(app, verb)
for verb in ZOO_VERBS:
    add_verb(zoo_app, verb)


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Zoos of neural networks, SANE autoencoders over their weights, probing and sampling."""


def main() -> None:
    """Entry point of the console script."""
    tune_allocator()  # before PyTorch allocates anything
    for verb in plugin_verbs():
        add_verb(app, verb)
    app(prog_name="hf-sane")


__all__ = ["app", "main"]
