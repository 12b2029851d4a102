"""Find the state dict in a training checkpoint, or name the candidates in an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from hf_sane.core._types import StateDict
from hf_sane.records._errors import InvalidFileError, name_some

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, AveragedModel and torch.compile
# Prefixes of a network inside a Lightning module. Names in Transformers networks may also start like this, but those
# are not saved inside a larger dictionary.
NESTED_PREFIXES = (*WRAPPER_PREFIXES, "model.")
# Tensors that wrappers store next to the network.
BOOKKEEPING = ("n_averaged", "num_updates", "decay", "step", "global_step", "epoch", "iteration", "initted")
MAX_BOOKKEEPING = 2
MAX_DEPTH = 3  # levels of nested dictionaries
ITSELF = "."  # key of tensors directly in the dictionary
MAX_NAMED = 8  # candidates or keys to list
AVERAGE = re.compile(r"((?:[^.]*_)?ema(?:_[^.]*)?)\.")  # first part of the names of an exponential moving average
MIN_COPY = 0.5  # least share of averaged tensors; with fewer, they are part of the network
Value = TypeVar("Value")


def choose_state_dict(content: object, where: str | Path, *, key: str | None = None) -> StateDict:
    """Choose the network in the content of a file, or in an object of the user.

    Candidates are all dictionaries with named tensors, up to `MAX_DEPTH` levels deep, except those of optimizers; if
    some hold matrices, only these. Values that are not tensors, such as counters, `None` and an `_extra_state`, are
    left out.

    Args:
        content: A state dict, or a dictionary that contains one.
        where: Name of the content, for messages.
        key: Key of the state dict, as in messages: the keys that lead to it, joined by `/`.

    Returns:
        Tensors by name, without wrapper prefixes.

    Raises:
        InvalidFileError: If there is no candidate, none under `key`, or several and no `key`.
    """
    if not isinstance(content, Mapping):
        raise _no_tensors(where, f"an object of the type {type(content).__name__}")
    found = find_state_dicts(content)
    if not found:
        kinds = ", ".join(f"{name!r}: {type(value).__name__}" for name, value in list(content.items())[:MAX_NAMED])
        raise _no_tensors(
            where, f"a dictionary of {len(content)} entries ({kinds})" if content else "an empty dictionary"
        )
    if key is None:
        found = _networks(found)
    candidates: dict[str, StateDict] = {}
    for path, tensors in found.items():
        prefixes = WRAPPER_PREFIXES if path == ITSELF else NESTED_PREFIXES
        for part, names in split_averages(strip_prefixes(dict(zip(tensors, tensors, strict=True)))).items():
            name = part if path == ITSELF else path if part == ITSELF else f"{path}/{part}"
            inside = {short: tensors[long] for short, long in names.items()}
            candidates[name] = strip_prefixes(inside, prefixes)
    chosen = choose_candidate({name: _outline(tensors) for name, tensors in candidates.items()}, where, key)
    check_names(candidates[chosen], where)
    return candidates[chosen]


def choose_tensors(
    tensors: Mapping[str, Value], where: str | Path, *, key: str | None = None, is_module: bool = False
) -> dict[str, Value]:
    """Choose the network among tensors (or their placeholders) in one dictionary, without wrapper prefixes.

    Args:
        tensors: Tensors by name.
        where: Their source, for messages.
        key: Name of the state dict, if there are both a network and its exponential moving average.
        is_module: Whether they are the state of one module, which counts as one network regardless of its parts.

    Raises:
        InvalidFileError: If a tensor has no name, or there are several networks and no `key`, or none under `key`.
    """
    check_names(tensors, where)
    stripped = strip_prefixes(tensors)
    if is_module:
        return stripped
    parts = {name: strip_prefixes(part) for name, part in split_averages(stripped).items()}
    return parts[choose_candidate({name: f"{len(part)} tensors" for name, part in parts.items()}, where, key)]


def find_state_dicts(content: Mapping[object, object]) -> dict[str, StateDict]:
    """All dictionaries of tensors inside a dictionary, by their path of keys, except those of optimizers."""
    found: dict[str, StateDict] = {}

    def visit(entries: Mapping[object, object], path: tuple[str, ...]) -> None:
        if "param_groups" in entries and "state" in entries:
            return
        named = {name: value for name, value in entries.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            found["/".join(path) or ITSELF] = tensors
        for name, value in named.items():
            if isinstance(value, Mapping) and len(path) < MAX_DEPTH:
                visit(value, (*path, name))

    visit(content, ())
    return found


def choose_candidate(candidates: Mapping[str, str], where: str | Path, key: str | None) -> str:
    """Choose a candidate and return its key.

    Args:
        candidates: Description of each candidate's size, by key.
        where: Name of the file, for messages.
        key: Requested key, if any.

    Raises:
        InvalidFileError: If there is none under `key`, or several and no `key`.
    """
    if key in candidates:
        return str(key)
    if key is None and len(candidates) == 1:
        return next(iter(candidates))
    named = name_some((f"{name!r} ({size})" for name, size in candidates.items()), MAX_NAMED)
    raise InvalidFileError(
        where,
        expected="one network" if key is None else f"a state dict under the key {key!r}",
        got=f"{len(candidates)} state dicts: {named}" if key is None else named,
        remedy=f"choose one by its key (--key, key=), such as {next(iter(candidates))!r}",
    )


def split_averages(values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Separate a network from an exponential moving average in the same file, `model.*` and `model_ema.*`.

    Returns:
        Groups of tensors by the first part of their names, which is removed; a single group `ITSELF` with full names
        if nothing was separated.
    """
    heads = {name: found[1] for name in values if (found := AVERAGE.match(name))}
    averages = {head: [name for name in heads if heads[name] == head] for head in dict.fromkeys(heads.values())}
    averages = {head: names for head, names in averages.items() if len(names) >= MIN_COPY * (len(values) - len(heads))}
    copied = {name for names in averages.values() for name in names}
    rest = {name: value for name, value in values.items() if name not in copied}
    if not averages or not rest:
        return {ITSELF: dict(values)}
    firsts = {name.partition(".")[0] for name in rest}
    own = firsts.pop() if len(firsts) == 1 and all("." in name for name in rest) else None
    parts = {ITSELF: rest} if own is None else {own: _without(rest, f"{own}.")}
    return parts | {
        head: _without({name: values[name] for name in names}, f"{head}.") for head, names in averages.items()
    }


def strip_prefixes(state_dict: Mapping[str, Value], prefixes: tuple[str, ...] = WRAPPER_PREFIXES) -> dict[str, Value]:
    """Repeatedly remove prefixes that all names share.

    Up to `MAX_BOOKKEEPING` names that belong to a wrapper (`n_averaged`) may lack the prefix; they are removed, too.
    """
    found = dict(state_dict)
    changed = bool(found)
    while changed:
        changed = False
        for prefix in prefixes:
            others = [name for name in found if not name.startswith(prefix)]
            own = len(others) <= MAX_BOOKKEEPING and all(name in BOOKKEEPING for name in others)
            # A name that equals the prefix would become empty.
            if own and len(others) < len(found) and prefix not in found:
                found = _without({name: value for name, value in found.items() if name not in others}, prefix)
                changed = True
    return found


def check_names(tensors: Mapping[str, object], where: str | Path) -> None:
    """Raise an error for tensors without a name.

    Raises:
        InvalidFileError: If there is one.
    """
    if "" in tensors:
        raise InvalidFileError(
            where,
            expected="a name for every tensor",
            got="one named ''",
            remedy="name it, and save the file again",
        )


def _networks(found: dict[str, StateDict]) -> dict[str, StateDict]:
    """Dictionaries that may be networks: those with floating-point matrices or, if there are none, vectors."""

    def rank(tensors: StateDict) -> int:
        return max((min(tensor.ndim, 2) for tensor in tensors.values() if tensor.is_floating_point()), default=0)

    best = max(map(rank, found.values()))
    return {path: tensors for path, tensors in found.items() if rank(tensors) == best}


def _without(values: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in values.items()}


def _outline(tensors: StateDict) -> str:
    return f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} weights"


def _no_tensors(where: str | Path, got: str) -> InvalidFileError:
    return InvalidFileError(
        where,
        expected="a dictionary of tensors, which may be nested inside other dictionaries",
        got=got,
        remedy="save model.state_dict()",
    )
