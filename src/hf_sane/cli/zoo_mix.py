"""`hf-sane zoo mix`: one zoo out of several."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_sane.cli.output import hide_loading_bars
from hf_sane.cli.zoo import describe_zoo, print_zoo

TokenLayout = Literal["rowwise", "dense"]


def mix(
    zoos: Annotated[
        list[str],
        typer.Argument(
            metavar="ZOO...",
            help="Zoos as NAME=SOURCE or NAME=SOURCE@CONFIG; SOURCE: folder, Hub dataset, or dataset@revision.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the mixture; it may hold others under other names.")],
    config: Annotated[str, typer.Option(help="Name of the mixture in that folder.")] = "default",
    name: Annotated[str | None, typer.Option(help="What cards call it; the names of the zoos if left out.")] = None,
    token_dim: Annotated[
        int | None, typer.Option(help="Scalars per token; the largest among the zoos if left out.")
    ] = None,
    token_layout: Annotated[
        TokenLayout | None, typer.Option(help="How weights become tokens; as in the zoos if left out.")
    ] = None,
) -> None:
    """Join zoos into one: other data sets or architectures, tokens of one size, splits as they were."""
    from hf_sane.zoo.dataset import Zoo
    from hf_sane.zoo.mixing import mix_zoos

    hide_loading_bars()
    opened: dict[str, Zoo] = {}
    for text in zoos:
        label, source, part = parse_source(text)
        if label in opened:
            raise ValueError(f"two zoos are called {label!r}; give each a name of its own")
        opened[label] = Zoo.load(source, part)
    mixture = mix_zoos(opened, output, config=config, name=name, token_dim=token_dim, token_layout=token_layout)
    print_zoo(describe_zoo(mixture))
    typer.echo(f"wrote {output}")


def parse_source(text: str) -> tuple[str, str, str | None]:
    """Name, folder or dataset id, and config name of `NAME=SOURCE[@CONFIG]`.

    A folder that exists is one, `@` in its name or not; `owner/name@revision@config` names a revision too, where the config
    may be empty.

    Raises:
        ValueError: If there is no name or no source.
    """
    label, equals, rest = text.partition("=")
    source, _, config = rest.rpartition("@") if "@" in rest and not Path(rest).exists() else (rest, "", "")
    if not label or not equals or not source:
        raise ValueError(f"expected NAME=SOURCE or NAME=SOURCE@CONFIG, got {text!r}")
    return label, source, config or None
