"""Match the tensors of two checkpoints by name, regardless of wrapper prefixes."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from torch import Tensor

MAX_PREFIXES = 4  # most frequent prefixes of each checkpoint


def pair_names(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, str]:
    """Map names in `first` to names in `other` for tensors of the same shape; each side may have one prefix.

    Prefixes must correspond, so that not any two layers of the same shape are paired: at least half of the matrices
    with one of the two prefixes have a counterpart, and no prefix is the name of a single layer of many. There are no
    pairs if no matrix has a counterpart, unless one of the two has no matrices.

    Args:
        first: Tensors, perhaps on the meta device.
        other: Tensors of the other checkpoint.
    """
    sides = first, other
    shapes = {name: tensor.shape for name, tensor in other.items()}
    matrices = [{name for name, tensor in side.items() if tensor.ndim > 1} for side in sides]
    is_single = any(all("." not in name for name in side) for side in sides)
    best: dict[str, str] = {}
    chosen = "", ""
    for mine in _prefixes(first, matrices[0]):
        for theirs in _prefixes(other, matrices[1]):
            found = {}
            for name, tensor in first.items():
                rest = name.removeprefix(mine)
                if mine != theirs and "." not in rest and not is_single:
                    continue
                if name.startswith(mine) and shapes.get(theirs + rest) == tensor.shape:
                    found[name] = theirs + rest
            if len(found) > len(best) and _corresponds(found, (mine, theirs), matrices):
                best, chosen = found, (mine, theirs)
    if best and chosen[0] != chosen[1]:  # tensors without a layer, such as `cls_token`, which alone prove nothing
        mine, theirs = chosen
        for name, tensor in first.items():
            counterpart = theirs + name.removeprefix(mine)
            if name.startswith(mine) and shapes.get(counterpart) == tensor.shape:
                best[name] = counterpart
        best = {name: best[name] for name in first if name in best}
    return best


def _corresponds(found: Mapping[str, str], prefixes: tuple[str, str], matrices: Sequence[Set[str]]) -> bool:
    """Whether tensors that were paired are those of the same network, or of the same part of one."""
    paired = sum(name in matrices[0] for name in found)
    if all(matrices) and not paired:
        return False
    held = [sum(name.startswith(prefix) for name in names) for prefix, names in zip(prefixes, matrices, strict=True)]
    return prefixes[0] == prefixes[1] or 2 * paired >= min(held)


def _prefixes(tensors: Mapping[str, Tensor], matrices: Set[str]) -> list[str]:
    """Possible prefixes before the part that both share, starting with the empty prefix."""

    def is_wrapper(prefix: str) -> bool:
        is_number = prefix.rstrip(".").rpartition(".")[2].isdigit()
        return not is_number or 2 * sum(name.startswith(prefix) for name in matrices) > len(matrices)

    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(3, len(parts))))
    return ["", *(prefix for prefix, _ in counts.most_common(MAX_PREFIXES) if is_wrapper(prefix))]
