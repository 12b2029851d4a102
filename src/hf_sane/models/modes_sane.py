"""Restore training and evaluation modes, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restore the mode of `module` and of each of its submodules on exit.

    `module.train(was_training)` would also set frozen submodules, which were kept in evaluation mode, to training
    mode.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


__all__: list[str] = []  # internal; used wherever Transformers models are run
