"""Folders of several networks."""

from pathlib import Path
from typing import Any

from hf_sane.core._names import natural_key
from hf_sane.records._sources import parse_source
from hf_sane.screening._checkpoints import WEIGHT_SUFFIXES, targets_in
from hf_sane.tokenization._formats import file_format
from hf_sane.workflows.shared import SourceSettings


def networks_in(source: Any, settings: SourceSettings, *, with_empty: bool = False) -> list[Any]:
    """The networks in a folder of several files or subfolders of weights, or the source itself, whatever else it is.

    Files that neither hold weights nor are named like them, such as cards, are left out.

    Args:
        source: A module, state dict, path or Hub repo id.
        settings: If these name a subfolder or variant, a folder is one network.
        with_empty: Whether empty subfolders are returned as well, to be reported by those who read them.
    """
    if not isinstance(source, str | Path) or settings.subfolder is not None or settings.variant is not None:
        return [source]
    place = parse_source(source)
    if not isinstance(place, Path) or not place.is_dir():
        return [source]
    try:
        found = list(targets_in(place))
    except PermissionError:  # its reader explains it
        return [source]
    if found == [place]:
        return [source]
    inside = [path for path in found if _may_be_network(path) or (with_empty and path.is_dir())]
    return sorted(inside, key=lambda path: natural_key(str(path))) or [source]


def _may_be_network(path: Path) -> bool:
    if path.name.lower().endswith(WEIGHT_SUFFIXES):
        return True
    try:
        return any(path.iterdir()) if path.is_dir() else path.exists() and file_format(path).holds_weights
    except PermissionError:  # to be reported
        return True


__all__: list[str] = []  # building blocks of other workflows
