"""Run single-threaded PyTorch operations on Python threads, to use all cores if operations are small."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to items on as many threads as PyTorch may use, one thread per operation.

    Small operations hardly benefit from internal threads. The results do not depend on the number of threads.

    Args:
        function: Function that must not share state between items. It runs in the caller's gradient mode.
        items: Arguments of the function.

    Returns:
        Results in the order of the items.

    Raises:
        Exception: The first error of `function`, in the order of the items.
    """
    waiting = list(items)
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    if min(threads, len(waiting)) < 2:
        return [function(item) for item in waiting]

    def run(item: Item) -> Result:
        with torch.set_grad_enabled(gradients):  # a setting of each thread
            return function(item)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, waiting))
    finally:
        torch.set_num_threads(threads)
