"""`hf-sane zoo`: build a zoo, look at one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_sane.cli.output import hide_loading_bars, print_table
from hf_sane.cli.settings import PASS_THROUGH, extra_option, run_with_settings

if TYPE_CHECKING:
    import numpy as np

    from hf_sane.zoo.dataset import Zoo

MAX_SHOWN = 10  # architectures and layouts
SHOWN_PROPERTIES = ("test_accuracy", "validation_accuracy", "generalization_gap")
zoo_app = typer.Typer(no_args_is_help=True, help="Zoos: populations of trained networks.")
Recipe = Literal["seed", "hyperparameter"]


@zoo_app.command("build", **PASS_THROUGH)
def build(ctx: typer.Context) -> None:
    """Train many networks and save them as a zoo; an interrupted build continues where it stopped."""
    from hf_sane.zoo.building.build import ZooSettings

    extra = [
        extra_option("output", Path, "Folder of the zoo; it may hold others under other names."),
        extra_option("config", str, "Name of the zoo in that folder.", default="default"),
        extra_option(
            "recipe",
            Recipe | None,
            "Start from a set of defaults: 'seed' (networks that differ in their seed) or 'hyperparameter' (in everything).",
            default=None,
        ),
    ]
    run_with_settings(ctx, ZooSettings, _build, extra=extra)


def _build(given: dict[str, Any], *, output: Path, config: str, recipe: Recipe | None) -> None:
    from hf_sane.zoo.building.build import ZooSettings, build_zoo, hyperparameter_zoo, seed_zoo

    recipes: dict[Recipe | None, Callable[..., ZooSettings]] = {
        "seed": seed_zoo,
        "hyperparameter": hyperparameter_zoo,
    }
    hide_loading_bars()
    arguments = recipes.get(recipe, ZooSettings)(**given)
    zoo = build_zoo(arguments, None, output, config=config)
    print_zoo(describe_zoo(zoo))
    typer.echo(f"wrote {output}")


@zoo_app.command("show")
def show(
    zoo: Annotated[str, typer.Argument(help="Folder or Hub dataset id.")],
    config: Annotated[str | None, typer.Option(help="Which zoo, if there are several.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; errors, too.")] = False,
) -> None:
    """Show what a zoo holds: splits, architectures, tokens, accuracy, what was left out."""
    from hf_sane.zoo.dataset import Zoo

    hide_loading_bars()
    facts = describe_zoo(Zoo.load(zoo, config, revision=revision))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_zoo(facts)


def describe_zoo(zoo: "Zoo") -> dict[str, Any]:
    """Facts about a zoo, as JSON holds them."""
    splits: dict[str, Any] = {}
    for name, split in zoo.splits.items():
        final = split.final_epochs()
        splits[name] = {
            "networks": len(split),
            "runs": len(final),
            "epochs": [epoch for epoch in sorted(set(split.column("epoch").tolist())) if epoch == epoch],
            "final": {column: _spread(final.column(column)) for column in SHOWN_PROPERTIES},
        }
    return {
        "name": zoo.facts.name,
        "architectures": dict(zoo.facts.architectures),
        "layouts": {
            key: {"tokens": layout.num_tokens, "token_dim": layout.token_dim, "token_layout": layout.token_layout}
            for key, layout in zoo.facts.parsed_layouts.items()
        },
        "excluded": list(zoo.facts.excluded),
        "is_aligned": zoo.alignment is not None,
        "splits": splits,
    }


def _spread(values: "np.ndarray") -> list[float] | None:
    """Smallest, median and largest of what is known."""
    import numpy as np

    known = values[np.isfinite(values)]
    return np.quantile(known, (0, 0.5, 1)).tolist() if len(known) else None


def describe_architecture(settings: dict[str, Any]) -> str:
    """Settings of an architecture in one line; of an imported one, what its repository calls it."""
    from hf_sane.zoo.facts import IMPORTED

    if settings["model_type"] == IMPORTED:
        config = settings["config"]
        return ", ".join(map(str, config.get("architectures") or [config.get("model_type", "no configuration")]))
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "model_type")


def print_zoo(facts: dict[str, Any]) -> None:
    """Print [`describe_zoo`] for people."""
    typer.echo(f"zoo {facts['name']}{'' if facts['is_aligned'] else ' (not aligned)'}")
    for settings in list(facts["architectures"].values())[:MAX_SHOWN]:
        typer.echo(f"  architecture {settings['model_type']}: {describe_architecture(settings)}")
    for layout in list(facts["layouts"].values())[:MAX_SHOWN]:
        typer.echo(f"  {layout['tokens']:,} {layout['token_layout']} tokens of {layout['token_dim']} weights")
    if (more := max(len(facts["architectures"]), len(facts["layouts"])) - MAX_SHOWN) > 0:
        typer.echo(f"  and {more} more (--json lists all)")
    typer.echo(f"  {len(facts['excluded'])} runs excluded")
    header = ("split", "runs", "networks", "epochs", *(f"final {name.replace('_', ' ')}" for name in SHOWN_PROPERTIES))
    rows = []
    for name, split in facts["splits"].items():
        spreads = ["-" if q is None else f"{q[0]:.3f} / {q[1]:.3f} / {q[2]:.3f}" for q in split["final"].values()]
        rows.append([name, split["runs"], split["networks"], ",".join(map(str, split["epochs"])), *spreads])
    print_table(header, rows)
    typer.echo("(accuracy and gap: smallest / median / largest)")
