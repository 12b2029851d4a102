"""Restrict permutation symmetries to some of the tensors."""

from collections.abc import Mapping

from hf_sane.symmetry._permutation import PermutationSpec


def select_tensors(spec: PermutationSpec, names: Mapping[str, str]) -> PermutationSpec:
    """Restrict a spec to some tensors, with other names and in another order.

    Args:
        spec: The spec.
        names: Old names by new name.
    """
    held = {axis for axis, places in spec.occurrences.items() if any(p.tensor in names.values() for p in places)}
    return PermutationSpec(
        {new: spec.axes[old] for new, old in names.items()},
        {axis: size for axis, size in spec.sizes.items() if axis in held},
        frozenset(new for new, old in names.items() if old in spec.unmatched),
        {axis: made_of for axis, made_of in spec.parts.items() if axis in held},
        {new: spec.fixed[old] for new, old in names.items() if old in spec.fixed},
    )
