"""Check the header of a GGUF file before the package `gguf` parses it.

The package trusts the lengths in a header: a single wrong bit makes it count to 2^60, or raises errors about its own
code. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import BinaryIO

from hf_sane.records._errors import InvalidFileError
from hf_sane.tokenization._checkpoints import AGAIN
from hf_sane.tokenization._pickles import DAMAGED

VERSIONS = (2, 3)  # that the package reads
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its kind
TEXT, ARRAY = 8, 9
MAX_ITEMS = 2**22  # of an array; vocabularies have up to a million


def check_gguf_header(file: str, path: Path, known: int) -> None:
    """Check the version, and that all lengths of the metadata lie within the file.

    Args:
        file: Name of the file, for messages.
        path: The file, or a copy of its start.
        known: Number of bytes of the file that were read.

    Raises:
        InvalidFileError: If something is wrong.
    """
    with path.open("rb") as content:
        start = content.read(8)[4:]
        version = int.from_bytes(start, "little")
        if version not in VERSIONS and int.from_bytes(start, "big") in VERSIONS:
            got, remedy = "a file in the other byte order", "convert it with gguf-convert-endian"
            raise InvalidFileError(file, expected="a little-endian GGUF file", got=got, remedy=remedy)
        if len(start) == 4 and version not in VERSIONS:
            expected = f"a GGUF file of version {' or '.join(map(str, VERSIONS))}"
            raise InvalidFileError(file, expected=expected, got=f"version {version:,}", remedy=AGAIN)
        try:
            _follow(content, known)
        except (EOFError, KeyError, RecursionError) as error:
            raise gguf_damage(file) from error


def gguf_damage(file: str) -> InvalidFileError:
    """The error about a damaged file."""
    return InvalidFileError(file, expected="a whole GGUF file", got=DAMAGED, remedy=AGAIN)


def _follow(content: BinaryIO, known: int) -> None:
    """Go through the metadata.

    Raises:
        EOFError: If it ends outside of the file.
        KeyError: If there is an unknown kind of value.
    """

    def number(size: int) -> int:
        found = content.read(size)
        if len(found) < size or content.tell() > known:
            raise EOFError
        return int.from_bytes(found, "little")

    def skip(size: int) -> None:
        if size > known - content.tell():
            raise EOFError
        content.seek(size, 1)

    def value(kind: int) -> None:
        if kind == TEXT:
            skip(number(8))
        elif kind == ARRAY:
            inside, count = number(4), number(8)
            if count > MAX_ITEMS:
                raise EOFError
            if inside in SIZES:
                skip(count * SIZES[inside])
            else:
                for _ in range(count):
                    value(inside)
        else:
            skip(SIZES[kind])

    number(8)  # of tensors
    for _ in range(number(8)):
        skip(number(8))
        value(number(4))
