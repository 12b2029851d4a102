"""Data of a pre-training run: zoos in memory, or streamed zoos with a sample of each in memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._layout import Layout
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import group_by_layout
from hf_sane.training._settings import PretrainSettings
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo._symmetries import NoSymmetriesError, UnknownSymmetriesError, fixed_spec
from hf_sane.zoo.windows._sampler import WindowSampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Networks of one or several zoos.

    Attributes:
        train: Training split of each zoo, or a sample of a stream, to fit the weight tokenizer and the initial weights
            of the autoencoder.
        validation: Validation split of each zoo, or as many networks of a stream as an evaluation needs.
        num_models: Number of training networks of each zoo.
        streams: Source of batches for streamed zoos.
    """

    train: Sequence[ZooSplit]
    validation: Sequence[ZooSplit]
    num_models: Sequence[int]
    streams: Sequence[ZooStream] = ()

    @classmethod
    def load(cls, arguments: PretrainSettings, zoos: Sequence[Zoo] | None = None) -> "TrainingData":
        """Open the zoos of a run.

        Args:
            arguments: Arguments of the run.
            zoos: Loaded zoos, instead of `arguments.zoo`.

        Raises:
            ValueError: If a zoo has no training networks.
        """
        where = {"config": arguments.zoo_config, "revision": arguments.zoo_revision}
        if zoos is None and arguments.streaming:
            return cls._open_streams([ZooStream.open(name, **where) for name in arguments.zoo], arguments)
        zoos = [Zoo.load(name, **where) for name in arguments.zoo] if zoos is None else zoos
        if "aligned" in arguments.views:
            zoos = [zoo if zoo.alignment is not None or not len(zoo) else _aligned(zoo) for zoo in zoos]
        splits = [zoo.splits["train"] for zoo in zoos]
        counts = [len(split) for split in splits]
        _require_networks(counts)
        return cls(splits, [zoo.splits["validation"] for zoo in zoos], counts)

    @classmethod
    def _open_streams(cls, streams: Sequence[ZooStream], arguments: PretrainSettings) -> "TrainingData":
        counts = [stream.count("train") for stream in streams]
        _require_networks(counts)
        return cls(
            [stream.sample("train", arguments.stream_sample, seed=arguments.seed) for stream in streams],
            [stream.sample("validation", arguments.eval_models, seed=arguments.seed) for stream in streams],
            counts,
            streams,
        )

    @property
    def network_config(self) -> ZooConfig | None:
        """Architecture of a training network, for cards; `None` if it is not an architecture of this library."""
        return self.train[0].known_config(0)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Layouts of all networks to train and evaluate on, by a run that has each; for streams, all of the zoo."""
        if self.streams:
            return {
                f"layout {key}": layout
                for stream in self.streams
                for key, layout in stream.facts.parsed_layouts.items()
            }
        return {
            split.run_ids[members[0]]: layout
            for split in (*self.train, *self.validation)
            for layout, members in group_by_layout(split, range(len(split)))
        }

    def batches(self, arguments: PretrainSettings, extractor: SANEFeatureExtractor, window_size: int) -> WindowSampler:
        """Random windows of the training networks, in the views selected by the arguments."""
        zoos = self.streams or self.train
        return WindowSampler(zoos, extractor, window_size, arguments, buffer_size=arguments.stream_buffer)

    def describe(self, arguments: PretrainSettings) -> dict[str, Any]:
        """Description of the training and validation data, for the run record."""
        facts: dict[str, Any] = {
            "zoos": arguments.zoo,
            "train_models": list(self.num_models),
            "validation_models": [len(split) for split in self.validation],
        }
        if self.streams:
            facts["revisions"] = [stream.revision for stream in self.streams]
            facts["train_models_in_memory"] = [len(split) for split in self.train]
        return facts


def _aligned(zoo: Zoo) -> Zoo:
    logger.warning(
        "the zoo %s is not aligned; aligning its networks for this run, as far as their symmetries are known "
        "(hf-sane zoo align saves the permutations)",
        zoo.facts.name,
    )
    try:
        return align_zoo(zoo)
    except NoSymmetriesError as error:
        logger.warning("%s; the views 'aligned' and 'permuted' are therefore the original networks", error)
        return align_zoo(zoo, specs={key: fixed_spec(layout) for key, layout in zoo.facts.parsed_layouts.items()})
    except UnknownSymmetriesError as error:
        raise UnknownSymmetriesError(f"{error} (pretrain --views original,original)") from error


def _require_networks(counts: Sequence[int]) -> None:
    if not counts or min(counts) == 0:
        raise ValueError(f"expected training networks in every zoo, got {list(counts)}; build larger zoos")
