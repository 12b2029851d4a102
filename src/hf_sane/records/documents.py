"""JSON files that somebody else wrote, read value by value: every refusal names the file and the field."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hf_sane.records.errors import InvalidFileError, reading

DOWNLOAD_AGAIN = "download or write the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a JSON file, and where it is.

    Attributes:
        value: As `json` reads it.
        file: Path or address of the file.
        field: Keys and indices that lead to the value, such as `layers[3].shape`; `None` for the whole file.
        remedy: What the user can do if the value is not what it should be.
    """

    value: Any
    file: str
    field: str | None = None
    remedy: str = DOWNLOAD_AGAIN

    def fail(self, expected: str, got: object = None, remedy: str | None = None) -> NoReturn:
        """Refuse this value.

        Args:
            expected: What would have been right.
            got: What to show instead of the value.
            remedy: What the user can do, if it is not what the entry says.

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
        """The elements of a list, of so many if `length` is given."""
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
        """One of some values, of the type of that value."""
        if not any(type(self.value) is type(choice) and self.value == choice for choice in choices):
            self.fail(f"one of {', '.join(map(repr, choices))}", got=repr(self.value))
        return self.value

    def flag(self) -> bool:
        """`true` or `false`."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def whole(self, at_least: int = 0, at_most: int = 2**63 - 1) -> int:
        """A whole number in a range; by default what an int64 holds."""
        if type(self.value) is not int or not at_least <= self.value <= at_most:
            self.fail(f"a whole number from {at_least} to {at_most}")
        return self.value

    def number(self, above: float = -math.inf) -> float:
        """A finite number, larger than `above`."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not abs(self.value) <= 1.7976931348623157e308 or not self.value > above:
            self.fail("a finite number" + ("" if above == -math.inf else f" above {above:g}"))
        return float(self.value)

    def _below(self, key: str, value: Any) -> "Entry":
        return Entry(value, self.file, key if self.field is None else f"{self.field}.{key}", self.remedy)


def read_document(path: str | Path, *, expected: str, remedy: str = DOWNLOAD_AGAIN) -> Entry:
    """Read a JSON file that holds an object.

    Args:
        path: The file, UTF-8.
        expected: What it should be, for messages: `"the facts of a zoo (a JSON object)"`.
        remedy: What the user can do if it is damaged.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it is no JSON object, names a field twice, or holds text that is no Unicode.
    """
    with reading(path, expected=expected, remedy=remedy):
        text = Path(path).read_text(encoding="utf-8")
    return parse_document(text, path, expected=expected, remedy=remedy)


def parse_document(
    text: str, file: str | Path, *, expected: str = "a JSON object", remedy: str = DOWNLOAD_AGAIN
) -> Entry:
    """Like [`read_document`], of text that was read already, such as the metadata of a safetensors file.

    Raises:
        InvalidFileError: As there.
    """
    with reading(file, expected=expected, remedy=remedy):
        content = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(content, dict):
            raise TypeError(f"{_outline(content)} instead of an object")
        if "\\ud" in text.lower():  # half a surrogate pair could be neither printed nor written
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return Entry(content, str(file), remedy=remedy)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the field {twice!r} is there twice")
    return content


def _outline(value: object) -> object:
    """Enough of a value to recognise it."""
    if isinstance(value, Mapping):
        names = ", ".join(map(repr, list(value)[:8]))
        return f"an object with {len(value)} fields ({names})" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value) if isinstance(value, str) else "null" if value is None else value
