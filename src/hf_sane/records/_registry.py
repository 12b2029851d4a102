"""Registries that plug-ins can extend: samplers, poolings, formats, token layouts, ..."""

from collections.abc import ItemsView, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from hf_sane.records._errors import did_you_mean

PLUGINS = "hf_sane.plugins"  # group of entry points
Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name, in order of registration.

    Args:
        kind: Name of an entry in messages, such as `"sampler"`.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"there is a {self._kind} {name!r} already; choose another name")
        self._entries[name] = entry

    def find(self, name: str) -> Entry:
        """The entry of a name; a `ValueError` if there is none."""
        if not isinstance(name, str) or name not in self._entries:
            meant = did_you_mean(name, self._entries)
            raise ValueError(f"expected a {self._kind}, one of {', '.join(self)}, got {name!r}{meant}")
        return self._entries[name]

    def items(self) -> ItemsView[str, Entry]:
        """Names and entries."""
        return self._entries.items()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def load_plugins() -> None:
    """Import all installed plug-ins, so that their entries are available on the command line.

    A plug-in is a module with an entry point in the group `hf_sane.plugins` that calls functions such as
    `register_sampler` when it is imported.
    """
    for point in entry_points(group=PLUGINS):
        point.load()
