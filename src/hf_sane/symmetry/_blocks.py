"""Nested blocks, such as heads and their dimensions, which weight matching solves jointly."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_sane.symmetry._permutation import Occurrence, PermutationSpec


@dataclass(frozen=True)
class Blocks:
    """A generator whose things are blocks, and the generators that reorder the inside of each block.

    With the order inside two blocks left as it happens to be, their likeness is noise: matching has to ask how alike
    they are in the best order. That is one assignment problem per pair of blocks, if what lies inside is independent.

    Attributes:
        inside: Families of generators, one per block: `inside[family][block]`.
        plain: Places of the blocks where nothing inside moves.
    """

    inside: list[list[str]]
    plain: list[Occurrence]

    @classmethod
    def find(cls, spec: PermutationSpec, name: str, places: Mapping[str, list[Occurrence]]) -> "Blocks | None":
        """Describe the generator `name` as blocks.

        Args:
            spec: The spec.
            name: One of its generators.
            places: Where to look for each generator: `spec.generator_occurrences`, or some of them.

        Returns:
            `None` if nothing inside moves, or what does cannot be solved block by block: several parts inside one axis
            depend on each other (heads of a group and their dimensions), or a tensor holds the blocks twice.
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
    """How many positions of each `(tensor, dimension)` are held."""
    found: dict[tuple[str, int], int] = {}
    for place in places:
        key = place.tensor, place.dim
        found[key] = found.get(key, 0) + place.positions.numel()
    return found
