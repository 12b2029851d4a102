"""Training windows from a zoo that is read from start to end: `load_dataset(..., streaming=True)`."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._facts import ZooFacts
from hf_sane.zoo._records import FEATURES
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.windows._sampler import Members, WindowSettings, WindowSource, assemble, seeded

Row = Mapping[str, Any]


class StreamingWindowSampler:
    """Windows from a stream of zoo rows, as [`hf_sane.zoo.windows._loader.WindowSampler`] makes them from files.

    The order is the stream's: shuffle it (`stream.shuffle(seed=..., buffer_size=...)`), since the epochs of a run
    follow each other in a zoo. Batch `i` depends on the seed, `i` and the rows of the stream; a last batch that is not
    full is dropped.

    Args:
        stream: Rows with the columns of `hf_sane.zoo._records.FEATURES`, such as `ZooStream.rows` gives, or a
            `datasets` stream.
        facts: Of the zoo (`read_facts(folder)[config]`).
        extractor: Fitted weight tokenizer.
        window_size: As in `WindowSampler`.
        settings: Views and augmentations; `batch_size` rows are taken at a time, and the order is not drawn.
        alignment: Of the zoo, for the aligned view (`Alignment.load(folder / "data")`).

    Raises:
        ValueError: As in `WindowSampler`.
    """

    def __init__(
        self,
        stream: Iterable[Row],
        facts: ZooFacts,
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings | None = None,
        *,
        alignment: Alignment | None = None,
    ) -> None:
        self.settings, self.window_size = settings or WindowSettings(), window_size
        if "aligned" in self.settings.views and alignment is None:
            raise ValueError("the view 'aligned' needs the alignment of the zoo; pass it, or use the view 'original'")
        if self.settings.second_network != "same":
            raise ValueError(
                f"second_network={self.settings.second_network!r} needs all checkpoints of a run at hand, which a "
                "stream does not have; use second_network='same'"
            )
        self.stream, self.facts, self.alignment, self.extractor = stream, facts, alignment, extractor
        self.width = min(window_size, max(layout.num_tokens for layout in facts.parsed_layouts.values()))
        self._sources: dict[tuple[str, str], WindowSource] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches as `WindowSampler.batch` gives them, until the stream ends.

        Raises:
            KeyError: If rows lack columns, or name a layout or architecture that the zoo does not have.
        """
        rows, step = iter(self.stream), 0
        while len(batch := list(islice(rows, self.settings.batch_size))) == self.settings.batch_size:
            yield self.assemble(batch, step)
            step += 1

    def assemble(self, rows: Sequence[Row], step: int) -> dict[str, Tensor]:
        """The batch of given rows; `step` seeds its windows, permutations and noise.

        Raises:
            KeyError: As in `__iter__`.
        """
        groups: dict[tuple[str, str], list[int]] = {}
        for place, row in enumerate(rows):
            if missing := [name for name in FEATURES if name not in row]:
                raise KeyError(f"the stream is no zoo: columns {missing} are missing, it has {sorted(row)}")
            groups.setdefault((str(row["layout"]), str(row["architecture"])), []).append(place)
        parts = []
        for kind, places in groups.items():
            source = self._source(*kind)
            runs = torch.zeros(len(places), dtype=torch.int64)
            if self.alignment is not None and "aligned" in self.settings.views:
                runs = self.alignment.index(
                    self.alignment.key(kind[1], kind[0]), [str(rows[place]["run_id"]) for place in places]
                )
            flat = torch.stack([torch.from_numpy(np.array(rows[i]["tokens"], dtype=np.float32)) for i in places])

            def gather(index: Tensor, flat: Tensor = flat) -> Tensor:
                return flat.gather(1, index)

            parts.append(Members(source, torch.tensor(places), runs, gather))
        return assemble(parts, self.settings, self.width, seeded(self.settings.seed, step))

    def _source(self, layout_key: str, architecture: str) -> WindowSource:
        if (layout_key, architecture) not in self._sources:
            layouts, configs = self.facts.parsed_layouts, self.facts.parsed_architectures
            if layout_key not in layouts or architecture not in configs:
                raise KeyError(
                    f"a row has layout {layout_key!r} and architecture {architecture!r}, the zoo's facts know "
                    f"{sorted(layouts)} and {sorted(configs)}; read both from one zoo"
                )
            self._sources[layout_key, architecture] = WindowSource.of(
                *(self.facts, architecture, layout_key, self.extractor, self.window_size, self.settings),
                self.alignment,
            )
        return self._sources[layout_key, architecture]


class StreamedBatches:
    """Numbered training batches from zoos that are never held as a whole.

    Each zoo is read epoch after epoch, in another order each time (row groups and a buffer are shuffled). Zoos take
    turns in proportion to their size. Batch `i` depends on the seed, `i` and the zoos alone: a resumed run, or one of
    several processes, reads over the rows of batches that are not its own.

    Args:
        streams: Opened zoos.
        extractor: Fitted weight tokenizer.
        window_size: As in `WindowSampler`.
        settings: Views and augmentations; a batch is of one zoo.
        buffer_size: Rows in memory from which the next is drawn.

    Raises:
        ValueError: As in `StreamingWindowSampler`.
    """

    def __init__(
        self,
        streams: Sequence[ZooStream],
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings | None = None,
        *,
        buffer_size: int = 1000,
    ) -> None:
        self.settings = settings or WindowSettings()
        self.streams, self.buffer_size = tuple(streams), buffer_size
        self.samplers = [
            StreamingWindowSampler((), stream.facts, extractor, window_size, self.settings, alignment=stream.alignment)
            for stream in streams
        ]
        self._restart()

    def batch(self, number: int) -> dict[str, Tensor]:
        """One batch; asking for rising numbers reads the streams once, asking for an earlier one starts them anew.

        Args:
            number: From 0.

        Returns:
            As `WindowSampler.batch`.

        Raises:
            ValueError: If `number` is negative, or a zoo has no training row.
        """
        if number < 0:
            raise ValueError(f"batches count from 0, got {number}")
        if number < self._next:
            self._restart()
        while True:
            turn = self._take_turn()
            taken = islice(self._rows[turn], self.settings.batch_size)
            self._next += 1
            if self._next > number:
                return self.samplers[turn].assemble(list(taken), number)
            deque(taken, maxlen=0)

    def _restart(self) -> None:
        self._next = 0
        self._credit = [0.0] * len(self.streams)
        self._rows = [self._endless(stream) for stream in self.streams]

    def _take_turn(self) -> int:
        """The zoo of the next batch: every zoo accumulates its share; the one that is owed most provides the batch."""
        sizes = [stream.count("train") for stream in self.streams]
        self._credit = [credit + size / sum(sizes) for credit, size in zip(self._credit, sizes, strict=True)]
        turn = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[turn] -= 1
        return turn

    def _endless(self, stream: ZooStream) -> Iterator[Row]:
        for epoch in count():
            is_empty = True
            for row in stream.rows("train", seed=self.settings.seed, epoch=epoch, buffer_size=self.buffer_size):
                is_empty = False
                yield row
            if is_empty:
                raise ValueError(f"{stream.source} has no training row to read; expected {stream.count('train')}")
