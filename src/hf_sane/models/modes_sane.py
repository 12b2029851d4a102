"""Training and evaluation modes that are put back as they were, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever mode `module` and its parts are put into inside, afterwards each is in the mode that it was in.

    `module.train(was_training)` would not do: it also wakes frozen parts that somebody keeps in evaluation mode.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


__all__ = ["modes_kept"]
