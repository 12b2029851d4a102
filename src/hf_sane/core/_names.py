"""Orders that depend only on the names of tensors, so that a file and a module of one network agree."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_sane.core._layer_kinds import RUNNING

EMBEDDING = re.compile(r"embed|(?:^|\.)(?:shared|wte)(?:\.|$)")
HEAD = re.compile(r"(?:^|[._])heads?(?:[._]|$)")


@lru_cache(maxsize=2**14)  # names of tensors are made of a few parts
def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts numbers inside names by value: `layer2` before `layer10`."""
    parts: list[Any] = re.split(r"([0-9]+)", name)
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        parts[place] = (len(digits), digits)  # as numbers compare, of any length
    return tuple(parts)


def canonical_key(name: str) -> tuple[Any, ...]:
    """Canonical order of tensors: modules in natural order; in each, weights first, running statistics last.

    Files do not keep the order in which a network computes, so nothing but names can decide.
    """
    *owner, last = name.split(".")
    rank = 0 if last.endswith("weight") else 2 if last in RUNNING else 1
    return [natural_key(part) for part in owner], rank, natural_key(last), name


def root_key(name: str, ties: Mapping[str, str]) -> tuple[Any, ...]:
    """Which of the names of one shared tensor it goes by: the least. That is the one which files keep.

    Args:
        name: One of the names.
        ties: Names that files leave out, where the module says so (Transformers' `all_tied_weights_keys`). Where it
            does not, an embedding goes before a head, and what lies closer to the top before what lies deeper.
    """
    return (
        name in ties,
        EMBEDDING.search(name) is None,
        HEAD.search(name) is not None,
        name.count("."),
        canonical_key(name),
    )
