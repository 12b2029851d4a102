"""The error of all readers of files."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

MAX_SHOWN = 200  # characters of a stranger's value that a message repeats


class InvalidFileError(ValueError):
    """A file is not what it should be: damaged, of another format, or with a value that cannot be right.

    Every reader of this library raises it, and no other exception, whatever bytes a file holds. A file that does not
    exist is a `FileNotFoundError`.

    Attributes:
        file: Path or address of the file.
        field: Where in the file the fault is, such as `layers[3].shape`; `None` when the file as a whole is at fault.
        expected: What would have been right.
        got: What the file holds, shortened to one line.
        remedy: What the user can do.
    """

    def __init__(self, file: str | Path, *, expected: str, got: object, remedy: str, field: str | None = None) -> None:
        # Names of tensors and keys are a stranger's text, too.
        self.file, self.field, self.remedy = str(file), None if field is None else shorten(field), remedy
        # What another error said is a sentence, often one of this library.
        limit = 3 * MAX_SHOWN if isinstance(got, BaseException) else MAX_SHOWN
        self.expected, self.got = shorten(expected, 2 * MAX_SHOWN), shorten(got, limit)
        place = self.file if field is None else f"{self.file}: {self.field}"
        super().__init__(f"{place}: expected {self.expected}, got {self.got}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (self.file, self.field, self.expected, self.got, self.remedy))


def _restore(file: str, field: str | None, expected: str, got: str, remedy: str) -> InvalidFileError:
    return InvalidFileError(file, field=field, expected=expected, got=got, remedy=remedy)


def shorten(value: object, limit: int = MAX_SHOWN) -> str:
    """A value as one printable line of at most `limit` characters, for messages that quote other people's files.

    An exception is shown with its type, so that a bare `KeyError: 'x'` does not read as `'x'`.
    """
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def name_some(names: Iterable[object], limit: int = 3) -> str:
    """The first few names, and how many more there are; nothing without names."""
    found = [shorten(name) for name in names]
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def did_you_mean(got: object, choices: Iterable[str]) -> str:
    """Suggest the choice that was probably meant, for the end of a message; empty if none is similar."""
    close = get_close_matches(str(got), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# What Python, safetensors, NumPy and YAML raise for bytes that nobody foresaw. `OSError` is not among them: a disk
# that cannot be read is not a fault of the file. `MemoryError` is: a header may claim any size.
MALFORMED: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
    EOFError,
)


@contextmanager
def reading(
    file: str | Path,
    *,
    expected: str,
    remedy: str,
    field: str | None = None,
    also: tuple[type[Exception], ...] = (),
    by_arrow: bool = False,
) -> Iterator[None]:
    """Turn whatever a parser raises for malformed content into an [`InvalidFileError`] about `file`.

    Args:
        file: Path or address of the file that the block reads.
        expected: What the file should be.
        remedy: What the user can do.
        field: Which part of the file the block reads.
        also: Further exceptions of the parser, such as `SafetensorError` or `yaml.YAMLError`.
        by_arrow: Whether Arrow parses it, which says of damaged bytes what the system says of a damaged disk, but
            without the system's number.

    Raises:
        InvalidFileError: If the block raises one of `MALFORMED` or `also`. One that the block raises itself passes.
    """
    caught: tuple[type[Exception], ...] = (*((OSError,) if by_arrow else ()), *MALFORMED, *also)
    try:
        yield
    except InvalidFileError:
        raise
    except caught as error:
        if isinstance(error, OSError) and not isinstance(error, also) and not _is_of_a_parser(error):
            raise
        raise InvalidFileError(file, field=field, expected=expected, got=error, remedy=remedy) from error


def _is_of_a_parser(error: OSError) -> bool:
    """Whether an `OSError` is about malformed content, as Arrow's are; the system's have a number or a subclass."""
    return type(error) is OSError and error.errno is None
