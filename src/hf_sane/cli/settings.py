"""Command-line options from a settings dataclass: its fields, its help texts, its defaults."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

# For a verb whose options are made when it runs, because loading its dataclass loads Transformers.
PASS_THROUGH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}


def run_with_settings(
    ctx: typer.Context,
    settings: type,
    run: Callable[..., None],
    *,
    extra: Sequence[inspect.Parameter] = (),
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Parse the arguments of a [`PASS_THROUGH`] verb as fields of a dataclass, and run.

    Each field becomes an option in kebab-case; lists take values separated by commas.

    Args:
        ctx: Of the verb.
        settings: The dataclass. It checks the values itself.
        run: Called with the fields that were given, as one dictionary, and the values of `extra` by name.
        extra: Further options, from [`extra_option`].
        aliases: A second name for the option of a field, such as `{"output_dir": "--output"}`.
    """
    entries = fields(settings)
    documented = _attribute_docs(settings)
    parameters = [
        *extra,
        *(_field_option(entry, documented.get(entry.name, ""), (aliases or {}).get(entry.name)) for entry in entries),
    ]

    def command(**given: Any) -> None:
        chosen = {entry.name: given[entry.name] for entry in entries if given[entry.name] is not None}
        run(chosen, **{parameter.name: given[parameter.name] for parameter in extra})

    command.__doc__ = ctx.command.help
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    inner = typer.Typer(add_completion=False, rich_markup_mode=None)
    inner.command()(command)
    # Not `main`, which would turn an interruption into a return value.
    verb = typer.main.get_command(inner)
    with verb.make_context(ctx.command_path, list(ctx.args)) as inner_context:
        verb.invoke(inner_context)


def extra_option(name: str, kind: Any, help_text: str, *, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """An option beside the fields; required without `default`."""
    annotation = Annotated[kind, typer.Option(help=help_text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _attribute_docs(settings: type) -> dict[str, str]:
    """What the docstring of a class says under `Attributes`, by field: for fields that carry no help of their own."""
    section = (inspect.getdoc(settings) or "").partition("Attributes:\n")[2]
    found = re.finditer(r"^ {4}([\w, ]+): ((?:.|\n(?= {8}))+)", section, flags=re.MULTILINE)
    return {name: " ".join(entry[2].split()) for entry in found for name in entry[1].split(", ")}


def _field_option(entry: Field, documented: str, alias: str | None) -> inspect.Parameter:
    """The option of a field: `None` when not given, so that the dataclass applies its own default."""
    names = [f"--{entry.name.replace('_', '-')}", alias] if alias else []
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    settings: dict[str, Any] = {
        "help": f"{entry.metadata.get('help', documented)}{_shown(default)}",
        "show_default": False,
    }
    kind = _without_none(entry.type)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        convert = item if item in (int, float) else str
        settings |= {"parser": lambda text: [convert(part.strip()) for part in text.split(",") if part.strip()]}
        settings |= {"metavar": f"{convert.__name__},...".upper()}
        kind = str
    elif get_origin(kind) in (Union, UnionType):  # an object, given as JSON
        kind = str
    is_required = entry.default is MISSING and entry.default_factory is MISSING
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind if is_required else kind | None, typer.Option(*names, **settings)],
        default=inspect.Parameter.empty if is_required else None,
    )


def _without_none(kind: Any) -> Any:
    """`X` for `X | None`; a union of several types stays one."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    parts = tuple(part for part in get_args(kind) if part is not NoneType)
    return parts[0] if len(parts) == 1 else Union[parts]  # noqa: UP007


def _shown(default: Any) -> str:
    """A default as a user would type it, for the end of a help text."""
    if default is MISSING or default is None or default == []:
        return ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"  [default: {','.join(map(str, default)) if isinstance(default, list) else default}]"
