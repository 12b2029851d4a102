"""Samplers of windows, with their settings as keywords, and streams of rows that a test chooses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo._facts import ZooFacts
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.windows._sampler import WindowSampler
from hf_sane.zoo.windows._windows import WindowSettings

NAMES = {entry.name for entry in fields(WindowSettings)}


@dataclass(frozen=True)
class RowStream(ZooStream):
    """A stream that gives the same rows in the same order in every epoch."""

    given: Iterable[dict[str, Any]] = ()

    def rows(self, split: str, **options: Any) -> Iterator[dict[str, Any]]:
        return iter(self.given)


def stream_of(rows: Iterable[dict[str, Any]], facts: ZooFacts, alignment: Alignment | None = None) -> RowStream:
    """A stream of given rows."""
    return RowStream("rows", "default", facts, alignment, None, rows)


def new_sampler(
    zoos: Sequence[ZooSplit | ZooStream], extractor: SANEFeatureExtractor, *, window_size: int, **options: Any
) -> WindowSampler:
    """A sampler of windows; options are fields of `WindowSettings`, and others of its own."""
    settings = {name: list(value) if name == "views" else value for name, value in options.items() if name in NAMES}
    own = {name: value for name, value in options.items() if name not in NAMES}
    return WindowSampler(zoos, extractor, window_size, WindowSettings(**settings), **own)
