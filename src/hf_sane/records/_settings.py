"""Fields of settings with help texts: each field is documented at its declaration and becomes an option."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hf_sane.records._errors import did_you_mean

FORMER_NAMES_END = "0.3"  # the version that rejects them
# Types of flags and numbers, and their names in messages.
NUMBERS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
}


def setting(
    help_text: str,
    *,
    default: Any = MISSING,
    factory: Callable[[], Any] | Any = MISSING,
    short: str | None = None,
    formerly: str | tuple[str, ...] = (),
    positional: bool = False,
    split: bool = True,
    opposite: str | None = None,
    only_python: bool = False,
    once: bool = False,
    least: int = 0,
    choices: Callable[[], Iterable[str]] | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    On the command line, the field `num_models` is the option `--num-models`, and `from_`, whose name without the
    underscore is a keyword of Python, is `--from`.

    Args:
        help_text: Meaning of the field in a sentence, for its documentation and `--help`.
        default: Default value; without it and without `factory`, the field is required.
        factory: Function that creates the default, for lists and dictionaries.
        short: Short spelling of the option, such as `"-o"`.
        formerly: Former spellings of the option (`"--output_dir"`), which work for one version with a note, also as
            names of the field (`output_dir`) in Python and in run files; without dashes, only those.
        positional: Whether the field is a positional argument on the command line.
        split: Whether a list may be given as one text, separated by commas. Not for paths.
        opposite: Option that switches a flag off, such as `"--public"`; by default `--no-` and the name.
        only_python: Whether the field has no option.
        once: Whether the field concerns a single call, so that it is not part of run files.
        least: Smallest allowed number, also for the items of a list; see [`check_numbers`].
        choices: Function that lists values of a text, which shells complete; others may be allowed, too.
    """
    older = (formerly,) if isinstance(formerly, str) else formerly
    metadata = {
        "help": help_text,
        "short": short,
        "formerly": older,
        "positional": positional,
        "split": split,
        "opposite": opposite,
        "only_python": only_python,
        "once": once,
        "least": least,
        "choices": choices,
    }
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_numbers(settings: Any, *, unlimited: Collection[str] = ()) -> None:
    """Check that numbers are finite and in range; most comparisons would not detect NaN.

    Args:
        settings: A dataclass.
        unlimited: Fields that may be infinite.

    Raises:
        ValueError: If a number is not finite, or smaller than the field's `least`.
    """
    for entry in fields(settings):
        value, least = getattr(settings, entry.name), entry.metadata.get("least", 0)
        for number in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(number, int | float) or (entry.name in unlimited and number == math.inf):
                continue
            if not (math.isfinite(number) and number >= least):
                raise ValueError(f"expected {entry.name} to be a finite number of at least {least}, got {number}")


class _Fitting(type):
    """Converts values to the types of the fields before the settings are created, or raises an error.

    Former names of fields are replaced, with a warning.
    """

    def __call__(cls, **given: Any) -> Any:
        known = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]  # all classes are dataclasses
        former = former_names(cls)
        fitted: dict[str, Any] = {}
        for word, value in given.items():
            name = former.get(word, word)
            if name not in known or name in fitted:
                close = "" if name in known else did_you_mean(word, known)
                raise TypeError(f"{cls.__name__} got an unexpected keyword argument {word!r}{close}")
            if name != word:
                until = f"the former name works until version {FORMER_NAMES_END}"
                warnings.warn(f"{word} is now {name}; {until}", FutureWarning, stacklevel=4)
            fitted[name] = _fitted(word, known[name].type, value)
        return super().__call__(**fitted)


def _fitted(name: str, kind: Any, value: Any) -> Any:
    """Convert a value to the type of a field: a single value to a list, text to a path; check numbers and choices.

    Raises:
        TypeError: If it is not a number or flag as expected.
        ValueError: If it is not among the choices.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    lists = [part for part in kinds if get_origin(part) is list]
    if lists and not any(isinstance(value, _class_of(part)) for part in kinds):
        value = as_list(value)
    if isinstance(value, list) and lists:
        return [_fitted(name, get_args(lists[0])[0], item) for item in value]
    if isinstance(value, Path) and str in kinds and Path not in kinds:
        return str(value)
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    choices = [choice for part in kinds if get_origin(part) is Literal for choice in get_args(part)]
    if choices and value not in choices:
        close = did_you_mean(value, choices)
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}{close}")
    numbers = [part for part in kinds if part in NUMBERS]
    if not numbers or len(numbers) < len([part for part in kinds if part is not NoneType]):
        return value
    if not any(isinstance(value, NUMBERS[part][0]) and isinstance(value, bool) == (part is bool) for part in numbers):
        raise TypeError(f"expected {name} to be {NUMBERS[numbers[-1]][1]}, got {value!r}")
    return value


def _class_of(kind: Any) -> type:
    """Classes that values of a type are instances of."""
    return str if get_origin(kind) is Literal else get_origin(kind) or kind


def as_list(value: Any) -> list[Any]:
    """Values as a list; a value that is not a collection (a text, path, module or mapping) becomes its only item."""
    return list(value) if isinstance(value, list | tuple | range | Set | Iterator) else [value]


@dataclass(kw_only=True)
class CheckedSettings(metaclass=_Fitting):
    """Base class of settings that check their values on creation; a list may be given as a single value."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(kw_only=True)
class SeedSettings(CheckedSettings):
    """Setting of work in which one seed decides everything that is drawn."""

    seed: int = setting("Random seed.", default=0)


@dataclass(kw_only=True)
class ProgressSettings(CheckedSettings):
    """Setting of work that shows its progress; it may differ when the work is continued."""

    progress_bar: bool = setting("Show a progress bar.", default=True)


def option_name(entry: Field) -> str:
    """The option of a field, such as `--num-models`."""
    return f"--{entry.name.rstrip('_').replace('_', '-')}"


def former_names(settings: type) -> dict[str, str]:
    """Former names of fields, with the current ones."""
    known = {entry.name: entry.metadata.get("formerly", ()) for entry in fields(settings)}
    pairs = ((old.lstrip("-").replace("-", "_"), name) for name, older in known.items() for old in older)
    return {old: name for old, name in pairs if old.isidentifier() and old not in known}


def default_of(entry: Field) -> Any:
    """The default of a field; `dataclasses.MISSING` if it is required."""
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def as_arguments(settings: Any, kind: type | None = None) -> dict[str, Any]:
    """Settings in the form of a run record, where objects are represented by their `source`.

    Args:
        settings: A dataclass.
        kind: A base class, to take only its fields.
    """
    return {entry.name: _argument(getattr(settings, entry.name)) for entry in fields(kind or settings)}


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _argument(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_argument(entry) for entry in value]
    return str(getattr(value, "source", None) or f"<{type(value).__name__}>")
