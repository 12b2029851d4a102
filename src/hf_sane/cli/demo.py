"""`hf-sane demo`: the main job end to end."""

from pathlib import Path
from typing import Any

import typer

from hf_sane.cli.output import hide_loading_bars
from hf_sane.cli.settings import extra_option, run_with_settings


def demo(ctx: typer.Context) -> None:
    """Train two small zoos, pre-train SANE, probe it, sample from it, and write a report; offline, on the CPU."""
    from hf_sane.demo.settings import DemoSettings

    extra = [extra_option("output", Path, "New or empty folder.", default=Path("demo_output"))]
    run_with_settings(ctx, DemoSettings, _demo, extra=extra)


def _demo(given: dict[str, Any], *, output: Path) -> None:
    from hf_sane.demo.run import run_demo
    from hf_sane.demo.settings import DemoSettings

    hide_loading_bars()
    run_demo(output, settings=DemoSettings(**given))
    typer.echo(f"wrote {output / 'report.md'}")
