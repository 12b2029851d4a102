"""The error of all file readers, and texts for messages."""

import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb
from typing import Any

MAX_SHOWN = 200  # maximum number of characters of an untrusted value in a message
LIBRARY = Path(__file__).resolve().parents[1]
OTHERS = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


class InvalidFileError(ValueError):
    """A file is damaged, has another format, or contains an invalid value.

    Readers of this library raise no other exception for any content of a file. A missing file is a
    `FileNotFoundError`.

    Attributes:
        file: Path or address of the file.
        field: Location of the fault in the file, such as `layers[3].shape`; `None` for the whole file.
        expected: Description of valid content.
        got: Actual content, shortened to one line.
        remedy: Advice to the user.
    """

    def __init__(self, file: str | Path, *, expected: str, got: object, remedy: str, field: str | None = None) -> None:
        # Names of tensors and keys are untrusted text, too.
        self.file, self.field, self.remedy = str(file), None if field is None else shorten(field), remedy
        # Messages of other errors are sentences, often of this library.
        limit = 3 * MAX_SHOWN if isinstance(got, BaseException) else MAX_SHOWN
        found = f"an error: {got}" if is_sentence(got) else got  # since it may begin with "expected", too
        self.expected, self.got = shorten(expected, 2 * MAX_SHOWN), shorten(found, limit)
        place = self.file if field is None else f"{self.file}: {self.field}"
        super().__init__(f"{place}: expected {self.expected}, got {self.got}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (self.file, self.field, self.expected, self.got, self.remedy))


def _restore(file: str, field: str | None, expected: str, got: str, remedy: str) -> InvalidFileError:
    return InvalidFileError(file, field=field, expected=expected, got=got, remedy=remedy)


def shorten(value: object, limit: int = MAX_SHOWN) -> str:
    """A value as one printable line of at most `limit` characters, for messages that quote untrusted files.

    Exceptions whose text is not a sentence are shown with their type, since the text of `KeyError("x")` is just `'x'`.
    """
    is_bare = isinstance(value, BaseException) and not is_sentence(value)
    text = f"{type(value).__name__}: {value}" if is_bare else str(value)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def describe_skipped(name: str, reason: str) -> str:
    """A skipped item and the reason; reasons that begin with the name of a file do not repeat it."""
    return f"skipped {reason if reason.startswith(f'{name}: ') else f'{name}: {reason}'}"


def is_sentence(value: object) -> bool:
    """Whether this is an exception whose text says what is wrong, so that users need not read the name of its type."""
    return isinstance(value, BaseException) and not isinstance(value, KeyError) and len(str(value).split()) > 2


def place_of(error: BaseException) -> str:
    """Where the user's code raised an error, itself or by a call into a package: `"nets.py, line 21"`.

    Empty if this library called what raised it.
    """
    for frame in reversed(extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if file.is_relative_to(LIBRARY):
            return ""
        if file.is_file() and not any(file.is_relative_to(folder) for folder in OTHERS):
            return f"{file.name}, line {frame.lineno}"
    return ""


def describe_cause(error: BaseException) -> str:
    """The first line of what an error says; if that is no sentence, also its kind and its place in the user's code."""
    if is_sentence(error):
        return shorten(str(error).partition("\n")[0])
    place = place_of(error)
    shown = shorten(error) if str(error) else type(error).__name__
    return f"{shown} ({place})" if place else shown


def name_some(names: Iterable[object], limit: int = 3) -> str:
    """The first few names and the number of others; an empty text without names."""
    found = [shorten(name) for name in names]
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def did_you_mean(got: object, choices: Iterable[str]) -> str:
    """Suggestion of the most similar choice, for the end of a message; empty if none is similar."""
    close = get_close_matches(str(got), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# Exceptions of Python, safetensors, NumPy and YAML for unexpected bytes. `OSError` is not among them, since an
# unreadable disk is not a fault of the file; `MemoryError` is, since a header may claim any size.
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
    got: str | None = None,
) -> Iterator[None]:
    """Convert exceptions of a parser about malformed content into an [`InvalidFileError`] about `file`.

    Args:
        file: Path or address of the file that the block reads.
        expected: Description of valid content.
        remedy: Advice to the user.
        field: Part of the file that the block reads.
        also: Further exceptions of the parser, such as `SafetensorError` or `yaml.YAMLError`.
        by_arrow: Whether Arrow parses the file, which raises the same exception for damaged bytes and damaged disks,
            the former without an error number.
        got: What was found, if the messages of the parser say nothing to users.

    Raises:
        InvalidFileError: If the block raises one of `MALFORMED` or `also`, or an `InvalidFileError` itself.
    """
    caught: tuple[type[Exception], ...] = (*((OSError,) if by_arrow else ()), *MALFORMED, *also)
    try:
        yield
    except InvalidFileError:
        raise
    except caught as error:
        if isinstance(error, OSError) and not isinstance(error, also) and not _is_of_a_parser(error):
            raise
        raise InvalidFileError(file, field=field, expected=expected, got=got or error, remedy=remedy) from error


def _is_of_a_parser(error: OSError) -> bool:
    """Whether an `OSError` is Arrow's about malformed content; those of the system have a number or a subclass."""
    return type(error) is OSError and error.errno is None
