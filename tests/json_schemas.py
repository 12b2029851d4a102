"""What verbs print with `--json` is checked against the schema of the verb, whichever test calls it."""

import inspect
import json

from hf_sane.cli.verbs import VERBS, ZOO_VERBS
from hf_sane.workflows.schemas import result_schema

COMMANDS = {verb.name: verb for verb in VERBS} | {f"zoo {verb.name}": verb for verb in ZOO_VERBS}
TYPES = {"null": type(None), "boolean": bool, "integer": int, "string": str, "array": list, "object": dict}
KNOWN = {"$schema", "title", "description", "type", "enum", "anyOf", "properties", "required", "additionalProperties"}


def schema_of(command):
    """Schema of a verb, such as `zoo show`."""
    return result_schema(inspect.signature(COMMANDS[command].load()[1]).return_annotation, f"hf-sane {command} --json")


def check_output(words, text):
    """Check what a command line printed."""
    verb = [word for word in words if not word.startswith("-")]
    command = " ".join(verb[: 2 if verb[0] == "zoo" else 1])
    if command in COMMANDS:  # and not of another package
        validate(json.loads(text), schema_of(command), command)


def validate(value, schema, place):
    """Check a value against the part of JSON Schema that [`result_schema`] uses, and refuse the rest of it."""
    assert schema.keys() <= {*KNOWN, "items"}, schema.keys()
    if "anyOf" in schema:
        reasons = [reason for part in schema["anyOf"] if (reason := _refusal(value, part, place))]
        assert len(reasons) < len(schema["anyOf"]), reasons
        return
    assert value in schema.get("enum", [value]), f"{place}: {value!r} is none of {schema['enum']}"
    names = schema.get("type", [_type(value)])
    names = [names] if isinstance(names, str) else names
    allowed = {*names, "integer"} if "number" in names else {*names}
    assert _type(value) in allowed, f"{place}: {value!r} is not of type {names}"
    if isinstance(value, dict):
        missing = schema.get("required", [])
        assert not [name for name in missing if name not in value], f"{place}: {missing} expected, got {list(value)}"
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            assert inner is not False, f"{place}: {name} is not in the schema"
            validate(part, inner, f"{place}.{name}")
    if isinstance(value, list):
        for index, part in enumerate(value):
            validate(part, schema.get("items", {}), f"{place}[{index}]")


def _refusal(value, schema, place):
    try:
        validate(value, schema, place)
    except AssertionError as reason:
        return str(reason)
    return ""


def _type(value):
    return next((name for name, kind in TYPES.items() if type(value) is kind), "number")
