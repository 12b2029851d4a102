"""Kinds of files by content: an output file may replace a file of the same kind only."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

PICKLE_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl", ".pickle", ".pth.tar", ".pt.tar")


@dataclass(frozen=True)
class FileKind:
    """Kind of a file, recognised by its content.

    Attributes:
        name: With its article, such as `"a picture"`.
        matches: Whether a file with this content is of this kind.
    """

    name: str
    matches: Callable[[bytes], bool]

    @classmethod
    def json_with(cls, name: str, *keys: str) -> "FileKind":
        """A JSON object with certain keys."""

        def matches(content: bytes) -> bool:
            with suppress(ValueError, RecursionError):
                found = json.loads(content)
                return isinstance(found, dict) and all(key in found for key in keys)
            return False

        return cls(name, matches)


# PNG, PDF, SVG, PostScript, JPEG: what matplotlib draws.
PICTURE = FileKind(
    "a picture",
    lambda content: content.startswith((b"\x89PNG\r\n", b"%PDF", b"<?xml", b"<svg", b"%!PS", b"\xff\xd8\xff")),
)
REPORT_PAGE = FileKind(
    "a report", lambda content: content.startswith(b"<!DOCTYPE html>") and b"<title>hf_sane: " in content
)
