"""Compare shards with their index, so that every tensor is read once, from where it is."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath

from hf_sane.records._errors import InvalidFileError, name_some
from hf_sane.screening._finding import Finding, about, damaged
from hf_sane.tokenization._safetensors_header import TensorEntry

AGAIN = "download all shards and their index again, or save the network again"

SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.safetensors)")
MAX_SHARDS = 10_000  # of which the missing ones are named

Header = Mapping[str, TensorEntry] | InvalidFileError | None  # of a shard, which may be damaged or missing


def join_headers(
    index: PurePath, listed: Mapping[str, Sequence[str]], headers: Mapping[str, Header]
) -> tuple[dict[str, dict[str, TensorEntry]], list[Finding]]:
    """The tensors to read from each shard, and where the shards differ from their index.

    Args:
        index: Path of the index.
        listed: Names of tensors by shard, according to the index.
        headers: What each shard holds: its tensors, an error if it is damaged, `None` if it is missing.

    Raises:
        InvalidFileError: If no shard can be read.
    """
    found = {shard: header for shard, header in headers.items() if isinstance(header, Mapping)}
    if not found:
        for header in headers.values():
            if isinstance(header, InvalidFileError):
                raise header
        got, remedy = f"none of {name_some(listed)}", "download the shards, too"
        raise InvalidFileError(str(index), expected="its shards next to it", got=got, remedy=remedy)
    home = {name: shard for shard, names in listed.items() for name in names}
    chosen: dict[str, str] = {}
    for shard, header in found.items():
        for name in header:
            if name not in chosen or home.get(name) == shard:
                chosen[name] = shard
    entries = {
        shard: {name: entry for name, entry in header.items() if chosen[name] == shard}
        for shard, header in found.items()
    }
    return entries, list(_differences(index.name, home, found, headers))


def missing_index(name: str, stored: Collection[str]) -> list[Finding]:
    """The finding about a shard whose index is missing; nothing if the index exists, or the file is no shard.

    Args:
        name: Name of the file.
        stored: Names of all files in its folder.
    """
    found = SHARD.fullmatch(name)
    if found is None or (index := f"{found['stem']}{found['suffix']}.index.json") in stored:
        return []
    count, width = int(found["count"]), len(found["count"])
    shards = (f"{found['stem']}-{n:0{width}d}-of-{found['count']}{found['suffix']}" for n in range(1, 1 + count))
    missing = [shard for shard in shards if shard not in stored] if count <= MAX_SHARDS else []
    others = f", as are other shards: {name_some(missing)}" if missing else ""
    message = f"one of {count:,} shards, whose index {index} is missing{others}"
    return [Finding("shards", "error" if missing else "warning", message, AGAIN)]


def _differences(
    index: str,
    home: Mapping[str, str],
    found: Mapping[str, Mapping[str, TensorEntry]],
    headers: Mapping[str, Header],
) -> Iterator[Finding]:
    places: dict[str, list[str]] = {}
    for shard, header in found.items():
        for name in header:
            places.setdefault(name, []).append(shard)
    for shard, problem in headers.items():
        if isinstance(problem, InvalidFileError):
            yield damaged(shard, problem)
    if missing := [shard for shard, problem in headers.items() if problem is None]:
        count = sum(shard in missing for shard in home.values())
        message = f"shards that {index} lists are missing, with {count:,} tensors: {name_some(missing)}"
        yield Finding("shards", "error", message, AGAIN)
    if swapped := [name for name, shards in places.items() if name in home and home[name] not in shards]:
        yield about("shards", "error", f"tensors that are in another shard than {index} says:", swapped, AGAIN)
    if lost := [name for name, shard in home.items() if shard in found and name not in places]:
        yield about("shards", "error", f"tensors that {index} lists, but no shard holds:", lost, AGAIN)
    if extra := [name for name in places if name not in home]:
        yield about("shards", "error", f"tensors that {index} does not list:", extra, AGAIN)
    if twice := [name for name, shards in places.items() if len(shards) > 1]:
        yield about("shards", "error", "tensors that several shards hold, of which one was read:", twice, AGAIN)
