"""Kinds of files, recognised by content; an output file may only replace a file of the same kind."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

PICKLE_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl", ".pickle", ".pth.tar", ".pt.tar")


@dataclass(frozen=True)
class FileKind:
    """Kind of a file.

    Attributes:
        name: Name with its article, such as `"a picture"`.
        matches: Function that returns whether content is of this kind.
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


# Formats of matplotlib: PNG, PDF, SVG, PostScript, JPEG.
PICTURE = FileKind(
    "a picture",
    lambda content: content.startswith((b"\x89PNG\r\n", b"%PDF", b"<?xml", b"<svg", b"%!PS", b"\xff\xd8\xff")),
)
REPORT_PAGE = FileKind(
    "a report", lambda content: content.startswith(b"<!DOCTYPE html>") and b"<title>hf_sane: " in content
)
SARIF = FileKind.json_with("a SARIF report", "version", "runs")
