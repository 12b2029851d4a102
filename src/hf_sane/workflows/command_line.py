"""Run a workflow from a command line: derive the options from its settings dataclass, and print its result.

Both the program `hf-sane` and the scripts use this module, so that each option is named, described and checked in one
place.
"""

import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from hf_sane.records._errors import shorten
from hf_sane.records._progress import keeping_warnings, quietly
from hf_sane.records._registry import load_plugins
from hf_sane.records._run_files import RUN_FILE, leaving_run_file, read_run_file
from hf_sane.records._run_files import SUFFIXES as RUN_FILE_SUFFIXES
from hf_sane.records._settings import FORMER_NAMES_END, default_of, option_name
from hf_sane.workflows.results import MAX_LINE, Result
from hf_sane.workflows.schemas import result_schema

# Options of all commands.
SHARED: dict[str, tuple[type, Any]] = {
    "as_json": (bool, typer.Option("--json", help="Print the result as JSON only; errors, too, on standard error.")),
    "schema": (bool, typer.Option("--json-schema", help="Print the JSON Schema of the result and exit.")),
    "quiet": (bool, typer.Option("--quiet", "-q", help="Print nothing but errors and, with --json, the result.")),
    "run_file": (
        str,
        typer.Option(
            "--config",
            metavar="FILE",
            show_default=False,
            help=f"Take settings from the {RUN_FILE} of an earlier output; other options override them.",
        ),
    ),
}
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def run_workflow(
    settings: type, run: Callable[[Any], Result], argv: Sequence[str], *, name: str, example: str = ""
) -> Result:
    """Read settings from a command line, run the workflow, and print its result; `--json` prints it as JSON.

    Args:
        settings: A dataclass that validates its fields, which are declared with `setting`. If it has a class method
            `from_options`, that makes it from the given fields.
        run: The workflow: takes the settings and returns a [`Result`].
        argv: Arguments, without the program's name.
        name: Name of the program and command, for usage messages.
        example: An example command line for the help.
    """
    if "--json-schema" in argv:
        typer.echo(json.dumps(result_schema(inspect.signature(run).return_annotation, f"{name} --json"), indent=2))
        raise typer.Exit
    outcome: list[Result] = []

    def work(made: Any, given: Mapping[str, Any]) -> None:
        hide_loading_bars()
        is_quiet = given["quiet"] or given["as_json"]
        warnings: list[str] = []  # which are notes, like others, to readers of the JSON
        kept = keeping_warnings(warnings) if is_quiet else nullcontext()
        with leaving_run_file(name, made), quietly(is_quiet), kept:
            result = run(made)
        result.notes += warnings
        outcome.append(result)
        if result.is_silent:
            return
        if given["as_json"]:
            typer.echo(result.to_json())
        elif not is_quiet:
            for note in result.notes:
                typer.echo(shorten(note, MAX_LINE), err=True)
            result.print(notes=False)
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    about = (inspect.getdoc(run) or "").partition("\n\nArgs:")[0]
    _parse(settings, argv, name, work, about=about, example=example and f"{name} {example}")
    return outcome[0]


def _parse(settings: type, argv: Sequence[str], name: str, work: Callable[..., None], **texts: str) -> None:
    """Parse settings from a command line, then call `work` with them and the options of all commands."""
    load_plugins()
    options = own_options(settings)
    named_zoos = any("--config" in entry.metadata.get("formerly", ()) for entry in options)
    path, rest = _run_file_of(argv, has_old_meaning=named_zoos)
    stored = {} if path is None else read_run_file(path, name, settings)
    make = getattr(settings, "from_options", settings)

    def command(**given: Any) -> None:
        chosen = {entry.name: _value(entry, given[entry.name]) for entry in options if given[entry.name] is not None}
        work(make(**{**stored, **chosen}), given)

    verb = make_command(options, command, known=stored, **texts)
    # Not `main`, which turns an interruption into a return value.
    with verb.make_context(name, modern_arguments(options, rest, program=name)) as context:
        verb.invoke(context)


def completed_command(settings: type) -> Any:
    """The command with the options of settings, for a shell that completes its command line."""
    load_plugins()
    return make_command(own_options(settings), lambda **_: None)


def own_options(settings: type) -> list[Field]:
    """The fields of settings that are options; inherited fields come last."""
    own = settings.__annotations__
    options = sorted(fields(settings), key=lambda entry: entry.name not in own)
    return [entry for entry in options if not entry.metadata.get("only_python")]


def make_command(
    options: Sequence[Field],
    command: Callable[..., None],
    *,
    known: Collection[str] = (),
    about: str = "",
    example: str = "",
) -> Any:
    """Make a typer command with the given options and those of all commands.

    Args:
        options: From [`own_options`].
        command: Called with the values of all options.
        known: Fields that are not required, since their values are known.
        about: What the command does.
        example: A command line.
    """
    parameters = [_parameter(entry, is_known=entry.name in known) for entry in options]
    for field_name, (kind, option) in SHARED.items():
        annotation = Annotated[kind, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(field_name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=kind())
        )
    command.__doc__ = about
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    inner = typer.Typer(add_completion=False, rich_markup_mode=None)
    inner.command(epilog=f"\b\nExample:\n  {example}" if example else None)(command)
    return typer.main.get_command(inner)


def _run_file_of(argv: Sequence[str], *, has_old_meaning: bool) -> tuple[str | None, list[str]]:
    """Split a command line into its run file and the rest; `--config` used to mean the name of a zoo."""
    path, rest, words = None, [], list(argv)
    while words:
        word, equals, value = words[0].partition("=")
        if word == "--":
            break
        value = value if equals else words[1] if len(words) > 1 else ""
        if word == "--config" and value and not (has_old_meaning and not value.lower().endswith(RUN_FILE_SUFFIXES)):
            path, words = value, words[1 if equals else 2 :]
        else:
            rest.append(words.pop(0))
    return path, [*rest, *words]


def hide_loading_bars() -> None:
    """Hide the progress bars of Transformers and Datasets for small files; those of downloads remain."""
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shows_downloads = not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # which hides those of downloads, too
    if shows_downloads:
        enable_progress_bars()


def modern_arguments(options: Sequence[Field], argv: Sequence[str], *, program: str) -> list[str]:
    """Translate the spellings of earlier versions: `--num_models`, renamed options, `--flag True`, `--values 1 2 3`.

    Standard error names each old spelling once, with its replacement.
    """
    known = {option_name(entry): entry for entry in options}
    former = dict(_former_spellings(options))
    has_positional = any(entry.metadata.get("positional") for entry in options)
    found: list[str] = []
    notes: list[str] = []
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--":
            return [*found, word, *rest]
        current = _current_name(word, known, former) if word.startswith("--") else word
        is_old = word in former or current != word
        if is_old and current in known and known[current].metadata.get("positional"):
            notes.append(f"{word} NAME is now NAME, without the option")
            found += [value] if equals else []
            continue
        if current != word:
            notes.append(f"{word} is now {current}")
        if current in known and not equals:
            current, rest = _joined_values(known[current], current, rest, notes, alone=not has_positional)
        found.append(f"{current}={value}" if equals else current)
    for note in dict.fromkeys(notes):
        typer.echo(_note(program, note), err=True)
    return found


def _note(program: str, change: str) -> str:
    return f"{program}: {change}; the old spelling works until version {FORMER_NAMES_END}"


def _former_spellings(options: Sequence[Field]) -> Iterator[tuple[str, str]]:
    """Former and current names; a former flag `--greedy=greedy` now means its option with that value.

    A former name that another option now has is left out.
    """
    known = {option_name(entry) for entry in options if not entry.metadata.get("positional")}
    for entry in options:
        for old in entry.metadata.get("formerly", ()):
            name, equals, value = old.partition("=")
            if name.startswith("--") and name not in known:
                yield name, f"{option_name(entry)}{equals}{value}"


def _current_name(word: str, known: dict[str, Field], former: dict[str, str]) -> str:
    """The current name of an option, which may be the given name."""
    dashes = "--" + word[2:].replace("_", "-")
    negated = "--" + dashes[len("--no-") :] if dashes.startswith("--no-") else ""
    underscores = "--" + word[2:].replace("-", "_")
    if old := next((name for name in (word, dashes, underscores) if name in former), None):
        return former[old]
    if (positive := former.get(negated, negated)) in known and _kind(known[positive]) is bool:
        return f"--no-{positive[2:]}" if negated in former or "_" in word else word
    return dashes if "_" in word and dashes in known else word


def _joined_values(
    entry: Field, option: str, rest: list[str], notes: list[str], *, alone: bool
) -> tuple[str, list[str]]:
    """Join a flag or list option with its values if they are written as in earlier versions."""
    if _kind(entry) is bool and rest and rest[0].lower() in (*TRUE, *FALSE) and alone:
        plain = option if rest[0].lower() in TRUE else f"--no-{option[2:]}"
        notes.append(f"{option} {rest[0]} is now {plain}")
        return plain, rest[1:]
    if get_origin(_kind(entry)) is list and alone:
        count = next((index for index, word in enumerate(rest) if _is_option(word)), len(rest))
        if count > 1:
            is_split = entry.metadata.get("split", True)
            given = [",".join(rest[:count])] if is_split else [f"{option}={value}" for value in rest[:count]]
            notes.append(
                f"{option} {' '.join(rest[:count])} is now {option} {given[0]}" if is_split else f"repeat {option}"
            )
            return (f"{option}={given[0]}", rest[count:]) if is_split else (given[0], [*given[1:], *rest[count:]])
    return option, rest


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."


def _parameter(entry: Field, *, is_known: bool) -> inspect.Parameter:
    """The option of a field. Its default is `None`, so that the dataclass applies its own."""
    kind, default = _kind(entry), default_of(entry)
    is_required = default is MISSING and not is_known
    described: dict[str, Any] = {"help": f"{entry.metadata.get('help', '')}{_shown(default)}", "show_default": False}
    if choices := entry.metadata.get("choices"):
        described["autocompletion"] = _completion(choices, is_list=get_origin(kind) is list)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        described["metavar"] = f"{_metavar(item)}{',...' if entry.metadata.get('split', True) else ''}"
        described["metavar"] += "" if not entry.metadata.get("positional") else "..."
        kind = list[str]
    elif (
        get_origin(kind) in (Union, UnionType) or get_origin(kind) is dict
    ):  # an object in Python; a name or JSON on the command line
        kind = str
    if entry.metadata.get("positional"):
        info: Any = typer.Argument(
            metavar=entry.name.upper(), **{k: v for k, v in described.items() if k != "metavar"}
        )
    else:
        names = [option_name(entry)]
        if kind is bool:
            names = [f"{names[0]}/{entry.metadata.get('opposite') or f'--no-{names[0][2:]}'}"]
        short = entry.metadata.get("short")
        info = typer.Option(*names, *([short] if short else []), **described)
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind if is_required else kind | None, info],
        default=inspect.Parameter.empty if is_required else None,
    )


def _completion(choices: Callable[[], Iterable[str]], *, is_list: bool) -> Callable[[str], list[str]]:
    """Words that a shell offers for a text, or for the next one in a list that is separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if is_list else ("", "", incomplete)
        given = before.split(",")
        return [f"{before}{comma}{text}" for text in choices() if text.startswith(last) and text not in given]

    return complete


def _value(entry: Field, given: Any) -> Any:
    """Convert a command-line value to the value that the dataclass expects."""
    kind = _kind(entry)
    if get_origin(kind) is not list:
        return given
    (item,) = get_args(kind)
    is_split = entry.metadata.get("split", True) and not entry.metadata.get("positional")
    parts = [part.strip() for text in given for part in text.split(",") if part.strip()] if is_split else list(given)
    if get_origin(item) in (Union, UnionType) and set(get_args(item)) == {int, float}:
        item = float
    if item not in (int, float):
        return parts
    return [_number(entry, item, part) for part in parts]


def _number(entry: Field, kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        noun = "integers" if kind is int else "numbers"
        raise typer.BadParameter(
            f"expected {noun} separated by commas, got {text!r}", param_hint=repr(option_name(entry))
        ) from None


def _kind(entry: Field) -> Any:
    """The type of a field: `X` for `X | None`, a list of `X` for `X | list[X]`."""
    kind: Any = entry.type
    if get_origin(kind) not in (Union, UnionType):
        return kind
    parts = [part for part in get_args(kind) if part is not NoneType]
    lists = [part for part in parts if get_origin(part) is list]
    if len(parts) == 1:
        return parts[0]
    return lists[0] if lists else Union[tuple(parts)]  # noqa: UP007


def _metavar(item: Any) -> str:
    if get_origin(item) is Literal:
        return "|".join(map(str, get_args(item)))
    return {int: "INTEGER", float: "FLOAT"}.get(item, "TEXT")


def _shown(default: Any) -> str:
    """A default as a user would type it, for the end of a help text."""
    if default is MISSING or default in (None, "", [], {}):
        return ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    if isinstance(default, dict):
        default = json.dumps(default)
    return f"  [default: {','.join(map(str, default)) if isinstance(default, list | tuple) else default}]"


def script(settings: type, run: Callable[[Any], Result], *, name: str) -> Callable[..., Result]:
    """Make the `main` of a script that runs a workflow; by default it takes the arguments of the process."""
    usage: Any = typer.BadParameter.__base__  # from typer's own copy of click
    leave: Any = typer.Exit

    def main(argv: Sequence[str] | None = None) -> Result:
        try:
            return run_workflow(settings, run, sys.argv[1:] if argv is None else list(map(str, argv)), name=name)
        except usage as error:
            error.show()
            raise SystemExit(error.exit_code) from error
        except leave as error:
            raise SystemExit(error.exit_code) from error

    return main


__all__: list[str] = []  # for the program and the scripts of this repository
