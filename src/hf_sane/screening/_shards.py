"""Compare shards with their index, so that every tensor is read once, from where it is."""

from collections.abc import Iterator, Mapping, Sequence

from hf_sane.records._errors import InvalidFileError, name_some
from hf_sane.screening._finding import Finding, about, damaged
from hf_sane.tokenization._safetensors_header import TensorEntry

AGAIN = "download all shards and their index again, or save the network again"

Header = Mapping[str, TensorEntry] | InvalidFileError | None  # of a shard, which may be damaged or missing


def join_headers(
    index: str, listed: Mapping[str, Sequence[str]], headers: Mapping[str, Header]
) -> tuple[dict[str, dict[str, TensorEntry]], list[Finding]]:
    """The tensors to read from each shard, and where the shards differ from their index.

    Args:
        index: Name of the index.
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
        raise InvalidFileError(index, expected="its shards next to it", got=got, remedy=remedy)
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
    return entries, list(_differences(index, home, found, headers))


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
