"""Networks of zoos on disk, read in place from the memory-mapped token column."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo.windows._siblings import Siblings
from hf_sane.zoo.windows._windows import (
    ORDER_STREAM,
    SIBLING_STREAM,
    Gather,
    Members,
    Taken,
    WindowSettings,
    WindowSource,
    seeded,
)


class StoredNetworks:
    """The networks of splits: every epoch contains each network once, in a new random order.

    Args:
        splits: Networks to draw from.
        settings: Settings of the windows.
        new_source: Function that makes the [`WindowSource`] of a zoo, an architecture and a layout.

    Raises:
        ValueError: If there are no networks, or another checkpoint is to be shown and no run has several.
    """

    def __init__(
        self, splits: Sequence[ZooSplit], settings: WindowSettings, new_source: Callable[..., WindowSource]
    ) -> None:
        self.settings = settings
        self.sources: list[WindowSource] = []
        self._parts: list[ZooSplit] = []  # of each source
        self._runs: list[Tensor] = []
        groups, members, joined, before = [], [], [], 0
        for split in splits:
            for positions in _by_architecture(split):
                part = split.select(positions)
                kind = (str(part.column(name)[0]) for name in ("architecture", "layout"))
                self.sources.append(new_source(part, *kind))
                self._parts.append(part)
                self._runs.append(self.sources[-1].runs(part.run_ids))
                groups.append(np.full(len(positions), len(self._parts) - 1))
                members.append(np.arange(len(positions)))
                joined.append(before + positions)
            before += len(split)
        if not groups:
            raise ValueError("expected at least one network to draw windows from, got none")
        shows_siblings = settings.second_network == "same_run"
        self._siblings = [Siblings(part.run_ids) for part in self._parts] if shows_siblings else []
        if shows_siblings and not any(siblings.exist for siblings in self._siblings):
            raise ValueError(
                "second_network='same_run' requires runs with checkpoints of several epochs, got one network of every "
                "run; keep more epochs (keep_epochs), or use second_network='same'"
            )
        self._groups, self._members = torch.from_numpy(np.concatenate(groups)), np.concatenate(members)
        self._joined = torch.from_numpy(np.concatenate(joined))
        self._width = max(source.length for source in self.sources)

    def take(self, step: int) -> Taken:
        """The networks of one step."""
        indices = self._indices(step)
        groups = self._groups[indices]
        shares = None
        if self._siblings:
            shares = torch.rand(len(indices), generator=seeded(self.settings.seed, SIBLING_STREAM, step)).numpy()
        taken = []
        for group in groups.unique().tolist():
            places = (groups == group).nonzero().flatten()
            members = self._members[indices[places].numpy()]
            gather, second = self._gather(group, members), None
            if shares is not None:
                second = self._gather(group, self._siblings[group].draw(members, shares[places.numpy()]))
            taken.append(Members(self.sources[group], places, self._runs[group][members], gather, second))
        return Taken(taken, self._width, self._joined[indices])

    def _gather(self, group: int, members: np.ndarray) -> Gather:
        part = self._parts[group]
        rows = part.rows[members]
        return lambda index: part.table.gather(rows, index)

    def _indices(self, step: int) -> Tensor:
        """Networks of a step: the orders of all epochs are concatenated and cut into batches."""
        start, stop = step * self.settings.batch_size, (step + 1) * self.settings.batch_size
        total = len(self._members)
        orders = [
            epoch_order(self.settings.seed, epoch, total)[max(0, start - epoch * total) : stop - epoch * total]
            for epoch in range(start // total, (stop - 1) // total + 1)
        ]
        return torch.cat(orders)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, total: int) -> Tensor:
    """All networks in the random order of one epoch: int64 `[total]`, cached and read-only."""
    return torch.randperm(total, generator=seeded(seed, ORDER_STREAM, epoch))


def _by_architecture(split: ZooSplit) -> list[np.ndarray]:
    """Positions of networks with the same layout and architecture, in order of first appearance."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for position, kind in enumerate(zip(split.column("layout"), split.column("architecture"), strict=True)):
        kinds.setdefault(kind, []).append(position)
    return [np.array(positions) for positions in kinds.values()]
