"""The verbs of `hf-sane`: each is a door to a workflow, which is loaded when the verb is used."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import typer

# A verb's options are made from its settings when it runs: loading them loads PyTorch and Transformers.
PASS_THROUGH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}


class Verb(NamedTuple):
    """A verb and its workflow.

    Attributes:
        name: On the command line.
        workflow: Module of `hf_sane.workflows`.
        settings: Its settings dataclass.
        run: Its function.
        help: One sentence for the list of verbs.
    """

    name: str
    workflow: str
    settings: str
    run: str
    help: str


VERBS = (
    Verb(
        "embed", "embed", "EmbedSettings", "run_embed", "Embed networks: one vector each, of a zoo or of checkpoints."
    ),
    Verb("probe", "probe", "ProbeSettings", "run_probe", "Predict properties of networks from their embeddings."),
)


def add_verb(app: typer.Typer, verb: Verb) -> None:
    """Add a verb to the program or one of its groups."""
    app.command(verb.name, help=verb.help, **PASS_THROUGH)(_door(verb))


def _door(verb: Verb) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        from hf_sane.workflows.command_line import run_workflow

        workflow = import_module(f"hf_sane.workflows.{verb.workflow}")
        run_workflow(
            getattr(workflow, verb.settings), getattr(workflow, verb.run), list(ctx.args), name=ctx.command_path
        )

    return run
