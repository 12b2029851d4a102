"""The program `hf-sane`: its verbs, and how it fails."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_sane.cli.analyze import analyze
from hf_sane.cli.demo import demo
from hf_sane.cli.embed import embed
from hf_sane.cli.finetune import finetune
from hf_sane.cli.info import info
from hf_sane.cli.pretrain import pretrain
from hf_sane.cli.probe import probe
from hf_sane.cli.regions import regions
from hf_sane.cli.sample import sample
from hf_sane.cli.settings import PASS_THROUGH
from hf_sane.cli.soup import soup
from hf_sane.cli.transfer import pull, push
from hf_sane.cli.zoo import zoo_app
from hf_sane.cli.zoo_align import align
from hf_sane.cli.zoo_import import import_networks
from hf_sane.cli.zoo_mix import mix
from hf_sane.records.allocator import tune_allocator
from hf_sane.records.failures import EXIT_CODE, INTERRUPTED, describe_error, describe_interruption, expected_errors


class Program(TyperGroup):
    """A group of verbs that reports what the user can mend in one line, and everything else with its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; expected errors end the program with a message and exit code 2, unless `--debug` is given.

        An interruption (Ctrl-C, SIGINT) ends it with exit code 130 and a line that says what is kept.
        """
        try:
            return super().invoke(ctx)
        except expected_errors() as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"hf-sane: {describe_error(error)}", err=True)
            raise typer.Exit(EXIT_CODE) from error
        except KeyboardInterrupt as interruption:
            typer.echo(f"\nhf-sane: {describe_interruption(interruption)}", err=True)
            raise typer.Exit(INTERRUPTED) from interruption


app = typer.Typer(
    name="hf-sane",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
zoo_app.command("import")(import_networks)
zoo_app.command("align")(align)
zoo_app.command("mix")(mix)
app.add_typer(zoo_app, name="zoo")
app.command("pretrain", **PASS_THROUGH)(pretrain)
app.command("embed")(embed)
app.command("probe")(probe)
app.command("sample")(sample)
app.command("finetune")(finetune)
app.command("soup")(soup)
app.command("info")(info)
app.command("push")(push)
app.command("pull")(pull)
app.command("analyze")(analyze)
app.command("regions")(regions)
app.command("demo", **PASS_THROUGH)(demo)


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    """Zoos of neural networks, SANE autoencoders over their weights, probing and sampling."""


def main() -> None:
    """Entry point of the console script."""
    tune_allocator()  # before PyTorch allocates anything
    app()
