"""Match the tensors of two checkpoints by name, regardless of wrapper prefixes."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

MAX_PREFIXES = 4  # most frequent prefixes of each checkpoint


def outlines(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Shapes, without reading tensors if the mapping has outlines."""
    return getattr(tensors, "outlines", tensors)


def pair_names(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, str]:
    """Map names in `first` to names in `other` for tensors of the same shape; each side may have one prefix.

    Args:
        first: Tensors, perhaps on the meta device.
        other: Tensors of the other checkpoint.
    """
    shapes = {name: tensor.shape for name, tensor in other.items()}
    best: dict[str, str] = {}
    for mine in _prefixes(first):
        for theirs in _prefixes(other):
            found = {}
            for name, tensor in first.items():
                if name.startswith(mine) and shapes.get(theirs + name.removeprefix(mine)) == tensor.shape:
                    found[name] = theirs + name.removeprefix(mine)
            if len(found) > len(best):
                best = found
    return best


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Possible prefixes before the part that both share, starting with the empty prefix."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(3, len(parts))))
    return ["", *(prefix for prefix, _ in counts.most_common(MAX_PREFIXES))]
