"""Batches of random windows for pre-training, from zoos on disk or from streams of zoos."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count

from torch import Tensor

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo.windows._stored import StoredNetworks
from hf_sane.zoo.windows._streamed import StreamedNetworks
from hf_sane.zoo.windows._windows import WindowSettings, WindowSource, assemble, seeded


class WindowSampler:
    """Random windows of the networks of one or several zoos, in one or two views.

    A window is `window_size` consecutive tokens, or the whole network where that is shorter; both views take the same
    tokens of it. Unlike the released code, which stores windows and 200 permuted copies of each network beforehand,
    everything is drawn while reading. One epoch takes one window of every network, in random order: see
    [`StoredNetworks`] for zoos on disk, [`StreamedNetworks`] for streams.

    Args:
        zoos: Splits to draw from, all networks in one order, different architectures padded to one width; or streams,
            which take turns.
        extractor: Fitted weight tokenizer; the windows are normalised.
        window_size: Tokens per window.
        settings: Views and augmentations; the aligned view needs aligned zoos. With `second_network="same_run"`,
            contrast pulls the epochs of a run together; a run of one checkpoint shows that one.
        buffer_size: Size of the buffer of streams: rows in memory from which the next is drawn.

    Raises:
        ValueError: For settings out of range, no networks, splits among streams, no run of several checkpoints to take
            another one from, tokens of different sizes, an extractor that makes other tokens or was not fitted, the
            aligned view of a zoo without alignment, or a view that permutes networks whose symmetries are not known.
        KeyError: If the extractor was fitted on another architecture.
    """

    def __init__(
        self,
        zoos: Sequence[ZooSplit] | Sequence[ZooStream],
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings | None = None,
        *,
        buffer_size: int = 1000,
    ) -> None:
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}")
        self.settings = settings or WindowSettings()
        new_source = partial(WindowSource, extractor=extractor, window_size=window_size, settings=self.settings)
        splits = [zoo for zoo in zoos if isinstance(zoo, ZooSplit)]
        streams = [zoo for zoo in zoos if isinstance(zoo, ZooStream)]
        if splits and streams:
            raise ValueError(
                f"expected zoos on disk or streams, got {len(splits)} and {len(streams)}; open all in the same way"
            )
        self.networks: StoredNetworks | StreamedNetworks = (
            StreamedNetworks(streams, window_size, self.settings, new_source, buffer_size=buffer_size)
            if streams
            else StoredNetworks(splits, self.settings, new_source)
        )

    def batch(self, step: int, *, with_indices: bool = False) -> dict[str, Tensor]:
        """The batch of one step: a pure function of the seed and `step`, so nothing has to be stored to resume.

        Args:
            step: Number of the step, from 0.
            with_indices: Add which networks the windows are from; streams do not number theirs.

        Returns:
            `tokens` `[B, W, D]` (first view, with noise), `target_tokens` (without), `second_tokens` and
            `second_target_tokens` if there are two views, `positions` `[B, W, 3]`, `weight_mask` `[B, W, D]`,
            `attention_mask` `[B, W]`: what `SANEModel.forward` takes. With indices also `indices` `[B]`: positions in
            the joined splits.

        Raises:
            ValueError: If `step` is negative, or a stream has no training row.
            KeyError: If rows of a stream lack columns, or name a layout or architecture that the zoo does not have.
        """
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        taken = self.networks.take(step)
        batch = assemble(taken, self.settings, seeded(self.settings.seed, step))
        return {**batch, "indices": taken.indices} if with_indices and taken.indices is not None else batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches 0, 1, 2, ... without end."""
        return map(self.batch, count())
