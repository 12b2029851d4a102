"""Batches of random windows for pre-training, read in place from the memory-mapped token column."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo.windows._sampler import (
    SIBLING_STREAM,
    Gather,
    Members,
    WindowSettings,
    WindowSource,
    assemble,
    epoch_order,
    seeded,
)
from hf_sane.zoo.windows._siblings import Siblings


class WindowSampler:
    """Random windows of the networks of one or several zoos, in one or two views.

    One epoch takes one window of every network, in random order. A window is `window_size` consecutive tokens, or the
    whole network where that is shorter; both views take the same tokens of it. Unlike the released code, which stores
    windows and 200 permuted copies of each network beforehand, everything is drawn while reading.

    Args:
        splits: Networks to draw from; different architectures are padded to one width.
        extractor: Fitted weight tokenizer; the windows are normalised.
        window_size: Tokens per window.
        settings: Views and augmentations; the aligned view needs aligned zoos. With `second_network="same_run"`,
            contrast pulls the epochs of a run together; a run of one checkpoint shows that one.

    Raises:
        ValueError: For settings out of range, no networks, no run of several checkpoints to take another one from,
            tokens of different sizes, an extractor that makes other tokens or was not fitted, the aligned view of a
            zoo without alignment, or a view that permutes networks whose symmetries are not known.
        KeyError: If the extractor was fitted on another architecture.
    """

    def __init__(
        self,
        splits: Sequence[ZooSplit],
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings | None = None,
    ) -> None:
        self.settings = settings or WindowSettings()
        self.sources: list[WindowSource] = []
        self._splits: list[ZooSplit] = []  # of each source
        self._runs: list[Tensor] = []
        self._siblings: list[Siblings] = []
        groups, members, joined, before = [], [], [], 0
        for split in splits:
            for positions in _by_architecture(split):
                self._add(split.select(positions), extractor, window_size)
                groups.append(np.full(len(positions), len(self.sources) - 1))
                members.append(np.arange(len(positions)))
                joined.append(before + positions)
            before += len(split)
        if not groups:
            raise ValueError("expected at least one network to draw windows from, got none")
        if self.settings.second_network == "same_run" and not any(siblings.exist for siblings in self._siblings):
            raise ValueError(
                "second_network='same_run' needs runs with checkpoints of several epochs, got one network of every "
                "run; keep more epochs (keep_epochs), or use second_network='same'"
            )
        self._groups, self._members = torch.from_numpy(np.concatenate(groups)), np.concatenate(members)
        self._joined = torch.from_numpy(np.concatenate(joined))
        self.width = max(source.length for source in self.sources)

    def _add(self, part: ZooSplit, extractor: SANEFeatureExtractor, window_size: int) -> None:
        architecture, layout = (str(part.column(name)[0]) for name in ("architecture", "layout"))
        runs = torch.zeros(len(part), dtype=torch.int64)
        if part.alignment is not None and "aligned" in self.settings.views:
            runs = part.alignment.index(part.alignment.key(architecture, layout), part.run_ids)
        source = WindowSource.of(
            part.facts, architecture, layout, extractor, window_size, self.settings, part.alignment
        )
        self.sources.append(source)
        self._splits.append(part)
        self._runs.append(runs)
        if self.settings.second_network == "same_run":
            self._siblings.append(Siblings(part.run_ids))

    @property
    def num_models(self) -> int:
        """Networks, and windows per epoch."""
        return len(self._members)

    def batch(self, step: int, *, with_indices: bool = False) -> dict[str, Tensor]:
        """The batch of one step: a pure function of the seed and `step`, so nothing has to be stored to resume.

        Args:
            step: From 0.
            with_indices: Add which networks the windows are from.

        Returns:
            `tokens` `[B, W, D]` (first view, with noise), `target_tokens` (without), `second_tokens` and
            `second_target_tokens` if there are two views, `positions` `[B, W, 3]`, `weight_mask` `[B, W, D]`,
            `attention_mask` `[B, W]`: what `SANEModel.forward` takes. With indices also `indices` `[B]`: positions in
            the joined splits.

        Raises:
            ValueError: If `step` is negative.
        """
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        indices = self._indices(step)
        groups = self._groups[indices]
        shares = None
        if self.settings.second_network == "same_run":
            shares = torch.rand(len(indices), generator=seeded(self.settings.seed, SIBLING_STREAM, step)).numpy()
        parts = []
        for group in groups.unique().tolist():
            places = (groups == group).nonzero().flatten()
            members = self._members[indices[places].numpy()]
            gather, second = self._gather(group, members), None
            if shares is not None:
                second = self._gather(group, self._siblings[group].draw(members, shares[places.numpy()]))
            parts.append(Members(self.sources[group], places, self._runs[group][members], gather, second))
        batch = assemble(parts, self.settings, self.width, seeded(self.settings.seed, step))
        return {**batch, "indices": self._joined[indices]} if with_indices else batch

    def _gather(self, group: int, members: np.ndarray) -> Gather:
        split = self._splits[group]
        rows = split.rows[members]
        return lambda index: split.table.gather(rows, index)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches 0, 1, 2, ... without end."""
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def _indices(self, step: int) -> Tensor:
        """Networks of a step: the orders of all epochs, one behind the other, cut into batches."""
        start, stop = step * self.settings.batch_size, (step + 1) * self.settings.batch_size
        total = self.num_models
        orders = [
            epoch_order(self.settings.seed, epoch, total)[max(0, start - epoch * total) : stop - epoch * total]
            for epoch in range(start // total, (stop - 1) // total + 1)
        ]
        return torch.cat(orders)


def _by_architecture(split: ZooSplit) -> list[np.ndarray]:
    """Positions of the networks that share layout and architecture, in the order of first appearance."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for position, kind in enumerate(zip(split.column("layout"), split.column("architecture"), strict=True)):
        kinds.setdefault(kind, []).append(position)
    return [np.array(positions) for positions in kinds.values()]
