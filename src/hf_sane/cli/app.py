"""The program `hf-sane`: its commands and its error handling."""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import hf_sane
from hf_sane.cli._interruptions import heed_interruptions
from hf_sane.cli.verbs import GROUPS, VERBS, ZOO_VERBS, add_verb, plugin_verbs
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._command import running
from hf_sane.records._errors import did_you_mean
from hf_sane.records._failures import EXIT_CODE, print_error, reporting

PROGRAM, JSON = "hf-sane", "--json"
USAGE_ERROR: Any = typer.BadParameter.__base__  # from typer's own copy of click
NOT_ONE_OF = re.compile(r"'(?P<got>[^']*)' is not one of (?P<choices>.*)")


class Program(TyperGroup):
    """A group of verbs that reports errors of the user in one line, and all others with their traceback.

    With `--json`, errors are JSON objects on standard error: `{"error": "...", "exit_code": 2}`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the program's own options, some of which print, such as `--help`."""
        with reporting(PROGRAM, as_json=JSON in args, debug="--debug" in args), _refusing(args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; expected errors end the program with a message and exit code 2, unless `--debug` is given.

        An interruption (Ctrl-C, SIGINT) ends it with exit code 130 and a message about the saved state.
        """
        words = [*ctx._protected_args, *ctx.args]
        debug = ctx.params.get("debug", False)
        with running([PROGRAM, *words]), reporting(PROGRAM, as_json=JSON in words, debug=debug), _refusing(words):
            heed_interruptions()
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List all verbs, including those of `zoo`, by purpose."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        doors: dict[str, Any]
        for name, command in self.commands.items():
            inner = getattr(command, "commands", None)
            doors = {name: command} if inner is None else {f"{name} {verb}": door for verb, door in inner.items()}
            for verb, door in doors.items():
                groups.setdefault(door.rich_help_panel, []).append((verb, door.help))
        for group, verbs in groups.items():
            with formatter.section(group):
                formatter.write_dl(verbs)


@contextmanager
def _refusing(words: list[str]) -> Iterator[None]:
    """Report a usage error in one line that ends with the command for help."""
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # prints the help
            raise
        message = _explain_choice(error.format_message()).rstrip(".")
        if error.ctx is not None:
            message += _explain_argument(message, error.ctx.command.params)
            message += f"{'' if message.endswith('?') else ';'} see {error.ctx.command_path} --help"
        print_error(message, EXIT_CODE, name=PROGRAM, as_json=JSON in words)
        raise typer.Exit(EXIT_CODE) from error


def _explain_choice(message: str) -> str:
    """Suggest the most similar choice in the message about an option's invalid value."""
    message = message.replace("Value error, ", "")
    if found := NOT_ONE_OF.search(message):
        return message.rstrip(".") + (did_you_mean(found["got"], re.findall(r"'([^']*)'", found["choices"])) or ".")
    return message


def _explain_argument(message: str, options: Sequence[Any]) -> str:
    """Hint for an unexpected argument of a verb that takes zoos as options."""
    takes_zoos = any("--zoo" in option.opts for option in options)
    return "; a zoo is named with --zoo" if takes_zoos and "unexpected extra argument" in message else ""


app = typer.Typer(
    name=PROGRAM,
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
zoo_app = typer.Typer(no_args_is_help=True, help="Build, import, align, mix and show zoos of networks.")
app.add_typer(zoo_app, name="zoo")
for verb in VERBS:
    add_verb(app, verb)
for verb in ZOO_VERBS:
    add_verb(zoo_app, verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {hf_sane.__version__}")
        raise typer.Exit


@app.callback(epilog="Each verb explains its options and gives an example: hf-sane VERB --help.")
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Zoos of neural networks, SANE autoencoders over their weights, probing and sampling."""


def main() -> None:
    """Run the program, called by its entry point."""
    tune_allocator()  # before PyTorch allocates anything
    gc.disable()  # until the modules of the verb are imported, which leave nothing to collect
    for verb in plugin_verbs():
        add_verb(app, verb)
    app(prog_name=PROGRAM)


__all__: list[str] = []  # the program
