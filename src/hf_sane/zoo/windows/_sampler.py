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
    """Random windows of networks from one or several zoos, in one or two views.

    A window is `window_size` consecutive tokens, or the whole network if that is shorter; both views contain the same
    tokens. Unlike the released code, which stores windows and 200 permuted copies of each network beforehand, windows
    are drawn while reading. An epoch contains one window of every network, in random order: see [`StoredNetworks`] for
    zoos on disk and [`StreamedNetworks`] for streams.

    Args:
        zoos: Splits to draw from, whose networks are shuffled together and padded to the same width; or streams, which
            take turns.
        extractor: Fitted weight tokenizer, which normalises the windows.
        window_size: Tokens per window.
        settings: Views and augmentations; the aligned view needs aligned zoos. With `second_network="same_run"`, the
            contrastive loss pulls the epochs of a run together; a run with one checkpoint shows that checkpoint.
        buffer_size: Buffer size of streams: number of rows in memory from which the next row is drawn.

    Raises:
        ValueError: If settings are out of range, there are no networks, splits and streams are mixed, no run has a
            second checkpoint to show, token sizes differ, the extractor makes different tokens or is not fitted, the
            aligned view is requested for a zoo without alignment, or a view permutes networks with unknown symmetries.
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
        """The batch of a step, which depends only on the seed and `step`, so that resuming needs no state.

        Args:
            step: Number of the step, from 0.
            with_indices: Whether to add the indices of the networks; not available for streams.

        Returns:
            The arguments of `SANEModel.forward`: `tokens` `[B, W, D]` (first view, with noise), `target_tokens`
            (without noise), `second_tokens` and `second_target_tokens` if there are two views, `positions`
            `[B, W, 3]`, `weight_mask` `[B, W, D]`, `attention_mask` `[B, W]`. With indices also `indices` `[B]`:
            positions in the concatenated splits.

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
        """Yield batches 0, 1, 2, ... endlessly."""
        return map(self.batch, count())
