"""Read facts from the names of networks, with the user's pattern or in the notation of common trainers."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from hf_sane.zoo.importing._property_columns import zoo_name

TIMES = ("epoch", "step")
# How trainers name checkpoints: `epoch=3-step=400.ckpt`, `checkpoint_000007`, `net_ep12.pt`.
EPOCH = re.compile(r"(?:^|[^a-z])(?:epoch|ep)[-_=]?(\d+)", re.IGNORECASE)
STEP = re.compile(r"(?:^|[^a-z])(?:global_step|step|iteration|iter|checkpoint|ckpt)[-_=]?(\d+)", re.IGNORECASE)
# Words beside times that do not distinguish runs: `model_epoch_3.pt`, `epoch=3-step=400.ckpt`.
NO_RUN = re.compile(r"(model|network|net|weights|checkpoints?|ckpt|permanent|\W|_)*(\.\w+){0,2}", re.IGNORECASE)
LAST = re.compile(r"(last|final|latest)\b", re.IGNORECASE)
CHOSEN = re.compile(rf"({LAST.pattern}|best\b)", re.IGNORECASE)  # from one run, whose folder names it
FIELD = re.compile(r"\{(?P<name>[^\W\d]\w*)(?::(?P<kind>[dgs]))?\}|(?P<wildcard>\*+)")
PARTS = {"d": r"[-+]?\d+", "g": r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", "s": r"[^/]+?"}


@dataclass(frozen=True)
class NetworkName:
    """Facts from the name of a network.

    Attributes:
        name: Its name in the zoo: a path relative to the folder, or a repository and a file.
        run: Its training run, if known.
        times: Epoch and step, if the name contains them.
        properties: Values of the pattern's other fields.
    """

    name: str
    run: str | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether it has no time, but is called the last of its run: `last.ckpt`."""
        return not self.times and LAST.match(PurePosixPath(self.name).name) is not None


def read_pattern(pattern: str) -> Callable[[str], dict[str, Any] | None]:
    """Compile a pattern such as `{run}/epoch_{epoch:d}.pt` to a function that reads properties from a path.

    Unless the pattern has a field `run`, the run is the path without its times.

    `{name}` is text without a slash, `{name:d}` a whole number, `{name:g}` a number, and `*` anything within one
    folder.

    Raises:
        ValueError: If the pattern has no field, or the same field twice.
    """
    names: dict[str, str] = {}
    parts, end = [], 0
    for found in FIELD.finditer(pattern):
        parts.append(re.escape(pattern[end : found.start()]))
        end = found.end()
        if found["wildcard"]:
            parts.append(".*" if len(found["wildcard"]) > 1 else "[^/]*")
            continue
        if found["name"] in names:
            raise ValueError(f"pattern {pattern!r}: expected each name once, got {{{found['name']}}} twice")
        names[found["name"]] = found["kind"] or "s"
        parts.append(f"(?P<{found['name']}>{PARTS[found['kind'] or 's']})")
    parts.append(re.escape(pattern[end:]))
    if not names or "\\{" in "".join(parts):
        raise ValueError(
            f"pattern {pattern!r}: expected fields such as '{{run}}/epoch_{{epoch:d}}.pt', with types d (whole "
            "number), g (number) or s (text)"
        )
    matcher = re.compile("".join(parts))
    types: dict[str, Callable[[str], Any]] = {"d": int, "g": float, "s": str}
    times = [name for name in names if zoo_name(name) in TIMES]
    names_runs = not times or any(zoo_name(name) == "run" for name in names)

    def take(path: str) -> dict[str, Any] | None:
        found = matcher.fullmatch(path)
        if found is None:
            return None
        values = {name: types[kind](found[name]) for name, kind in names.items()}
        return values if names_runs else {"run": run_of(path) or _without(path, map(found.span, times)), **values}

    return take


def _without(path: str, spans: Iterable[tuple[int, int]]) -> str:
    """A path without some of its characters and without its suffix."""
    for start, end in sorted(spans, reverse=True):
        path = path[:start] + path[end:]
    return path.removesuffix(PurePosixPath(path).suffix).rstrip("-_=./ ") or path


def read_name(name: str, take: Callable[[str], dict[str, Any] | None] | None) -> NetworkName:
    """Read a name with the user's pattern, or find epochs and steps in the notation of common trainers.

    Files of one folder whose names consist only of times belong to one run: `run_3/epoch_5.pt`.
    """
    found = take(name) if take is not None else None
    if found is not None:
        run = next((str(value) for key, value in found.items() if zoo_name(key) == "run"), None)
        times = {str(zoo_name(key)): int(value) for key, value in found.items() if zoo_name(key) in TIMES}
        rest = {key: value for key, value in found.items() if zoo_name(key) not in ("run", *TIMES)}
        return NetworkName(name, run, times, rest)
    times = {}
    for key, expression in (("epoch", EPOCH), ("step", STEP)):
        for part in reversed(PurePosixPath(name).parts):
            if numbers := expression.findall(part):
                times[key] = int(numbers[-1])
                break
    return NetworkName(name, run_of(name), times)


def with_saved_times(found: NetworkName, saved: Mapping[str, int]) -> NetworkName:
    """Add the times that a file stores, if its name contains none; `run_3/best.pt` is then a checkpoint of `run_3`."""
    if found.times or not saved:
        return found
    path = PurePosixPath(found.name)
    run = run_of(str(path.with_name("epoch_0"))) if CHOSEN.match(path.name) else None
    return replace(found, times=saved, run=found.run or run)


def is_part_of_run(folder: str) -> bool:
    """Whether the name of a folder only says that, or when, networks were saved: `checkpoints`, `epoch_3`."""
    return NO_RUN.fullmatch(STEP.sub("", EPOCH.sub("", folder))) is not None


def run_of(name: str) -> str | None:
    """The folder above the parts that only say when a network was saved."""
    parts, has_time = list(PurePosixPath(name).parts), False
    while parts and NO_RUN.fullmatch(rest := STEP.sub("", EPOCH.sub("", parts[-1]))):
        has_time |= rest != parts.pop()
    return str(PurePosixPath(*parts)) if parts and has_time else None
