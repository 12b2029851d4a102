"""How the numbers of a page were made, in one line per run record."""

from collections.abc import Mapping
from typing import Any


def source_line(record: Mapping[str, Any], *, minutes: bool = True) -> str:
    """Command, seed, processor, time and commit of a run that used one thread.

    Args:
        record: The record.
        minutes: Whether to give its time; not if it used autoencoders of an earlier run.
    """
    time = f"{record['seconds'] / 60:.0f} minutes next to other jobs, " if minutes else ""
    return (
        f"`{record['command']}`, seed {record['seed']}, {record['hardware']['cpu']}, one thread, {time}commit "
        f"{record['commit'][:12]}"
    )
