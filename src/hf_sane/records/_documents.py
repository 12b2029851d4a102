"""Validated reading of JSON files; every error names the file and the field."""

import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from hf_sane.records._errors import InvalidFileError, reading

DOWNLOAD_AGAIN = "download or write the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a JSON file and its location.

    Attributes:
        value: Value as `json` parses it.
        file: Path or address of the file.
        field: Keys and indices of the value, such as `layers[3].shape`; `None` for the whole file.
        remedy: Advice to the user if the value is invalid.
    """

    value: Any
    file: str
    field: str | None = None
    remedy: str = DOWNLOAD_AGAIN

    def fail(self, expected: str, got: object = None, remedy: str | None = None) -> NoReturn:
        """Raise an error about this value.

        Args:
            expected: Description of a valid value.
            got: Text to show instead of the value.
            remedy: Advice to the user, if it differs from that of the entry.

        Raises:
            InvalidFileError: Always.
        """
        shown = _outline(self.value) if got is None else got
        raise InvalidFileError(self.file, field=self.field, expected=expected, got=shown, remedy=remedy or self.remedy)

    def mapping(self) -> dict[str, Any]:
        """An object."""
        if not isinstance(self.value, Mapping):
            self.fail("an object")
        return dict(self.value)

    def __getitem__(self, key: str) -> "Entry":
        if key not in self.mapping():
            self.fail(f"a field {key!r}")
        return self._below(key, self.value[key])

    def get(self, key: str) -> "Entry | None":
        """A field that may be missing or `null`."""
        value = self.mapping().get(key)
        return None if value is None else self._below(key, value)

    def items(self) -> Iterator[tuple[str, "Entry"]]:
        """The fields of an object."""
        return ((key, self._below(key, value)) for key, value in self.mapping().items())

    def entries(self, length: int | None = None) -> list["Entry"]:
        """The elements of a list, whose number must be `length` if given."""
        if not isinstance(self.value, list | tuple):
            self.fail("a list")
        if length is not None and len(self.value) != length:
            self.fail(f"a list of {length}")
        return [
            Entry(value, self.file, f"{self.field or ''}[{index}]", self.remedy)
            for index, value in enumerate(self.value)
        ]

    def text(self) -> str:
        """Text."""
        if not isinstance(self.value, str):
            self.fail("text")
        return self.value

    def one_of(self, choices: Sequence[Any]) -> Any:
        """One of the choices, which must have the same type."""
        if not any(type(self.value) is type(choice) and self.value == choice for choice in choices):
            self.fail(f"one of {', '.join(map(repr, choices))}", got=repr(self.value))
        return self.value

    def flag(self) -> bool:
        """`true` or `false`."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def whole(self, at_least: int = 0, at_most: int = 2**63 - 1) -> int:
        """A whole number in a range, by default that of int64."""
        if type(self.value) is not int or not at_least <= self.value <= at_most:
            self.fail(f"a whole number from {at_least} to {at_most}")
        return self.value

    def number(self, above: float = -math.inf) -> float:
        """A finite number, larger than `above`."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not abs(self.value) <= 1.7976931348623157e308 or not self.value > above:
            self.fail("a finite number" + ("" if above == -math.inf else f" above {above:g}"))
        return float(self.value)

    def fields_of(self, record: type) -> dict[str, Any]:
        """Validated arguments of a dataclass: types match, and no field is unknown or missing."""
        hints, known = get_type_hints(record), {entry.name: entry for entry in fields(record)}
        if foreign := sorted(self.mapping().keys() - known.keys()):
            self.fail(f"fields among {', '.join(known)}", got=foreign)
        needed = [n for n, e in known.items() if e.default is MISSING and e.default_factory is MISSING]
        for name in needed:
            self[name]  # raises an error for a missing field
        return {name: entry.of_type(hints[name]) for name, entry in self.items()}

    def of_type(self, wanted: Any) -> Any:
        """A value validated against a type: `str`, `int`, `float`, `bool`, `Literal`, tuple, list, mapping, union."""
        origin, parts = get_origin(wanted), get_args(wanted)
        if wanted is Any:
            return self.value
        if origin in (Union, types.UnionType):
            fitting = [part for part in parts if _could_be(self.value, part)]
            return self.of_type(fitting[0]) if fitting else self.fail(_names(parts))
        if origin is Literal:
            return self.one_of(parts)
        if not _could_be(self.value, wanted):
            self.fail(_names((wanted,)))
        if origin in (tuple, list, Sequence):
            values = [entry.of_type(parts[0]) for entry in self.entries()]
            return tuple(values) if origin is tuple else values
        if origin in (dict, Mapping):
            return {key: entry.of_type(parts[1]) for key, entry in self.items()}
        return self.value

    def _below(self, key: str, value: Any) -> "Entry":
        return Entry(value, self.file, key if self.field is None else f"{self.field}.{key}", self.remedy)


def read_document(path: str | Path, *, expected: str, remedy: str = DOWNLOAD_AGAIN) -> Entry:
    """Read a JSON file that contains an object.

    Args:
        path: UTF-8 file.
        expected: Description of its content for messages, such as `"the facts of a zoo (a JSON object)"`.
        remedy: Advice to the user if it is damaged.

    Raises:
        FileNotFoundError: If the file does not exist.
        InvalidFileError: If it is not a JSON object, a field is repeated, or a text is not valid Unicode.
    """
    with reading(path, expected=expected, remedy=remedy):
        text = Path(path).read_text(encoding="utf-8")
    return parse_document(text, path, expected=expected, remedy=remedy)


def parse_document(
    text: str, file: str | Path, *, expected: str = "a JSON object", remedy: str = DOWNLOAD_AGAIN
) -> Entry:
    """[`read_document`] for text that was read already, such as the metadata of a safetensors file."""
    with reading(file, expected=expected, remedy=remedy):
        content = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise TypeError(f"{_outline(content)} instead of an object")
        if "\\ud" in text.lower():  # a lone surrogate can be neither printed nor written
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return Entry(content, str(file), remedy=remedy)


def read_settings(text: str, option: str) -> dict[str, Any]:
    """Parse settings given as a JSON object or as the path of a JSON file.

    Args:
        text: Value of the option.
        option: Name of the option, for messages.

    Raises:
        FileNotFoundError: If it is neither a JSON object nor an existing file.
        InvalidFileError: If it is damaged.
    """
    if text.lstrip().startswith("{"):
        return parse_document(text, option, remedy="see the documentation of the option").mapping()
    return read_document(text, expected=f"settings for {option} (a JSON object)").mapping()


def _could_be(value: object, wanted: Any) -> bool:
    """Whether a JSON value has a type, without checking its items."""
    origin = get_origin(wanted) or wanted
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(wanted))
    if wanted in (None, types.NoneType):
        return value is None
    if origin in (tuple, list, Sequence):
        return isinstance(value, list | tuple)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (str, int, bool):
        return type(value) is origin
    return isinstance(value, Mapping) if origin in (dict, Mapping) else origin is Any


def _names(wanted: Sequence[Any]) -> str:
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
    lists, mappings = (tuple, list, Sequence), (dict, Mapping)
    names: list[str] = []
    for entry in wanted:
        origin = get_origin(entry) or entry
        if origin is Literal:
            names.extend(map(repr, get_args(entry)))
        else:
            names.append(
                "a list" if origin in lists else "an object" if origin in mappings else plain.get(origin, "null")
            )
    return " or ".join(names)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the field {twice!r} is repeated")
    return content


def _outline(value: object) -> object:
    """Short description of a value for messages."""
    if isinstance(value, Mapping):
        names = ", ".join(map(repr, list(value)[:8]))
        return f"an object with {len(value)} fields ({names})" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value) if isinstance(value, str) else "null" if value is None else value
