"""Run files: the settings of a command as YAML next to its output, which `--config run.yaml` repeats."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from hf_sane.records._documents import Entry
from hf_sane.records._errors import did_you_mean, reading
from hf_sane.records._files import write_atomically
from hf_sane.records._redaction import redact_tokens
from hf_sane.records._settings import as_arguments, former_names
from hf_sane.records._sources import check_path

RUN_FILE = "run.yaml"
REPORT, ALIGNMENT_REPORT = "report.html", "alignment.html"  # HTML reports in the same folder
SUFFIXES = (".yaml", ".yml", ".json")  # endings of run files, which names of zoos do not have
WHAT = "a run file (YAML with `verb` and `settings`)"
REMEDY = f"compare it with the {RUN_FILE} that the verb leaves beside its output"
PLAIN = (str, int, float, bool, NoneType)


@dataclass
class RunFile:
    """Run file of the running command.

    Attributes:
        text: Its content.
        home: Its output, the first one that is written.
    """

    text: str
    home: Path | None = None


_current: ContextVar[RunFile | None] = ContextVar("run_file", default=None)


@contextmanager
def leaving_run_file(verb: str, settings: Any) -> Iterator[None]:
    """Write a run file next to the first output of the block, if any."""
    token = _current.set(RunFile(run_file_text(verb, settings)))
    try:
        yield
    finally:
        _current.reset(token)


def is_leaving_run_file() -> bool:
    """Whether a command runs, which leaves a run file and a report in its output."""
    return _current.get() is not None


def claim_run_file(home: Path) -> None:
    """Register a new output; the first one gets the run file."""
    found = _current.get()
    if found is not None and found.home is None:
        found.home = home


def write_run_file(home: Path, folder: Path) -> None:
    """Write the run file into a folder, if it belongs to the output `home`."""
    found = _current.get()
    if found is not None and found.home == home:
        with write_atomically(folder / RUN_FILE) as partial:
            partial.write_text(found.text, encoding="utf-8")


def run_file_text(verb: str, settings: Any) -> str:
    """All settings of a run that are set, without access tokens; paths are as given."""
    kept = {e.name for e in fields(settings) if not (e.metadata.get("only_python") or e.metadata.get("once"))}
    known = {name: value for name, value in as_arguments(settings).items() if name in kept and value is not None}
    lines = [f"  {name}: {_written(value)}" for name, value in known.items()]
    head = f"# Repeat this run with: {verb} --config {RUN_FILE} (other options override these settings)"
    return redact_tokens("\n".join([head, f"verb: {_written(verb)}", "settings:", *lines, ""]))


def _written(value: Any) -> str:
    """A value as JSON, which is unambiguous YAML, except for numbers that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value, ensure_ascii=False)


def read_run_file(path: str | Path, verb: str, settings: type) -> dict[str, Any]:
    """Read the settings of a run file, converted to the types of their fields.

    Args:
        path: The file.
        verb: Verb to run, which must be that of the file.
        settings: Settings dataclass of the verb.

    Raises:
        FileNotFoundError: If the file does not exist.
        InvalidFileError: If it is not a run file or of another verb, or a setting is unknown or has the wrong type.
    """
    remedy = f"--config takes the {RUN_FILE} beside an output"
    if (inside := Path(path).parent / "data" / RUN_FILE).is_file():
        remedy = f"that of this zoo is {inside}"
    check_path(Path(path), remedy=remedy)
    with reading(path, expected=WHAT, remedy=REMEDY, also=(yaml.YAMLError,)):
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    document = Entry(content, str(path), remedy=REMEDY)
    if foreign := sorted(map(str, document.mapping().keys() - {"verb", "settings"})):
        document.fail("the fields verb and settings alone", got=", ".join(foreign))
    if (meant := document["verb"].text()) != verb:
        document["verb"].fail(repr(verb), remedy=f"run: {meant} --config {path}")
    known = {entry.name: entry for entry in fields(settings) if not entry.metadata.get("only_python")}
    former = former_names(settings)
    chosen = {}
    for given, entry in document["settings"].items():
        name = former.get(given, given)
        if name not in known:
            close = did_you_mean(name, known)
            document["settings"].fail(f"settings of {verb}", got=name, remedy=f"see {verb} --help{close}")
        if entry.value is not None:
            chosen[name] = _typed(entry, known[name])
    return chosen


def _typed(entry: Entry, declared: Field) -> Any:
    value = entry.of_type(_plain_type(declared.type))
    return Path(value) if declared.type in (Path, Path | None) else value


def _plain_type(kind: Any) -> Any:
    """Type in a run file for the type of a field: text for paths and objects, which are given by name."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return Union[tuple(_plain_type(part) for part in parts)]  # noqa: UP007
    if origin is list:
        return list[_plain_type(parts[0])]  # type: ignore[misc]
    if origin in (dict, Mapping):
        return dict[str, Any]
    return kind if origin is Literal or kind in PLAIN else str


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where it differs from 1.1: `no` is a text and `1e-3` a number. Repeated fields are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the field {twice[0]!r} is repeated")
        return super().construct_mapping(node, deep=deep)


TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in (f"{TAG}int", f"{TAG}null")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{TAG}bool", re.compile("(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    f"{TAG}float",
    re.compile(r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf)$|\.nan$"),
    list("-+.0123456789"),
)
