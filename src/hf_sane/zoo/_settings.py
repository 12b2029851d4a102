"""Settings that name a zoo: one to open, or a new one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sane.records._settings import CheckedSettings, setting


@dataclass(kw_only=True)
class ZooNameSettings(CheckedSettings):
    """Setting that selects one of several zoos in a folder."""

    zoo_config: str | None = setting("Name of the zoo, if there are several.", default=None, formerly="--config")


@dataclass(kw_only=True)
class ZooRevisionSettings(CheckedSettings):
    """Setting that selects a version of zoos on the Hub."""

    zoo_revision: str | None = setting("Branch, tag or commit of the zoo on the Hub.", default=None)


@dataclass(kw_only=True)
class ZooSourceSettings(ZooNameSettings, ZooRevisionSettings):
    """Settings that select a zoo in a folder or repository."""

    @property
    def zoo_place(self) -> dict[str, Any]:
        """Keyword arguments of functions that open zoos."""
        return {"config": self.zoo_config, "revision": self.zoo_revision}


@dataclass(kw_only=True)
class NewZooSettings(CheckedSettings):
    """Settings of the folder in which a zoo is written."""

    output: str | Path = setting(
        "Folder of the zoo; it may already hold zoos under other names.", short="-o", formerly="--output_dir"
    )
    zoo_config: str = setting("Name of the zoo in the folder.", default="default", formerly="--config")
