"""Searches that need scores only: the cross-entropy method, and CMA-ES."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

ScoreSearchName = Literal["cross_entropy", "cma"]
ELITE_SHARE = 0.2  # candidates that the next round of the cross-entropy method is fitted to
SMOOTHING = 0.3  # share of the former mean and spread that a round keeps
DIAGONAL_ABOVE = 200  # latents of a network, above which CMA-ES adapts variances only


class ScoreSearch(Protocol):
    """A search around the latents of one network, in rounds."""

    def ask(self) -> Tensor:
        """Candidates `[K, N, Z]` of the next round."""

    def tell(self, candidates: Tensor, order: Tensor) -> None:
        """Learn from the candidates, whose `order` `[K]` has the best first."""


class CrossEntropySearch:
    """A Gaussian with a diagonal covariance, whose mean and spread move towards those of the best candidates.

    After Rubinstein and Kroese, 2004.

    Args:
        start: `[N, Z]`.
        spread: First standard deviations, `[N, Z]`.
        count: Candidates per round.
        generator: Source of randomness, on the device of `start`.
    """

    def __init__(self, start: Tensor, spread: Tensor, count: int, generator: torch.Generator) -> None:
        self.mean, self.spread, self.count, self.generator = start, spread, count, generator

    def ask(self) -> Tensor:
        """Candidates of the Gaussian."""
        shape = (self.count, *self.mean.shape)
        noise = torch.randn(shape, generator=self.generator, device=self.mean.device)
        return self.mean + self.spread * noise

    def tell(self, candidates: Tensor, order: Tensor) -> None:
        """Fit the Gaussian to the best."""
        top = candidates[order[: max(2, round(ELITE_SHARE * self.count))].to(candidates.device)]
        self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * top.mean(dim=0)
        self.spread = SMOOTHING * self.spread + (1 - SMOOTHING) * top.std(dim=0)


class CovarianceSearch:
    """CMA-ES (Hansen, 2016, arXiv:1604.00772), as implemented by the package `cma`.

    With more than [`DIAGONAL_ABOVE`] latents, the covariance stays diagonal (Ros and Hansen, 2008), since a full one
    takes quadratic memory. Arguments are those of [`CrossEntropySearch`].

    Raises:
        ImportError: If the package `cma` is not installed.
    """

    def __init__(self, start: Tensor, spread: Tensor, count: int, generator: torch.Generator) -> None:
        try:
            import cma
        except ImportError as error:
            raise ImportError("CMA-ES requires the package cma: pip install 'hf_sane[refine]'") from error
        self.start, self.unit = start, spread
        size = start.numel()
        seed = int(torch.randint(2**31, (1,), generator=generator, device=start.device))
        draws = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "popsize": count,
            "CMA_diagonal": size > DIAGONAL_ABOVE,
            "seed": math.nan,  # of the global generator
            "randn": lambda *shape: draws.standard_normal(shape),
            "verbose": -9,
        }
        self.draws = draws
        with numpy_kept(draws):
            self.strategy = cma.CMAEvolutionStrategy(np.zeros(size), 1.0, options)
        self.points: list[np.ndarray] = []

    def ask(self) -> Tensor:
        """Candidates of the strategy."""
        with numpy_kept(self.draws):
            self.points = self.strategy.ask()
        moved = torch.from_numpy(np.stack(self.points)).to(self.start).view(-1, *self.start.shape)
        return self.start + self.unit * moved

    def tell(self, candidates: Tensor, order: Tensor) -> None:
        """Update the strategy, which uses ranks only."""
        ranks = torch.empty(len(order), dtype=torch.int64)
        ranks[order.cpu()] = torch.arange(len(order))
        with numpy_kept(self.draws):
            self.strategy.tell(self.points, ranks.tolist())


@contextmanager
def numpy_kept(draws: np.random.Generator) -> Iterator[None]:
    """Seed the global generator of NumPy, which `cma` uses for some draws, and restore it afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(draws.integers(2**32))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


SCORE_SEARCHES: dict[ScoreSearchName, type[CrossEntropySearch] | type[CovarianceSearch]] = {
    "cross_entropy": CrossEntropySearch,
    "cma": CovarianceSearch,
}
