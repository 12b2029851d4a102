"""`hf-sane zoo import`: a zoo of networks that others have trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_sane.cli.output import hide_loading_bars, print_table
from hf_sane.cli.weights import Key
from hf_sane.records.errors import shorten

if TYPE_CHECKING:
    from hf_sane.zoo.importing.importing import ImportEntry

MUCH_PADDING = 0.9  # of the scalars in the tokens of a network
MAX_REASON = 300  # characters; the JSON has them all
NAMES_SHOWN = 5  # networks of one reason; the JSON has them all


def import_networks(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the zoo; it may hold others.")],
    more_repos: Annotated[
        list[str] | None, typer.Argument(metavar="[REPO]...", help="Repositories, as with --repos.")
    ] = None,
    repos: Annotated[
        list[str] | None, typer.Option(help="Model repositories: owner/name or owner/name@revision, several in a row.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="All models of a user or organisation.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--filter", help="Models with this tag; give it again for several tags.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Models with these letters in their name.")] = None,
    limit: Annotated[int, typer.Option(help="Most models of --author, --filter and --search.")] = 100,
    folder: Annotated[Path | None, typer.Option(help="Networks below a folder of this machine.")] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of the files to take of each repository, such as '*/model.safetensors'."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open pickles (weights_only) where there is no safetensors.")
    ] = False,
    key: Key = None,
    max_size: Annotated[str, typer.Option(help="Largest network; larger ones are not downloaded.")] = "500MB",
    max_tokens: Annotated[int | None, typer.Option(help="Longest network in tokens.")] = None,
    token_dim: Annotated[int, typer.Option(help="Scalars per token.")] = 289,
    token_layout: Annotated[Literal["rowwise", "dense"], typer.Option(help="How weights become tokens.")] = "rowwise",
    batch_norm: Annotated[
        Literal["tokens", "template"], typer.Option(help="Whether BatchNorm becomes tokens or is carried along.")
    ] = "tokens",
    group_by: Annotated[
        Literal["repository", "base_model", "author", "network"],
        typer.Option(help="What must not be in two splits at once; of a folder, 'repository' is each folder in it."),
    ] = "repository",
    split_shares: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.7,0.15,0.15",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    name: Annotated[str | None, typer.Option(help="What cards call the zoo.")] = None,
    config: Annotated[str, typer.Option(help="Name of the zoo in its folder.")] = "default",
) -> None:
    """Import existing networks, of any architecture, into a zoo; what cannot be taken is listed with the reason.

    An import that was interrupted goes on when it is started again.
    """
    from hf_sane.zoo.facts import data_folder
    from hf_sane.zoo.importing.importing import import_zoo
    from hf_sane.zoo.importing.settings import ImportSettings, parse_size
    from hf_sane.zoo.writing import REPORT_NAME

    hide_loading_bars()
    arguments = ImportSettings(
        repos=[*(repos or []), *(more_repos or [])],
        author=author,
        filter=tags or [],
        search=search,
        limit=limit,
        folder=None if folder is None else str(folder),
        files=files or [],
        allow_pickle=allow_pickle,
        key=key,
        max_bytes=parse_size(max_size),
        max_tokens=max_tokens,
        token_dim=token_dim,
        token_layout=token_layout,
        batch_norm=batch_norm,
        group_by=group_by,
        split_shares=[float(share) for share in split_shares.split(",")],
        seed=seed,
        name=name,
    )
    result = import_zoo(arguments, output, config=config, on_entry=_say_taken)
    if result.left_out:
        typer.echo("\nnot taken")
        for (status, reason), names in result.left_out.items():
            typer.echo(f"{status}: {len(names)}, {shorten(reason, MAX_REASON)}")
            for network in names[:NAMES_SHOWN]:
                typer.echo(f"  {shorten(network)}")
            if len(names) > NAMES_SHOWN:
                typer.echo(f"  and {len(names) - NAMES_SHOWN} more")
    typer.echo()
    columns = ("split", "networks", "repositories", "structures")
    rows = []
    for split_name, split in result.zoo.splits.items():
        rows.append([split_name, len(split), *(len(set(split.column(key))) for key in ("repo_id", "layout"))])
    print_table(columns, rows)
    layouts = result.zoo.facts.parsed_layouts.values()
    if wasteful := sum(layout.padding_share > MUCH_PADDING for layout in layouts):
        typer.echo(
            f"{wasteful} structures are {MUCH_PADDING:.0%} padding or more: --token-layout dense takes less room"
        )
    typer.echo(f"wrote {output} (what became of each network: {data_folder(output, config) / REPORT_NAME})")
    if any(status == "failed" for status, _ in result.left_out):
        typer.echo("some could not be reached: the same command tries those again")


def _say_taken(entry: "ImportEntry") -> None:
    if entry.status == "taken":  # the others are listed by their reasons at the end
        typer.echo(f"taken   {shorten(entry.run_id)}")
