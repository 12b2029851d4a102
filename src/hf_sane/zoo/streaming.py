"""Training windows from a zoo that is read from start to end: `load_dataset(..., streaming=True)`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core.layout import Layout
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo.alignment_record import Alignment
from hf_sane.zoo.facts import ZooFacts
from hf_sane.zoo.records import FEATURES
from hf_sane.zoo.windows import Members, View, WindowSettings, WindowSource, assemble, seeded

Row = Mapping[str, Any]


class StreamingWindowSampler:
    """Windows from a stream of zoo rows, as [`hf_sane.zoo.loader.WindowSampler`] makes them from files.

    The order is the stream's: shuffle it (`stream.shuffle(seed=..., buffer_size=...)`), since the epochs of a run follow
    each other in a zoo. Batch `i` depends on the seed, `i` and the rows of the stream; a last batch that is not full is
    dropped.

    Args:
        stream: Rows with the columns of `hf_sane.zoo.records.FEATURES`; `stream.with_format("numpy")` reads fastest.
        facts: Of the zoo (`read_facts(folder)[config]`).
        extractor: Fitted weight tokenizer.
        alignment: Of the zoo, for the aligned view (`Alignment.load(folder / "data")`).
        window_size: As in `WindowSampler`, like all that follows.
        batch_size: Rows taken at a time.
        views: One or two views.
        noise: Of the multiplicative noise.
        num_permutations: Of the permuted view.
        erase: Share of tokens set to zero.
        seed: Of everything but the order.

    Raises:
        ValueError: As in `WindowSampler`.
    """

    def __init__(
        self,
        stream: Iterable[Row],
        facts: ZooFacts,
        extractor: SANEFeatureExtractor,
        *,
        window_size: int,
        batch_size: int,
        alignment: Alignment | None = None,
        views: Sequence[View] = ("aligned", "permuted"),
        noise: float = 0.1,
        num_permutations: int = 200,
        erase: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.settings = WindowSettings(
            window_size, batch_size, tuple(views), float(noise), num_permutations, float(erase), seed
        )
        if "aligned" in views and alignment is None:
            raise ValueError("the view 'aligned' needs the alignment of the zoo; pass it, or use the view 'original'")
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
            yield self._assemble(batch, step)
            step += 1

    def _assemble(self, rows: list[Row], step: int) -> dict[str, Tensor]:
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
                runs = self.alignment.index(kind[1], [str(rows[place]["run_id"]) for place in places])
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
            self._sources[layout_key, architecture] = self._new_source(
                configs[architecture], layouts[layout_key], architecture
            )
        return self._sources[layout_key, architecture]

    def _new_source(self, config: ZooConfig | None, layout: Layout, architecture: str) -> WindowSource:
        permutation = None if self.alignment is None else self.alignment.permutations.get(architecture)
        return WindowSource(config, layout, self.extractor, self.settings, permutation)
