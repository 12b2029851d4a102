"""Index networks by their fingerprints, and search an index for a network."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from hf_sane.records._errors import describe_skipped, name_some, shorten
from hf_sane.records._outputs import output_folder
from hf_sane.records._progress import tracked
from hf_sane.records._run_record import RunRecord
from hf_sane.records._settings import CheckedSettings, as_arguments, setting
from hf_sane.records._sources import parse_source
from hf_sane.screening._checkpoints import targets_in, weights_below
from hf_sane.screening._fingerprints import Fingerprint, fingerprint, fingerprint_many
from hf_sane.screening._index import Neighbour, NetworkIndex
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint
from hf_sane.workflows.results import Result, Table
from hf_sane.workflows.shared import WeightsSettings
from hf_sane.workflows.show_zoo import is_zoo, load_zoo
from hf_sane.zoo._dataset import Zoo, ZooSplit

if TYPE_CHECKING:
    import pandas as pd

STACKED_BYTES = 2**26  # zoo networks to fingerprint together
LIKENESS = {
    "equal": "equal weights, perhaps in another order",
    "same": "the same weights up to rounding and scales of channels",
    "related": "related: fine-tuned from each other, or from a common ancestor",
    "other": "no relation found, though strong fine-tuning can hide one",
}
MAX_SKIPPED = 20  # networks to print
MAX_REASON = 400  # characters


@dataclass(kw_only=True)
class IndexSettings(CheckedSettings):
    """Settings of [`index_networks`]."""

    sources: list[Source | Zoo] = setting(
        "Sources of networks: zoos, files, folders of checkpoints or Hub repo ids.", positional=True
    )
    output: Path = setting("New folder for the index.", short="-o")
    zoo: list[str] = setting("Zoos on the Hub (repo ids).", factory=list, formerly="--zoos")


class IndexJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        networks: Number of networks in the index.
        skipped: Sources that could not be read, with the reason.
    """

    networks: int
    skipped: dict[str, str]


@dataclass(kw_only=True)
class IndexResult(Result):
    """An index of networks.

    Attributes:
        index: Index of the networks.
        skipped: Networks without a fingerprint, with the reason.
    """

    JSON: ClassVar[Any] = IndexJson
    JOB: ClassVar[str] = "index"

    index: NetworkIndex
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Number of networks, and skipped networks."""
        return {"networks": len(self.index), "skipped": self.skipped}

    def summary(self) -> list[str]:
        """The number of networks, and skipped networks, as sentences."""
        lines = [f"{len(self.index):,} network{'' if len(self.index) == 1 else 's'}"]
        lines += [describe_skipped(*item) for item in list(self.skipped.items())[:MAX_SKIPPED]]
        more = len(self.skipped) - MAX_SKIPPED
        return [*lines, f"and {more} more: see --json"] if more > 0 else lines

    def write(self, partial: Path) -> None:
        """Write the index and the run record."""
        self.index.save(partial)
        super().write(partial)


@dataclass(kw_only=True)
class SearchSettings(WeightsSettings):
    """Settings of [`search`]."""

    checkpoint: Source = setting("Checkpoint: a file, folder or Hub repo id.", positional=True, formerly="query")
    index: str | Path | NetworkIndex = setting("Folder of the index, from hf-sane index.")
    count: int = setting("Number of networks to list.", default=5, least=1)


class SearchJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        digest: Digest of the network, which is the same for equal weights in any order.
        known: Number of networks in the index.
        neighbours: Nearest known networks.
    """

    digest: str
    known: int
    neighbours: list[Neighbour]


@dataclass(kw_only=True)
class SearchResult(Result):
    """Known networks similar to the query, sorted by distance.

    Attributes:
        neighbours: Nearest known networks.
        num_known: Number of networks in the index.
        digest: Digest of the query.
    """

    JSON: ClassVar[Any] = SearchJson
    JOB: ClassVar[str] = "search"

    neighbours: list[Neighbour]
    num_known: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """The networks, and the digest."""
        rows: list[dict[str, Any]] = [asdict(near) for near in self.neighbours]
        for row in rows:
            row["distance"] = row["distance"] if row["distance"] == row["distance"] else None
        return {"digest": self.digest, "known": self.num_known, "neighbours": rows}

    def to_frame(self) -> "pd.DataFrame":
        """One row per network, as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["neighbours"], columns=list(Neighbour.__dataclass_fields__))

    def summary(self) -> list[str]:
        """The fingerprint, and how the nearest network is related."""
        lines = [f"fingerprint {self.digest}, among {self.num_known:,} networks"]
        if not self.neighbours:
            return [*lines, "no known network shares half of its matrices"]
        nearest = self.neighbours[0]
        return [*lines, f"nearest: {nearest.source} ({LIKENESS[nearest.likeness]})"]

    def tables(self) -> list[Table]:
        """One row per network."""
        header = ("network", "likeness", "distance", "shared matrices")
        rows = [[near.source, near.likeness, near.distance, f"{near.shared:.0%}"] for near in self.neighbours]
        return [Table(header, rows)] if rows else []


def index_networks(sources: object, output: str | Path, **options: Any) -> IndexResult:
    """Index networks by fingerprints that do not depend on the order and scales of channels.

    ```python
    hf_sane.index_networks(["my_zoo", "org/some-model"], "known")
    ```

    Args:
        sources: A zoo, module, state dict, file, folder of checkpoints or Hub repo id; or a list of them.
        output: New folder for the index.
        **options: Other fields of [`IndexSettings`].
    """
    return run_index(IndexSettings(sources=sources, output=Path(output), **options))  # type: ignore[arg-type]


def run_index(settings: IndexSettings) -> IndexResult:
    """Write an index of networks, in which hf-sane search finds copies and relatives of a given network.

    Sources that cannot be read are listed, and the others are indexed.
    """
    record = RunRecord.start(arguments=as_arguments(settings))
    with output_folder(settings.output, IndexResult.JOB) as partial:
        index, skipped = NetworkIndex(), {}
        for name, found in tracked(_networks(settings), desc="fingerprints", unit="network"):
            if isinstance(found, Fingerprint):
                index.add(name, found)
            else:
                skipped[name] = found
        if not len(index):
            reasons = name_some(f"{name} ({reason})" for name, reason in skipped.items()) or "no files"
            raise ValueError(f"expected networks, found none that can be read: {reasons}")
        record.finish({"networks": len(index), "skipped": len(skipped)})
        result = IndexResult(record=record, index=index, skipped=skipped)
        result.write_all(partial)
    result.output = settings.output
    return result


def _networks(settings: IndexSettings) -> Iterator[tuple[str, Fingerprint | str]]:
    """Names and fingerprints of all networks; if a network has no fingerprint, the reason takes its place."""
    for number, source in enumerate((*settings.sources, *map(load_zoo, settings.zoo))):
        if not isinstance(source, str | Path | Zoo):
            try:
                yield f"network_{number}", fingerprint(open_checkpoint(source))
            except (TypeError, ValueError) as error:
                yield f"network_{number}", shorten(error, MAX_REASON)
            continue
        if isinstance(source, Zoo) or is_zoo(source):
            zoo = source if isinstance(source, Zoo) else load_zoo(source)
            for split in zoo.splits.values():
                yield from _of_zoo(zoo.source or zoo.facts.name, split)
            continue
        place = parse_source(source)
        for target in targets_in(place) if isinstance(place, Path) and place.is_dir() else (source,):
            try:
                yield str(target), fingerprint(open_checkpoint(CheckpointSource(target)))
            except (OSError, TypeError, ValueError) as error:
                yield str(target), shorten(error, MAX_REASON)
            for path in weights_below(target) if isinstance(target, Path) and target.is_dir() else ():
                yield str(path), f"in a subfolder of the checkpoint {target}, not indexed; pass it by its path"


def _of_zoo(name: str, split: ZooSplit) -> Iterator[tuple[str, Fingerprint]]:
    """Fingerprint a zoo's networks, a batch of the same layout at a time."""
    layouts = split.column("layout")
    for layout in dict.fromkeys(layouts.tolist()):
        rows = split.select(layouts == layout)
        step = max(1, STACKED_BYTES // max(1, rows.tokens(0).nbytes))
        for start in range(0, len(rows), step):
            part = rows.select(slice(start, start + step))
            found = fingerprint_many(part.stacked_tensors())
            for run, epoch, one in zip(part.run_ids, part.column("epoch").tolist(), found, strict=True):
                yield f"{name}: {run}, epoch {epoch}", one


def search(checkpoint: Source, index: str | Path | NetworkIndex, **options: Any) -> SearchResult:
    """Find copies and relatives of a network among known networks, regardless of the order and scales of channels.

    ```python
    print(hf_sane.search("org/unknown", "known"))
    ```

    Args:
        checkpoint: A module, state dict, path or Hub repo id.
        index: Folder that [`index_networks`] wrote.
        **options: Other fields of [`SearchSettings`].
    """
    return run_search(SearchSettings(checkpoint=checkpoint, index=index, **options))


def run_search(settings: SearchSettings) -> SearchResult:
    """Find known networks that equal a network up to channel order, scales and precision, or are related to it."""
    record = RunRecord.start(arguments=as_arguments(settings))
    tensors = open_checkpoint(settings.selected(settings.checkpoint))
    known = settings.index
    index = known if isinstance(known, NetworkIndex) else NetworkIndex.load(known)
    found = fingerprint(tensors)
    neighbours = index.nearest(found, settings.count)
    result = SearchResult(record=record.finish({}), neighbours=neighbours, num_known=len(index), digest=found.digest)
    if found.features.numel() and not found.features.any():
        result.notes.append("its matrices are zero or not finite, so that distances to it say nothing")
    return result


__all__ = ["IndexResult", "SearchResult", "index_networks", "search"]
