"""`hf-sane push` and `hf-sane pull`: artefacts to the Hub and back, every file listed first."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_sane.cli.output import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_sane.hub.transfer import RepoFile

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def push(
    kind: Annotated[Literal["zoo", "model", "samples", "adapter"], typer.Argument(help="What the folder holds.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the artefact; it is not changed.")],
    repo_id: Annotated[str, typer.Argument(help="user/name or user/name@branch on the Hub; made if missing.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; the account's default if left out.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; the default branch if left out.")] = None,
    include_code: Annotated[
        bool, typer.Option(help="Add the modelling code of autoencoders and networks (trust_remote_code).")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and stop.")] = False,
) -> None:
    """Publish an artefact in one commit; after a broken connection, the same command goes on."""
    from hf_sane.hub.push import plan_push
    from hf_sane.records.sources import check_path, parse_repo

    place = parse_repo(repo_id, revision=revision)
    check_path(folder)
    upload = plan_push(kind, folder, place.repo_id, include_code=include_code)
    print_files(upload.files)
    for path in upload.deleted:
        typer.echo(f"removed: {path}")
    if dry_run:
        typer.echo(f"nothing was sent; without --dry-run, this goes to {place} ({upload.repo_type})")
        return
    typer.echo(upload.push(private=private, revision=place.revision))


def pull(
    repo_id: Annotated[str, typer.Argument(help="user/name or user/name@revision on the Hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that receives the files.")],
    kind: Annotated[
        Literal["auto", "model", "dataset"], typer.Option("--type", help="Of the repository; zoos are datasets.")
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    max_size: Annotated[str, typer.Option(help="Refuse more than this, such as 500M or 20G.")] = "20G",
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Fetch pickles too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and stop.")] = False,
) -> None:
    """Fetch a repository; after a broken connection, the same command goes on."""
    from hf_sane.hub import pull as puller
    from hf_sane.records.sources import parse_repo

    limit, place = parse_size(max_size), parse_repo(repo_id, revision=revision)
    repo_id, revision = place.repo_id, place.revision
    repo_type: Literal["model", "dataset"] | None = None if kind == "auto" else kind
    if repo_type is None:
        repo_type, revision = puller.find_repository(repo_id, revision=revision)
    files, refused = puller.plan_pull(repo_id, repo_type=repo_type, revision=revision, allow_pickle=allow_pickle)
    print_files(files)
    for path in refused:
        typer.echo(f"left out: {path} is a pickle (--allow-pickle takes it)")
    puller.check_size(files, limit, repo_id)
    if dry_run:
        typer.echo("nothing was fetched (--dry-run)")
        return
    folder = puller.pull(
        repo_id, output, repo_type=repo_type, revision=revision, max_bytes=limit, allow_pickle=allow_pickle
    )
    typer.echo(f"wrote {folder}")


def print_files(files: "Sequence[RepoFile]") -> None:
    """Every file with its size, and the sum."""
    rows = [[file.path, file.num_bytes] for file in files]
    print_table(("file", "bytes"), [*rows, [f"{len(rows)} files", sum(file.num_bytes for file in files)]])


def parse_size(text: str) -> int:
    """Bytes of `500M`, `20G`, `1.5GB` or a plain number.

    Raises:
        ValueError: For anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"expected a size such as 500M or 20G, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])
