"""Names of columns, made from names that people and programs write in any script."""

from collections.abc import Container
from itertools import count
from unicodedata import normalize

MAX_NAME = 100  # characters


def plain_name(name: str) -> str:
    """Convert a name to lower-case letters and digits of any script, with underscores for everything else.

    Equal names in different encodings, such as those with combining accents, become one (NFC).
    """
    letters = (letter if _is_kept(letter) else " " for letter in _lower(name).replace("_", " "))
    return "_".join("".join(letters).split())[:MAX_NAME].rstrip("_")


def is_changed(name: str) -> bool:
    """Whether the plain name differs from a name by more than case and ASCII punctuation, or is cut."""
    return len(name) > MAX_NAME or (not name.isascii() and plain_name(name) != _lower(name))


def numbered(name: str, taken: Container[str]) -> str:
    """The name, or the first of `name_2`, `name_3`, ... that is not taken."""
    return next(found for number in count(1) if (found := name if number == 1 else f"{name}_{number}") not in taken)


def _lower(name: str) -> str:
    return normalize("NFC", normalize("NFC", name).lower())


def _is_kept(letter: str) -> bool:
    """Whether identifiers may contain a character, such as letters, digits and the vowel signs of Devanagari."""
    return f"a{letter}".isidentifier()
