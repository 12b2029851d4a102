"""Networks of zoos that are streamed: `load_dataset(..., streaming=True)`."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sane.zoo._records import FEATURES
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.windows._windows import NEEDS_ALIGNMENT, Members, Taken, WindowSettings, WindowSource

Row = Mapping[str, Any]


class StreamedNetworks:
    """The training networks of streams, which are never all in memory; each batch is from one zoo.

    Each zoo is read epoch after epoch, in a different order each time (row groups and a buffer are shuffled). Zoos
    take turns in proportion to their size. Batch `i` depends only on the seed, `i` and the zoos. A resumed run does
    not read the rows of earlier batches again; each of several processes reads the rows of all.

    Args:
        streams: Opened zoos.
        window_size: Tokens per window.
        settings: Settings of the windows.
        new_source: Makes the [`WindowSource`] of a zoo, an architecture and a layout.
        buffer_size: Number of rows in memory from which the next row is drawn.

    Raises:
        ValueError: If a zoo lacks an alignment for the aligned view, or another checkpoint of a run is to be shown.
    """

    def __init__(
        self,
        streams: Sequence[ZooStream],
        window_size: int,
        settings: WindowSettings,
        new_source: Callable[..., WindowSource],
        *,
        buffer_size: int,
    ) -> None:
        if settings.second_network != "same":
            raise ValueError(
                f"second_network={settings.second_network!r} requires all checkpoints of a run, which a stream "
                "does not have; use second_network='same'"
            )
        if "aligned" in settings.views and any(stream.alignment is None for stream in streams):
            raise ValueError(NEEDS_ALIGNMENT)
        self.streams, self.settings, self.buffer_size = streams, settings, buffer_size
        self._new_source = new_source
        lengths = [[layout.num_tokens for layout in stream.facts.parsed_layouts.values()] for stream in streams]
        self._widths = [min(window_size, max(found)) for found in lengths]
        self._sources: dict[tuple[int, str, str], WindowSource] = {}
        self._start(0)

    def take(self, step: int) -> Taken:
        """The networks of one step. Ascending steps read the streams once; an earlier step restarts them."""
        if step < self._next or not self._next:
            self._start(step)
        while True:
            turn = self._take_turn()
            rows = islice(self._rows[turn], self.settings.batch_size)
            self._next += 1
            if self._next > step:
                return self._members(turn, list(rows))
            deque(rows, maxlen=0)

    def _members(self, turn: int, rows: Sequence[Row]) -> Taken:
        groups: dict[tuple[str, str], list[int]] = {}
        for place, row in enumerate(rows):
            if missing := [name for name in FEATURES if name not in row]:
                raise KeyError(f"the stream is not a zoo: columns {missing} are missing, it has {sorted(row)}")
            groups.setdefault((str(row["architecture"]), str(row["layout"])), []).append(place)
        taken = []
        for kind, places in groups.items():
            source = self._source(turn, *kind)
            flat = torch.stack([torch.from_numpy(np.array(rows[i]["tokens"], dtype=np.float32)) for i in places])

            def gather(index: Tensor, flat: Tensor = flat) -> Tensor:
                return flat.gather(1, index)

            runs = source.runs([str(rows[place]["run_id"]) for place in places])
            taken.append(Members(source, torch.tensor(places), runs, gather))
        return Taken(taken, self._widths[turn])

    def _source(self, turn: int, architecture: str, layout: str) -> WindowSource:
        key = (turn, architecture, layout)
        if key not in self._sources:
            facts = self.streams[turn].facts
            if layout not in facts.parsed_layouts or architecture not in facts.parsed_architectures:
                raise KeyError(
                    f"a row has layout {layout!r} and architecture {architecture!r}, but the zoo's facts list "
                    f"{sorted(facts.parsed_layouts)} and {sorted(facts.parsed_architectures)}; read both from one zoo"
                )
            self._sources[key] = self._new_source(self.streams[turn], architecture, layout)
        return self._sources[key]

    def _start(self, step: int) -> None:
        """Open the streams at the first row of a step."""
        self._next = step
        self._credit = [0.0] * len(self.streams)
        turns = Counter(self._take_turn() for _ in range(step))
        self._rows = [
            self._endless(stream, turns[turn] * self.settings.batch_size) for turn, stream in enumerate(self.streams)
        ]

    def _take_turn(self) -> int:
        """The zoo of the next batch: every zoo accumulates its share, and the zoo that is owed most is next."""
        sizes = [stream.count("train") for stream in self.streams]
        self._credit = [credit + size / sum(sizes) for credit, size in zip(self._credit, sizes, strict=True)]
        turn = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[turn] -= 1
        return turn

    def _endless(self, stream: ZooStream, skip: int) -> Iterator[Row]:
        first, skip = divmod(skip, stream.count("train"))
        options: dict[str, Any] = {"seed": self.settings.seed, "buffer_size": self.buffer_size}
        for epoch in count(first):
            is_empty = True
            for row in stream.rows("train", epoch=epoch, skip=skip, **options):
                is_empty = False
                yield row
            if is_empty:
                raise ValueError(f"{stream.source} has no training row to read; expected {stream.count('train')}")
            skip = 0
