"""Samplers of windows, with their settings as keywords."""

from dataclasses import fields
from typing import Any

from hf_sane.zoo.windows._sampler import WindowSettings

NAMES = {entry.name for entry in fields(WindowSettings)}


def new_sampler(kind: Any, *arguments: Any, window_size: int, **options: Any) -> Any:
    """A sampler of windows; options are fields of `WindowSettings`, and others of its own."""
    settings = {name: list(value) if name == "views" else value for name, value in options.items() if name in NAMES}
    own = {name: value for name, value in options.items() if name not in NAMES}
    return kind(*arguments, window_size, WindowSettings(**settings), **own)
