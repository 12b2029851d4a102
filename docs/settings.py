"""Lists the fields of settings in the Python API, with the help texts of their declarations."""

import ast
import inspect
import re
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any

import griffe

OTHER_FIELDS = re.compile(r"^( *)\*\*options: Other fields of \[`(\w+)`\]\.$", re.MULTILINE)


class SettingsExtension(griffe.Extension):
    """Replaces "Other fields of [`ProbeSettings`]" by these fields, and documents the attributes of such classes."""

    def on_function_instance(self, *, node: Any, func: griffe.Function, **_: Any) -> None:
        """List the fields that `**options` stands for: those that the function does not set itself."""
        found = OTHER_FIELDS.search(func.docstring.value) if func.docstring else None
        if found and func.docstring:
            settings = getattr(import_module(func.module.path), found[2])
            nodes = list(ast.walk(node))
            own: set[Any] = {word.arg for call in nodes if isinstance(call, ast.Call) for word in call.keywords}
            choices = [branch for x in nodes if isinstance(x, ast.IfExp) for branch in (x.body, x.orelse)]
            own |= {branch.value for branch in choices if isinstance(branch, ast.Constant)}  # as `embed` chooses
            lines = [entry for entry in _entries(settings) if entry.split()[0] not in own]
            text = "\n".join(f"{found[1]}{line}" for line in lines)
            func.docstring.value = OTHER_FIELDS.sub(lambda _: text, func.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """List the fields of settings as attributes."""
        if cls.name.endswith("Settings") and cls.docstring and "dataclass" in cls.labels:
            lines = "\n".join(f"    {line}" for line in _entries(getattr(import_module(cls.module.path), cls.name)))
            cls.docstring.value += f"\n\nAttributes:\n{lines}"


def _entries(settings: type) -> list[str]:
    """`name (type): Help text.` for each field."""
    return [
        f"{entry.name} ({_type(entry)}): {entry.metadata['help']}{_default(entry)}"
        for entry in fields(settings)  # type: ignore[arg-type]  # a dataclass
        if entry.metadata.get("help")
    ]


def _type(entry: Field[Any]) -> str:
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(entry.type))


def _default(entry: Field[Any]) -> str:
    value = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return "" if value in (MISSING, None, [], {}) else f" Default: `{value!r}`."
