"""Read what trainers store beside the weights in a training checkpoint: epoch, step, hyper-parameters and results."""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import Tensor

from hf_sane.records._errors import name_some
from hf_sane.zoo._column_names import plain_name
from hf_sane.zoo.importing._network_names import TIMES
from hf_sane.zoo.importing._property_columns import zoo_name

# By preference.
SAVED_TIMES = {"epoch": ("epoch",), "step": ("global_step", "step", "iteration")}
# Dictionaries of settings, in the notation of Lightning and of common training loops.
SETTINGS = (
    *("hyper_parameters", "datamodule_hyper_parameters", "hparams", "hyperparameters", "hyperparams"),
    *("config", "args", "settings"),
)
# Names that Lightning and others store about themselves.
BOOKKEEPING = re.compile(r"_.*|.*version|(datamodule_)?(hparams|hyper_parameters)_(name|type)")
MAX_TEXT, MAX_FACTS, MAX_DEPTH = 200, 200, 5


def saved_times(content: object) -> dict[str, int]:
    """Epoch and step in a training checkpoint, as in `{"state_dict": ..., "epoch": 3, "global_step": 400}`."""
    times: dict[str, int] = {}
    for time, names in SAVED_TIMES.items():
        found = [content[name] for name in names if name in content] if isinstance(content, Mapping) else []
        values = [_plain(value) for value in found]
        whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value >= 0]
        if whole:
            times[time] = whole[0]
    return times


def saved_facts(content: object) -> dict[str, Any]:
    """Hyper-parameters and results in a training checkpoint: numbers, flags and short texts beside its state dicts.

    `{"state_dict": ..., "hyper_parameters": {"lr": 0.1}, "best_acc": 0.9}` has `lr` and `best_acc`.
    """
    if not isinstance(content, Mapping) or not any(isinstance(value, Mapping) for value in content.values()):
        return {}  # weights themselves
    found: dict[str, Any] = {}
    for name in SETTINGS:
        if isinstance(settings := content.get(name), Mapping):
            _add(found, settings)
    _add(found, {name: value for name, value in content.items() if not isinstance(value, Mapping)})
    return dict(list(found.items())[:MAX_FACTS])


def _add(found: dict[str, Any], values: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if depth < MAX_DEPTH:
                _add(found, value, f"{name}.", depth + 1)
        elif zoo_name(name) in ("run", *TIMES) or BOOKKEEPING.fullmatch(name):
            continue
        elif (plain := _plain(value)) is not None:
            found.setdefault(name, plain)


def _plain(value: object) -> int | float | str | None:
    """A number, flag or short text; `None` for anything else, and for numbers that are not finite."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    return value.strip() or None if isinstance(value, str) and len(value) <= MAX_TEXT else None


def add_saved_facts(rows: Mapping[str, dict[str, Any]], saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Add what files store to the properties of their networks, if tables and names do not say it; with a note.

    Args:
        rows: Properties of each network, by their names in the tables; changed.
        saved: Facts from [`saved_facts`] of each network.
    """
    known = {_column(name): name for row in rows.values() for name in row}
    added: dict[str, None] = {}
    count = 0
    for network, facts in saved.items():
        own = {known.get(_column(name), name): value for name, value in facts.items()}
        new = {name: value for name, value in own.items() if name not in rows[network]}
        rows[network].update(new)
        added |= dict.fromkeys(new)
        count += bool(new)
    return [f"properties that checkpoints store: {name_some(added)}, of {count} networks"] if count else []


def _column(name: str) -> str:
    return zoo_name(name) or plain_name(name)
