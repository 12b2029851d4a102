"""Convert properties of networks to typed columns of a zoo, with known names and numbers in common notations."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Features, Value

from hf_sane.records._errors import name_some, shorten
from hf_sane.records._redaction import hide_folders
from hf_sane.zoo._column_names import is_changed, numbered, plain_name
from hf_sane.zoo._records import CHOICES, FEATURES, IMPORT_FEATURES, MEASURES, METRIC_PREFIX, NUMBERS

Kind = Literal["integer", "float", "category", "text"]
VALUES = {"integer": Value("int64"), "float": Value("float64"), "category": Value("string"), "text": Value("string")}

# Other names for a zoo's columns, with underscores for everything but letters and digits.
SAME: Mapping[str, tuple[str, ...]] = {
    "train_loss": ("loss_train", "training_loss", "trainloss"),
    "train_accuracy": ("train_acc", "acc_train", "training_accuracy", "accuracy_train", "trainacc"),
    "validation_loss": ("val_loss", "valid_loss", "loss_val", "eval_loss", "loss_validation"),
    "validation_accuracy": (
        *("val_accuracy", "val_acc", "valid_acc", "valid_accuracy", "validation_acc", "acc_val", "eval_accuracy"),
        *("eval_acc", "accuracy_val"),
    ),
    "test_loss": ("loss_test", "testloss"),
    "test_accuracy": ("test_acc", "acc_test", "accuracy_test", "testacc"),
    "generalization_gap": ("ggap", "gap", "generalisation_gap"),
    "learning_rate": ("lr", "base_lr", "init_lr", "learningrate"),
    "weight_decay": ("wd", "l2reg", "l2", "weightdecay"),
    "dropout": ("dropout_rate", "p_dropout"),
    "data_fraction": ("train_fraction", "fraction", "data_share"),
    "optimizer": ("optim", "optimiser", "optimizer_name"),
    "initialization": ("init", "init_type", "w_init", "initialisation", "weight_init"),
    "activation": ("nlin", "nonlinearity", "act", "activation_function"),
    "seed": ("random_seed", "rng_seed"),
    "epoch": ("epochs_trained", "trained_epochs", "training_iteration"),
    "step": ("global_step", "iteration", "iter", "_step"),
    "run": ("run_id", "run_name", "trial_id", "trial", "modeldir", "experiment", "model_id"),
}
KNOWN = {other: name for name, others in SAME.items() for other in (name, *others)}
# Prefixes that trackers add to the names of settings and results.
GROUPS = re.compile(r"^(config|params?|summary|hparams?|hyperparameters?|optim|model|training|metrics?|results?)_")
ACCURACIES = tuple(name for name in MEASURES if name.endswith("accuracy"))
TAKEN = {*FEATURES, *IMPORT_FEATURES} - {*MEASURES, *NUMBERS, *CHOICES, "epoch", "seed"} | {"architecture", "zoo"}
PREFIX = "property_"  # of columns whose name the zoo already uses

INTEGER = re.compile(r"[-+]?\d+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf(inity)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(e[-+]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
MOSTLY = 0.9  # share of numbers from which a column with some texts is numeric
MAX_CATEGORIES, MAX_CATEGORY_SHARE = 50, 0.5
MAX_COLUMNS, MAX_TEXT = 200, 1000
PERCENT = 100.0
MAX_INTEGER, MAX_BITS = 2**63 - 1, 1024  # of integers, and of those that floats can hold
MAX_EPOCH = 2**31 - 1
SHOWN = 3


@dataclass(frozen=True)
class PropertyColumns:
    """Typed properties of all networks.

    Attributes:
        rows: `{column: value}` of each network.
        features: Columns in addition to those of every zoo.
        described: Description of each column: `type`, `from` (its name in the table), `known` (number of networks).
        notes: Messages about values that were left out or changed.
    """

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    features: Features = field(default_factory=Features)
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def zoo_name(name: str) -> str | None:
    """The column (or `run`, `step`) of a zoo that a name refers to: `optim::lr` is `learning_rate`."""
    plain = plain_name(name)
    while plain not in KNOWN and (inner := GROUPS.sub("", plain)) != plain:
        plain = inner
    known = KNOWN.get(plain)
    of_epoch = KNOWN.get(plain.removesuffix("_epoch"))  # Lightning, beside values of steps: `train_loss_epoch`
    return of_epoch if known is None and of_epoch in MEASURES else known


def typed_columns(raw: Mapping[str, Mapping[str, Any]]) -> PropertyColumns:
    """Determine the names and types of property columns.

    Accuracies above 1 are interpreted as percentages, with a note. If `generalization_gap` is not given, it is
    computed from the accuracies.

    Args:
        raw: `{name in the table: value}` of each network, with texts, numbers, flags or `None` as values.
    """
    values: dict[str, dict[str, Any]] = {}
    for network, found in raw.items():
        for name, value in found.items():
            if value is not None:
                values.setdefault(name, {})[network] = value
    named, notes = _named(list(values))
    rows: dict[str, dict[str, Any]] = {network: {} for network in raw}
    features: dict[str, Value] = {}
    described: dict[str, dict[str, Any]] = {}
    for name, column in named.items():
        typed, kind, note = _typed(values[name], _wanted(column), MAX_EPOCH if column == "epoch" else MAX_INTEGER)
        notes += [f"{shorten(name)}: {note}"] if note else []
        if column in ACCURACIES and typed and max(typed.values()) > 1:
            if max(typed.values()) > PERCENT:
                notes.append(f"{shorten(name)}: {max(typed.values()):g} is not an accuracy; the column is left out")
                continue
            typed = {network: value / PERCENT for network, value in typed.items()}
            notes.append(
                f"{shorten(name)}: interpreted as percentages, since it reaches {PERCENT * max(typed.values()):g}"
            )
        if column not in FEATURES:
            features[column] = VALUES[kind]
        # JSON can hold names that are not valid Unicode.
        written = name.encode(errors="backslashreplace").decode()
        described[column] = {"type": kind, "from": written, "known": len(typed)}
        for network, value in typed.items():
            rows[network][column] = value
    _add_gaps(rows, described)
    return PropertyColumns(rows, Features(features), described, tuple(notes))


def _named(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Column of the zoo for each name in the table; if several names compete, an identical name comes first."""
    found: dict[str, str] = {}
    renamed, others = [], []
    for name in sorted(names, key=lambda name: plain_name(name) not in FEATURES):
        if len(found) == MAX_COLUMNS:
            others.append(shorten(name))
            continue
        taken = found.values()
        column = zoo_name(name)
        if column is None or column in ("run", "step") or column in taken:
            column = plain = plain_name(name) or "column"
            if plain in TAKEN or plain.startswith(METRIC_PREFIX) or plain in taken:
                column = f"{PREFIX}{plain.removeprefix(PREFIX)}"
            column = numbered(column, taken)
            if column != plain or is_changed(name):
                renamed.append(f"{shorten(name)} is {column}")
        found[name] = column
    notes = [f"columns with other names than in the table: {'; '.join(renamed)}"] if renamed else []
    if others:
        notes.append(
            f"columns that are left out, since there are more than {MAX_COLUMNS}: {len(others)} ({name_some(others)})"
        )
    return {name: found[name] for name in names if name in found}, notes


def _wanted(column: str) -> Kind | None:
    """The type of a column that every zoo has."""
    if column in ("epoch", "seed"):
        return "integer"
    if column in (*MEASURES, *NUMBERS):
        return "float"
    return "category" if column in CHOICES else None


def _typed(values: Mapping[str, Any], wanted: Kind | None, largest: int) -> tuple[dict[str, Any], Kind, str | None]:
    """Values of a column in a single type, its name, and notes about what was left out."""
    if wanted != "category":
        numbers = numbers_of(values)
        is_number = len(numbers) >= MOSTLY * len(values) and numbers
        if is_number or wanted is not None:
            odd = [value for network, value in values.items() if network not in numbers]
            note = (
                f"values that are not numbers, left empty: {len(odd)} of {len(values)} ({_examples(odd)})"
                if odd
                else None
            )
            are_whole = all(float(value).is_integer() and abs(value) <= largest for value in numbers.values())
            if wanted == "integer" or (wanted is None and all(isinstance(v, int) for v in numbers.values())):
                if are_whole:
                    return {network: int(value) for network, value in numbers.items()}, "integer", note
                whole = {n: int(v) for n, v in numbers.items() if float(v).is_integer() and abs(v) <= largest}
                if wanted == "integer":
                    bad = f"{len(values) - len(whole)} of {len(values)}"
                    return whole, "integer", f"values that are not whole numbers, or too large, left empty: {bad}"
            return {network: float(value) for network, value in numbers.items()}, "float", note
    texts = {network: _text(value) for network, value in values.items()}
    distinct = len(set(texts.values()))
    is_category = wanted == "category" or distinct <= min(MAX_CATEGORIES, max(2, MAX_CATEGORY_SHARE * len(texts)))
    return texts, "category" if is_category else "text", None


def numbers_of(values: Mapping[str, Any]) -> dict[str, int | float]:
    """The values that are numbers, including texts that can be read as numbers.

    A comma is a decimal comma, unless it could be a thousands separator in all values with a comma (`1,234`): such
    columns are ambiguous and contain no numbers. `26.9%` is 0.269.
    """
    shares = {name: value for name, value in values.items() if isinstance(value, str) and value.endswith("%")}
    if shares:
        bare = {name: value[:-1].rstrip() for name, value in shares.items()}
        rest = {name: value for name, value in values.items() if name not in shares}
        return numbers_of(rest) | {name: value / PERCENT for name, value in numbers_of(bare).items()}
    texts = [value for value in values.values() if isinstance(value, str)]
    with_comma = [text for text in texts if "," in text]
    may_be_thousands = bool(with_comma) and all(
        THOUSANDS.fullmatch(text) and not text.lstrip("+-").startswith("0,") for text in with_comma
    )
    found: dict[str, int | float] = {}
    for network, value in values.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            if isinstance(value, float) or abs(value) <= MAX_INTEGER:
                found[network] = value
            elif value.bit_length() < MAX_BITS:
                found[network] = float(value)
        elif isinstance(value, str):
            if INTEGER.fullmatch(value):
                number = float(value)
                found[network] = int(value) if abs(number) < MAX_INTEGER else number
            elif NUMBER.fullmatch(value):
                found[network] = float(value)
            elif DECIMAL_COMMA.fullmatch(value) and not may_be_thousands:
                found[network] = float(value.replace(",", "."))
    return found


def _text(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return shorten(hide_folders(text), MAX_TEXT)  # since zoos are published


def _examples(values: Sequence[Any]) -> str:
    return ", ".join(repr(shorten(value, 40)) for value in values[:SHOWN])


def _add_gaps(rows: Mapping[str, dict[str, Any]], described: dict[str, dict[str, Any]]) -> None:
    """Add training minus test accuracy, if both are known and the gap is not."""
    count = 0
    for found in rows.values():
        if "generalization_gap" not in found and {"train_accuracy", "test_accuracy"} <= found.keys():
            gap = found["train_accuracy"] - found["test_accuracy"]
            if math.isfinite(gap):
                found["generalization_gap"] = gap
                count += 1
    if count and "generalization_gap" not in described:
        described["generalization_gap"] = {
            "type": "float",
            "from": "train_accuracy - test_accuracy",
            "known": count,
        }
