"""Folders of several networks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sane.core._adapters import ADAPTER_CONFIG
from hf_sane.core._names import natural_key
from hf_sane.records._errors import InvalidFileError
from hf_sane.records._files import folders_with
from hf_sane.records._sources import parse_source
from hf_sane.screening._checkpoints import WEIGHT_SUFFIXES, targets_in
from hf_sane.tokenization._checkpoints import CheckpointSource, weights_path
from hf_sane.tokenization._formats import file_format
from hf_sane.workflows.shared import SourceSettings

CONFIGS = ("config.json", ADAPTER_CONFIG)


def networks_in(
    source: Any, settings: SourceSettings, *, with_empty: bool = False, described: bool = False
) -> list[Any]:
    """The networks in a folder of several files or subfolders of weights, or the source itself, whatever else it is.

    Files that neither hold weights nor are named like them, such as cards, are left out. Subfolders that lack weights
    but have a configuration, and those that cannot be read, are listed, so that their readers explain what is wrong.

    Args:
        source: A module, state dict, path or Hub repo id.
        settings: If these name a subfolder or variant, the folder is one network if it has it; otherwise, each of its
            subfolders is that has it.
        with_empty: Whether empty subfolders are returned as well, to be reported by those who read them.
        described: Whether subfolders with a configuration, if there are some, are all that is meant.

    Returns:
        The networks, `network_2` before `network_10`.
    """
    if not isinstance(source, str | Path):
        return [source]
    place = parse_source(source)
    if not isinstance(place, Path) or not place.is_dir():
        return [source]
    chosen = {name: value for name, value in settings.weights.items() if name != "key"}
    try:
        found = _selected(place, chosen) if chosen else _weights_in(place, with_empty=with_empty)
        if described and not chosen and place not in found:
            found = _described(place) or found
    except PermissionError:  # its reader explains it
        return [source]
    inside = [] if place in found else sorted(found, key=lambda path: natural_key(str(path)))
    return inside or [source]


def _described(place: Path) -> Sequence[Path]:
    """Subfolders with a configuration; none if one of them cannot be read, which is reported with all others."""
    try:
        return folders_with(place, *CONFIGS)
    except PermissionError:
        return []


def _weights_in(place: Path, *, with_empty: bool) -> Sequence[Path]:
    """Files and folders of weights at any depth, and folders whose weights are missing."""
    found = list(targets_in(place))
    networks = [x for x in found if x == place or _may_be_network(x) or (with_empty and x.is_dir())]
    described = {path.parent: None for path in found if path.name in CONFIGS and path.parent != place}
    return [*networks, *(x for x in described if not any(path.is_relative_to(x) for path in networks))]


def _selected(place: Path, chosen: dict[str, str]) -> Sequence[Path]:
    """The folder itself, or those of its subfolders, that have a subfolder or variant of the weights."""
    if _has(place, chosen):
        return [place]
    inside = (path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if _has(path, chosen)]


def _has(folder: Path, chosen: dict[str, str]) -> bool:
    try:
        if (subfolder := chosen.get("subfolder")) is not None:
            return (folder / subfolder.strip("/")).is_dir()
        if any((folder / name).is_file() for name in CONFIGS):
            return True
        weights_path(CheckpointSource(folder, **chosen))
    except PermissionError:  # to be reported
        return True
    except (FileNotFoundError, InvalidFileError):
        return False
    return True


def _may_be_network(path: Path) -> bool:
    if path.name.lower().endswith(WEIGHT_SUFFIXES):
        return True
    try:
        return any(path.iterdir()) if path.is_dir() else path.exists() and file_format(path).holds_weights
    except PermissionError:  # to be reported
        return True


__all__: list[str] = []  # building blocks of other workflows
