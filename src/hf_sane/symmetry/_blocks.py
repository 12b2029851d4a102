"""Nested blocks, such as heads and their dimensions, which weight matching solves jointly."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_sane.symmetry._permutation import Occurrence, PermutationSpec


@dataclass(frozen=True)
class Blocks:
    """A generator that reorders blocks, and the generators that reorder the inside of each block.

    In an arbitrary inner order, the similarity of two blocks is noise: matching must compare them in their best inner
    order. That is one assignment problem per pair of blocks, if the inner generators are independent.

    Attributes:
        inside: Families of generators, one per block: `inside[family][block]`.
        plain: Occurrences of the blocks where nothing inside moves.
    """

    inside: list[list[str]]
    plain: list[Occurrence]

    @classmethod
    def find(cls, spec: PermutationSpec, name: str, places: Mapping[str, list[Occurrence]]) -> "Blocks | None":
        """Describe the generator `name` as blocks.

        Args:
            spec: The spec.
            name: One of its generators.
            places: Occurrences of each generator: `spec.generator_occurrences`, or some of them.

        Returns:
            The blocks; `None` if nothing inside moves, or it cannot be solved block by block: several parts inside one
            axis depend on each other (heads of a group and their dimensions), or a tensor holds the blocks twice.
        """
        families: dict[str, list[str]] = {}
        for made_of in spec.parts.values():
            moving = [part for part in made_of if part.moves]
            inner = [part.name for part in moving if part.within == (name,)]
            if not inner:
                continue
            if len(moving) > 2:
                return None
            families[inner[0]] = [f"{inner[0]}[{block}]" for block in range(spec.generators[name].size)]
        inside = [slots for slots in families.values() if all(places[slot] for slot in slots)]
        whole = _positions(places[name])
        covered = _positions([place for slots in inside for slot in slots for place in places[slot]])
        dims = [tensor for tensor, _ in whole]
        if not inside or len(set(dims)) < len(dims) or any(whole[key] != count for key, count in covered.items()):
            return None
        return cls(inside, [place for place in places[name] if (place.tensor, place.dim) not in covered])


def _positions(places: list[Occurrence]) -> dict[tuple[str, int], int]:
    """Number of positions held in each `(tensor, dimension)`."""
    found: dict[tuple[str, int], int] = {}
    for place in places:
        key = place.tensor, place.dim
        found[key] = found.get(key, 0) + place.positions.numel()
    return found
