"""Mutations of real files: of their bytes, and of the JSON in them."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

LENGTH_BYTES = 8
SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        2**31,
        2**40,
        2**60,
        2**63,
        2**64,
        10**30,
        1.5,
        -0.0,
        float("nan"),
        float("inf"),
        1e308,
        *["", "x", "a", "F32", "I64", "float32", "../x", "/etc/passwd", "\x00", "\ud800", "x" * 300, "<script>"],
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    """A few bytes changed, removed, repeated or put in; or the file cut."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["set", "flip", "cut", "insert", "remove", "repeat"]))
        if kind == "cut":
            del data[place:]
        elif kind == "remove":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "set":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif data:
            data[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@st.composite
def mutated_json(draw: Callable[..., Any], value: Any) -> Any:
    """One to three values of a JSON document replaced, removed, renamed, or exchanged with another."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "nudge", "remove", "swap", "copy"]))
        if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
            continue
        if kind == "remove":
            del holder[key]
        elif kind == "replace":
            holder[key] = draw(VALUES)
        elif kind == "nudge" and type(holder[key]) is int:
            holder[key] += draw(st.sampled_from([-1, 1, 2**31, 2**60]))
        elif kind == "copy" and isinstance(holder, dict):
            holder[draw(st.text(max_size=3))] = holder[key]
        else:
            other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            holder[key], holder[other] = holder[other], holder[key]
    return value


def _places(value: Any) -> Any:
    """Every holder and key of a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


def mutations(content: bytes, name: str) -> st.SearchStrategy[bytes]:
    """Mutated versions of a file, by its bytes and, where there is some, by its JSON."""
    if name.endswith(".json"):
        return mutated_bytes(content) | mutated_json(json.loads(content)).map(_dumped)
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:LENGTH_BYTES], "little")
        header, data = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length]), content[LENGTH_BYTES + length :]

        def joined(value: Any) -> bytes:
            text = _dumped(value)
            return len(text).to_bytes(LENGTH_BYTES, "little") + text + data

        changed = mutated_json(header).map(joined)
        metadata = header.get("__metadata__", {}).get("alignment")
        if metadata is None:
            return mutated_bytes(content) | changed
        inner = mutated_json(json.loads(metadata)).map(
            lambda value: joined({**header, "__metadata__": {"alignment": _dumped(value).decode()}})
        )
        return mutated_bytes(content) | changed | inner
    return mutated_bytes(content)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")
