"""Divide work over processes that were started together, or over workers of this process.

Processes that are started with `torchrun` or `accelerate launch` run the same program. Within [`joined_processes`],
each of them does its share of a list of items and receives the results of all, so that all of them continue alike;
only the main process writes. Workers are forks of one process, made by `datasets.Dataset.map`.
"""

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, TypeVar

from hf_sane.records._progress import is_quiet, quietly, tracked

Item = TypeVar("Item")
Found = TypeVar("Found")
MISSING = object()


@dataclass(frozen=True)
class Processes:
    """The processes that do the same work together.

    Attributes:
        index: Number of this process.
        count: Number of all.
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints results."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this process: every `count`-th."""
        return items[self.index :: self.count]

    def gather(self, value: Found) -> list[Found]:
        """The values of all processes, in all processes."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)


ALONE = Processes()
_joined: ContextVar[Processes] = ContextVar("joined", default=ALONE)


def current_processes() -> Processes:
    """The processes of the enclosing [`joined_processes`]; otherwise this one alone."""
    return _joined.get()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes that were started together, if there are several, for the block."""
    if _joined.get().count > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield _joined.get()
        return
    import torch.distributed
    from accelerate import PartialState

    was_connected = torch.distributed.is_initialized()
    state = None if was_connected else PartialState()  # connects them, if the environment has what it needs
    if not torch.distributed.is_initialized():
        raise ValueError(
            f"expected {os.environ['WORLD_SIZE']} connected processes (WORLD_SIZE), got this one alone; start them "
            "with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    processes = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    token = _joined.set(processes)
    try:
        with quietly(not processes.is_main):
            yield processes
        processes.wait()  # a process that leaves early would cut the connection that others still read from
    finally:
        _joined.reset(token)
        if state is not None:
            state.destroy_process_group()


def divided(
    work: Callable[[Item], Found], items: Sequence[Item], *, workers: int = 1, desc: str, unit: str
) -> list[Found]:
    """Results of all items in order, each computed by one process or worker.

    Args:
        work: Computes one result, which can be pickled.
        items: The same in all processes.
        workers: Number of forks of this process; in each, PyTorch uses one thread.
        desc: Description of the work for a progress bar.
        unit: Name of an item.

    Raises:
        ValueError: If there are several workers, and the system does not fork processes.
    """
    processes = current_processes()
    own = processes.share(items)
    if min(workers, len(own)) > 1:
        found = _in_workers(work, own, workers, desc)
    else:
        found = [work(item) for item in tracked(own, desc=desc, unit=unit)]
    rows = chain.from_iterable(zip_longest(*processes.gather(found), fillvalue=MISSING))
    return [row for row in rows if row is not MISSING]  # type: ignore[misc]


# What the workers do, which they inherit: models are not pickled, and functions may be closures.
_inherited: tuple[Callable[[Any], Any], Sequence[Any], int] | None = None


def _in_workers(work: Callable[[Item], Found], items: Sequence[Item], workers: int, desc: str) -> list[Found]:
    global _inherited
    import datasets
    import multiprocess

    if multiprocess.get_start_method() != "fork":
        raise ValueError(
            f"expected a system that forks processes for {workers} workers, got one that starts them anew; leave out "
            "--workers, or start several processes with torchrun"
        )
    rows = datasets.Dataset.from_dict({"index": list(range(len(items)))})
    shows_bars = datasets.are_progress_bars_disabled() and not is_quiet()
    _inherited = (work, items, os.getpid())
    if shows_bars:
        datasets.enable_progress_bars()
    try:
        found = rows.map(
            _work_on,
            num_proc=min(workers, len(items)),
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint="divided",
            remove_columns=["index"],
            features=datasets.Features({"found": datasets.Value("large_binary")}),
            desc=desc,
        )
    finally:
        _inherited = None
        if shows_bars:
            datasets.disable_progress_bars()
    return [pickle.loads(row) for row in found["found"]]  # from our own workers


def _work_on(row: dict[str, int]) -> dict[str, bytes]:
    """One item, in a worker."""
    assert _inherited is not None
    work, items, parent = _inherited
    if os.getpid() != parent:
        import torch

        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted and ends its workers
        torch.set_num_threads(1)  # threads do not survive a fork
    with quietly():
        return {"found": pickle.dumps(work(items[row["index"]]))}
