"""Escaping of untrusted text for cards and plots: one readable line of limited length, without markup.

For the terminal and error messages, [`shorten`][hf_sane.records._errors.shorten] suffices, since it removes control
characters. It also keeps values on one line in YAML, where the serializer quotes them.
"""

import json
import re
from typing import Any

from hf_sane.records._errors import shorten

MAX_TEXT = 4000  # maximum number of characters of a value on a card
ADDRESS = re.compile(r"://|www\.|mailto:|\S@\S", re.IGNORECASE)  # text that renderers turn into links
ACTIVE = re.compile(r"[\\`*\[\]#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
STARTS_A_BLOCK = re.compile(r"^([-+](?=[ -]|$)|[=:]|\d+(?=[.)]( |$)))")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markup(str):
    """Markdown from this library, which is not escaped again."""

    __slots__ = ()


def markdown_text(value: object, limit: int = MAX_TEXT) -> Markup:
    """A value as plain text inside a line of Markdown, without links, HTML, headings, lists, code or formulas.

    `|` is not escaped, since tables do so in all cells.
    """
    if isinstance(value, Markup):
        return value
    line = shorten(str(value), limit)
    if ADDRESS.search(line):
        return markdown_code(line, limit)
    line = ACTIVE.sub(lambda found: f"\\{found[0]}", line)
    line = re.sub(r"[&<>]", lambda found: ENTITIES[found[0]], line)
    if found := STARTS_A_BLOCK.match(line):
        end = found.end() if found[0][-1].isdigit() else 0
        line = f"{line[:end]}\\{line[end:]}"
    return Markup(line)


def markdown_code(value: object, limit: int = MAX_TEXT) -> Markup:
    """A value as inline code in Markdown; backticks become apostrophes."""
    line = shorten(str(value), limit).replace("`", "'")
    return Markup(f"`{line}`" if line else "")


def python_literal(value: Any) -> Markup:
    """Python source of a value for a fenced block of a card; strings cannot terminate themselves or the block."""
    if not isinstance(value, str):
        return Markup(repr(value))
    return Markup(re.sub(r"[^ -~]|`", _code_point, json.dumps(value, ensure_ascii=False)))


def _code_point(letter: re.Match[str]) -> str:
    number = ord(letter[0])
    return f"\\U{number:08x}" if number > 0xFFFF else f"\\u{number:04x}"


def single_lines(value: Any, limit: int = MAX_TEXT) -> Any:
    """JSON-like metadata with every string on one line, for a YAML serializer."""
    if isinstance(value, str):
        return shorten(value, limit)
    if isinstance(value, dict):
        return {shorten(str(key), limit): single_lines(item, limit) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [single_lines(item, limit) for item in value]
    return value


def plot_text(value: object, limit: int = 200) -> str:
    """A value as a label of matplotlib, which reads `$...$` as a formula."""
    return shorten(str(value), limit).replace("$", r"\$")
