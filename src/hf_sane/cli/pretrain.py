"""`hf-sane pretrain`: learn a SANE autoencoder from zoos."""

from typing import Any

import typer

from hf_sane.cli.output import hide_loading_bars, print_table
from hf_sane.cli.settings import run_with_settings


def pretrain(ctx: typer.Context) -> None:
    """Pre-train a SANE autoencoder on zoos.

    One process; scripts/pretrain.py takes the same settings and can be launched on several with accelerate.
    """
    from hf_sane.training.settings import PretrainSettings

    run_with_settings(ctx, PretrainSettings, _pretrain, aliases={"output_dir": "--output", "pretrained": "--from"})


def _pretrain(given: dict[str, Any]) -> None:
    from hf_sane.hub.adapters import write_pretraining_card
    from hf_sane.training import pretraining
    from hf_sane.training.settings import PretrainSettings

    hide_loading_bars()
    arguments = PretrainSettings(**given)
    result = pretraining.pretrain(arguments, describe=write_pretraining_card)
    facts = {"reconstruction R2 (validation)": result.reconstruction_text, "loss": result.loss, "steps": result.steps}
    print_table(("", ""), list(facts.items()))
    typer.echo(f"wrote {result.folder}")
