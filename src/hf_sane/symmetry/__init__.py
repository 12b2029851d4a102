"""Permutations of channels that do not change a network's function, and alignment of networks with them."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.symmetry._matching import match_weights, weight_similarity
    from hf_sane.symmetry._networks import permutation_spec
    from hf_sane.symmetry._permutation import PermutationSpec
    from hf_sane.symmetry.tracing._trace import trace_permutations

__all__ = [
    "PermutationSpec",
    "match_weights",
    "permutation_spec",
    "trace_permutations",
    "weight_similarity",
]
_HOMES = {
    "match_weights": "_matching",
    "weight_similarity": "_matching",
    "permutation_spec": "_networks",
    "PermutationSpec": "_permutation",
    "trace_permutations": "tracing._trace",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
