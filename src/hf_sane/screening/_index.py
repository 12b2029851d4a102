"""An index of known networks by their fingerprints, which finds the nearest ones to a network."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_sane.records._documents import Entry, read_document
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.records._outputs import check_finished
from hf_sane.screening._fingerprints import DIGEST_DIGITS, LEVELS, NUM_FEATURES, Fingerprint
from hf_sane.screening._names import pair_names
from hf_sane.tokenization._checkpoints import read_safetensors

INDEX, FEATURES = "index.json", "fingerprints.safetensors"
FORMAT_VERSION = 1
AGAIN = "build the index again with hf-sane index"
SAME, RELATED = 0.02, 0.6  # largest distances explained by rounding and by a common ancestor
ENOUGH = 64  # rows, columns and positions; of fewer, the distances of independent networks are often smaller
HALF = 0.5  # share of matrices that two networks must have in common to be compared

Likeness = Literal["equal", "same", "related", "other"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Neighbour:
    """A known network and its distance.

    Attributes:
        source: Name in the index.
        likeness: `equal` (same weights in some order, none more often), `same` (up to rounding and scales), `related`,
            or none of these.
        distance: Root mean square difference of the features: about 1 for independent networks.
        shared: Share of the query's matrices that the known network also has.
    """

    source: str
    likeness: Likeness
    distance: float
    shared: float


@dataclass
class NetworkGroup:
    """Networks whose matrices have the same names and shapes.

    Attributes:
        shapes: Shapes of the matrices, by name.
        sources: Names of the networks in the index.
        digests: Digest of each network.
        features: Features of the networks, in parts that [`stacked`] joins.
    """

    shapes: dict[str, tuple[int, ...]]
    sources: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)  # [M, matrices, NUM_FEATURES]

    def stacked(self) -> Tensor:
        """Features of all networks in the group."""
        self.features = [torch.cat(self.features)]
        return self.features[0]


class NetworkIndex:
    """Fingerprints of known networks."""

    def __init__(self) -> None:
        self._groups: dict[tuple[tuple[str, tuple[int, ...]], ...], NetworkGroup] = {}

    def __len__(self) -> int:
        return sum(len(group.sources) for group in self.groups)

    @property
    def groups(self) -> list[NetworkGroup]:
        """The networks, grouped by the names and shapes of their matrices."""
        return list(self._groups.values())

    def add(self, source: str, found: Fingerprint) -> None:
        """Add a network."""
        group = self._groups.setdefault(tuple(found.shapes.items()), NetworkGroup(dict(found.shapes)))
        group.sources.append(source)
        group.digests.append(found.digest)
        group.features.append(found.features[None])

    def nearest(self, found: Fingerprint, count: int = 5) -> list[Neighbour]:
        """The nearest known networks among those that share at least half of their matrices with the query.

        Args:
            found: Fingerprint of a network.
            count: Maximum number of networks.
        """
        neighbours = [near for group in self.groups for near in _nearest_of(group, found, count)]
        return sorted(neighbours, key=lambda near: (near.likeness != "equal", near.distance))[:count]

    def save(self, partial: Path) -> None:
        """Write index.json and fingerprints.safetensors to an output folder."""
        features = {str(i): group.stacked().contiguous() for i, group in enumerate(self.groups)}
        save_file(features, partial / FEATURES)
        content = [
            {"shapes": list(group.shapes.items()), "sources": group.sources, "digests": group.digests}
            for group in self.groups
        ]
        text = json.dumps({"format_version": FORMAT_VERSION, "groups": content})
        (partial / INDEX).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "NetworkIndex":
        """Read an index written by [`save`].

        Raises:
            FileNotFoundError: If there is no index in the folder.
            InvalidFileError: If it is damaged.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(f"{folder} holds no {INDEX}; build an index with hf-sane index")
        check_finished(folder)
        document = read_document(folder / INDEX, expected="an index of networks (a JSON object)", remedy=AGAIN)
        document["format_version"].one_of((FORMAT_VERSION,))
        stored, made = read_safetensors(folder / FEATURES), cls()
        for i, entry in enumerate(document["groups"].entries()):
            group = _read_group(entry, stored.get(str(i)), folder / FEATURES, str(i))
            made._groups[tuple(group.shapes.items())] = group
        return made


def signed_gap(first: Fingerprint, other: Fingerprint) -> float:
    """Distance of the means alone, which pruning and coarse rounding change less than absolute values.

    Infinite if the networks share less than half of their matrices.
    """
    group = NetworkGroup(dict(other.shapes), [""], [other.digest], [_means(other.features)[None]])
    near = _nearest_of(group, replace(first, features=_means(first.features)), 1)
    return min((one.distance for one in near if one.shared), default=math.inf)


def likeness(first: Fingerprint, other: Fingerprint) -> Likeness:
    """How alike two networks are."""
    near = _nearest_of(NetworkGroup(dict(other.shapes), [""], [other.digest], [other.features[None]]), first, 1)
    return near[0].likeness if near else "other"


def _means(features: Tensor) -> Tensor:
    """Features of means, which alternate with those of absolute values."""
    return features.unflatten(1, (-1, 2, len(LEVELS)))[:, :, 0].flatten(1)


def _read_group(entry: Entry, features: Tensor | None, path: Path, name: str) -> NetworkGroup:
    shapes = {}
    for pair in entry["shapes"].entries():
        matrix, shape = pair.entries(length=2)
        shapes[matrix.text()] = tuple(size.whole() for size in shape.entries())
    sources = [source.text() for source in entry["sources"].entries()]
    digests = [digest.text() for digest in entry["digests"].entries(length=len(sources))]
    wanted = (len(sources), len(shapes), NUM_FEATURES)
    with reading(path, field=name, expected=f"float32 {list(wanted)}", remedy=AGAIN):
        if features is None or features.dtype != torch.float32 or tuple(features.shape) != wanted:
            got = "nothing" if features is None else f"{features.dtype} {list(features.shape)}"
            raise InvalidFileError(path, field=name, expected=f"float32 {list(wanted)}", got=got, remedy=AGAIN)
    if bad := [digest for digest in digests if len(digest) != DIGEST_DIGITS]:
        entry["digests"].fail(f"digests of {DIGEST_DIGITS} digits", got=bad[0])
    return NetworkGroup(shapes, sources, digests, [features])


def _nearest_of(group: NetworkGroup, found: Fingerprint, count: int) -> list[Neighbour]:
    equal = {i for i, digest in enumerate(group.digests) if digest == found.digest}
    count_of = [_num_matrices(found.shapes, found.features)] if equal else []
    whole = {i for i in equal if _num_matrices(group.shapes, group.stacked()[i]) in count_of}
    pairs = pair_names(_outlines(found.shapes), _outlines(group.shapes))
    is_enough = len(pairs) >= HALF * max(len(found.shapes), len(group.shapes)) and pairs
    if not is_enough:
        distance = 0.0 if not found.shapes else math.nan
        kinds: dict[bool, Likeness] = {True: "equal", False: "related"}
        return [Neighbour(group.sources[i], kinds[i in whole], distance, 0.0) for i in sorted(equal)]
    mine, theirs = list(found.shapes), list(group.shapes)
    known = group.stacked()
    if list(pairs.values()) != theirs:
        known = known[:, [theirs.index(name) for name in pairs.values()]]
    gaps = known - found.features[[mine.index(name) for name in pairs]]
    distances = gaps.square().mean((1, 2)).sqrt()
    chosen = equal.union(distances.topk(min(count, len(distances)), largest=False).indices.tolist())
    shared = len(pairs) / len(found.shapes)
    limit = RELATED * min(1.0, math.sqrt(sum(sum(found.shapes[name]) for name in pairs) / ENOUGH))
    neighbours = []
    for i in sorted(chosen):
        distance = float(distances[i])
        kind: Likeness = "same" if distance < SAME else "related" if distance < limit else "other"
        if i in equal:
            kind = "equal" if i in whole else "related"
        neighbours.append(Neighbour(group.sources[i], kind, distance, shared))
    return neighbours


def _num_matrices(shapes: Shapes, features: Tensor) -> int:
    """The number of matrices, without tied ones: equal ones under another name than that of a layer with a number."""
    repeats: dict[tuple[tuple[int, ...], bytes], Counter[str]] = {}
    for (name, shape), row in zip(shapes.items(), features, strict=True):
        key = tuple(sorted(shape)), row.numpy().tobytes()
        repeats.setdefault(key, Counter())[re.sub(r"\d+", "0", name)] += 1
    return sum(max(count.values()) for count in repeats.values())


def _outlines(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
