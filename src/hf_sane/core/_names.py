"""Orders of tensors that depend only on their names, so that they are the same for a file and a module."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_sane.core._layer_kinds import RUNNING

EMBEDDING = re.compile(r"embed|(?:^|\.)(?:shared|wte)(?:\.|$)")
HEAD = re.compile(r"(?:^|[._])heads?(?:[._]|$)")


@lru_cache(maxsize=2**14)  # since names of tensors share most of their parts
def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key in which numbers inside names are ordered by value: `layer2` before `layer10`."""
    parts: list[Any] = re.split(r"([0-9]+)", name)
    for place in range(1, len(parts), 2):
        digits = parts[place].lstrip("0")
        parts[place] = (len(digits), digits)  # ordered like numbers, of any length
    return tuple(parts)


def canonical_key(name: str) -> tuple[Any, ...]:
    """Canonical order of tensors: modules in natural order; in each, weights first, running statistics last.

    Files do not preserve the order in which a network computes, so the order can only depend on names.
    """
    *owner, last = name.split(".")
    rank = 0 if last.endswith("weight") else 2 if last in RUNNING else 1
    return [natural_key(part) for part in owner], rank, natural_key(last), name


def root_key(name: str, ties: Mapping[str, str]) -> tuple[Any, ...]:
    """Sort key of the names of one shared tensor, of which the least is its main name, the one that files keep.

    Args:
        name: One of the names.
        ties: Names that files omit according to the module (Transformers' `all_tied_weights_keys`). Otherwise, an
            embedding precedes a head, and tensors near the top precede deeper ones.
    """
    return (
        name in ties,
        EMBEDDING.search(name) is None,
        HEAD.search(name) is not None,
        name.count("."),
        canonical_key(name),
    )
