"""A fault of a checkpoint, or a note about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_sane.records._errors import InvalidFileError, name_some

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A fault of a checkpoint, or a note about it.

    Attributes:
        rule: Name of the rule, as in `--fail-on`.
        severity: `"error"` (broken or unsafe), `"warning"` (worth checking) or `"note"`.
        message: One sentence.
        remedy: What to do.
        tensors: Names of the affected tensors.
    """

    rule: str
    severity: Severity
    message: str
    remedy: str
    tensors: tuple[str, ...] = ()


def about(rule: str, severity: Severity, message: str, names: Sequence[str], remedy: str) -> Finding:
    """A finding about tensors, whose names are appended to the message."""
    return Finding(rule, severity, f"{message} {name_some(names)}", remedy, tuple(names))


def damaged(name: str, error: InvalidFileError, severity: Severity = "error") -> Finding:
    """The finding about a damaged file next to others that can be read."""
    return Finding("damaged", severity, f"{name}: {what_is_wrong(error)}", error.remedy)


def what_is_wrong(error: InvalidFileError) -> str:
    """Expected and actual content of a file, without its name."""
    place = f"{error.field}: " if error.field else ""
    return f"{place}expected {error.expected}, got {error.got}"
