"""JSON Schemas of what verbs print with `--json`: made from the types that results declare as `JSON`."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: dict[Any, dict[str, Any]] = {
    Any: {},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # null where it is not finite
    str: {"type": "string"},
}
ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)

# What every verb adds to its own fields.
SHARED: dict[str, dict[str, Any]] = {
    "output": {"type": "string", "description": "The folder or file that was written."},
    "notes": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Sentences for the user, such as what was left out.",
    },
}


class Fields:
    """Fields that JSON has in place of those of a type, or beside them: `Annotated[Kind, Fields(name=Type)]`.

    Args:
        others: Type of fields whose names depend on the data; `None` if there are none.
        **kinds: Types by name.
    """

    def __init__(self, others: Any = None, **kinds: Any) -> None:
        self.others, self.kinds = others, kinds


def result_schema(result: Any, title: str) -> dict[str, Any]:
    """Schema of a result as JSON.

    Args:
        result: A class derived from `Result`, or a union of some; of others, nothing is known.
        title: Command that prints it.
    """
    kinds = get_args(result) or (result,)
    made = [_with_shared(type_schema(getattr(kind, "JSON", dict[str, Any]))) for kind in kinds]
    return {"$schema": DIALECT, "title": title, **(made[0] if len(made) == 1 else {"anyOf": made})}


def _with_shared(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"properties": schema.get("properties", {}) | SHARED}


def type_schema(kind: Any) -> dict[str, Any]:
    """Schema of a type: plain ones, `Literal`, unions, lists, mappings, dataclasses, `TypedDict`.

    `Annotated` gives a type a description, or other fields: see [`Fields`].
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is None and kind in PLAIN:
        return PLAIN[kind]
    if origin is Annotated:
        if isinstance(parts[1], str):
            return type_schema(parts[0]) | {"description": parts[1]}
        return _object(parts[0], parts[1])
    if is_typeddict(kind) or is_dataclass(kind):
        return _object(kind, Fields())
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, UnionType):
        return _either([type_schema(part) for part in parts])
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": type_schema(parts[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": type_schema(parts[1])}
    raise TypeError(f"expected a type that JSON has, got {kind!r}")


def _either(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge plain types into one list without duplicates; keep other schemas as alternatives."""
    if all(schema.keys() == {"type"} for schema in schemas):
        types = [name for schema in schemas for name in _listed(schema["type"])]
        return {"type": list(dict.fromkeys(types))}
    return {"anyOf": schemas}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _object(kind: Any, changes: Fields) -> dict[str, Any]:
    """An object with the fields of a type, described as its text does."""
    always = {entry.name for entry in fields(kind)} if is_dataclass(kind) else set(kind.__required_keys__)
    optional = {name for name, part in changes.kinds.items() if get_origin(part) is NotRequired}
    texts = {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(inspect.getdoc(kind) or "")}
    hints = get_type_hints(kind, include_extras=True) | changes.kinds
    properties = {}
    for name, part in hints.items():
        schema = type_schema(get_args(part)[0] if get_origin(part) is NotRequired else part)
        properties[name] = ({"description": texts[name]} if name in texts else {}) | schema
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in hints if name in (always | changes.kinds.keys()) - optional],
        "additionalProperties": type_schema(changes.others) if changes.others else False,
    }


__all__: list[str] = []  # programs read what `hf-sane VERB --json-schema` prints
