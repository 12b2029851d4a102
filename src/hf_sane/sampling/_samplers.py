"""Registered samplers, which draw networks around the anchors and select some of them.

A sampler is a function with a decorator, in any module that is imported before the sampler is named:

```python
@register_sampler("first")
def keep_the_first(task: SamplingTask) -> SelectedNetworks:
    return keep_best(task.draw, task.judge, num_candidates=task.num_samples, num_samples=task.num_samples)
```
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hf_sane.core._kde import BandwidthRule
from hf_sane.records._registry import Registry
from hf_sane.sampling._generation import Density, NetworkCodec
from hf_sane.sampling._selection import Judge, LatentDraw, SelectedNetworks, bootstrap, choose_bandwidth, keep_best

Bandwidth = float | BandwidthRule


@dataclass(frozen=True, slots=True)
class SamplingTask:
    """The inputs of a sampler.

    Attributes:
        codec: Autoencoder, tokenizer, layout and architecture.
        anchors: `[A, N, Z]` latents, from [`NetworkCodec.encode`].
        judge: Scores networks on validation images.
        density: Density around the anchors from which latents are drawn.
        num_samples: Number of networks to return.
        num_candidates: Number of networks to draw and evaluate (per round, if there are rounds).
        num_rounds: Number of rounds, for samplers that have rounds.
        generator: Source of randomness on the device of `anchors`; the global one if `None`.
    """

    codec: NetworkCodec
    anchors: Tensor
    judge: Judge
    density: Density
    num_samples: int = 10
    num_candidates: int = 200
    num_rounds: int = 3
    generator: torch.Generator | None = None

    @property
    def draw(self) -> LatentDraw:
        """Function that draws latents `[count, N, Z]` around the anchors and decodes them, for [`keep_best`]."""
        return LatentDraw(partial(self.density.sample, self.anchors, generator=self.generator), self.codec.decode)


Sampler = Callable[[SamplingTask], SelectedNetworks]


@dataclass(frozen=True, slots=True)
class RegisteredSampler:
    """A sampler, and its name in the provenance of networks."""

    run: Sampler
    provenance: str


SAMPLERS: Registry[RegisteredSampler] = Registry("sampler")


def register_sampler(name: str, *, provenance: str | None = None) -> Callable[[Sampler], Sampler]:
    """Add a sampler under a name that `hf_sane.sample` and `hf-sane sample --method` then accept.

    Args:
        name: Name of the sampler; must be new.
        provenance: Name in `provenance.json`; `name` if `None`.

    Raises:
        ValueError: If the name is taken.
    """

    def register(sampler: Sampler) -> Sampler:
        SAMPLERS.add(name, RegisteredSampler(sampler, provenance or name))
        return sampler

    return register


@register_sampler("subsample", provenance="subsampled")
def keep_best_of_many(task: SamplingTask) -> SelectedNetworks:
    """Draw all candidates and keep the best on validation images (SANE_SUB)."""
    return keep_best(task.draw, task.judge, num_candidates=task.num_candidates, num_samples=task.num_samples)


@register_sampler("bootstrap", provenance="bootstrapped")
def keep_best_of_rounds(task: SamplingTask) -> SelectedNetworks:
    """Sample again around the best, several times (SANE_BOOT)."""
    kept, rounds = bootstrap(
        task.codec,
        task.anchors,
        task.judge,
        density=task.density,
        num_rounds=task.num_rounds,
        num_anchors=max(2, 2 * task.num_samples),
        num_candidates=task.num_candidates,
        num_samples=task.num_samples,
        generator=task.generator,
    )
    return replace(kept, rounds=rounds)


@register_sampler("kde")
def keep_all(task: SamplingTask) -> SelectedNetworks:
    """Draw only as many networks as requested and keep all (SANE_KDE)."""
    return keep_best(task.draw, task.judge, num_candidates=task.num_samples, num_samples=task.num_samples)


def run_sampler(
    method: str, task: SamplingTask, bandwidths: Sequence[Bandwidth]
) -> tuple[SelectedNetworks, Bandwidth]:
    """Sample with one method; if there are several bandwidths, select one on validation images.

    Args:
        method: Name of a registered sampler.
        task: Inputs of the sampler. Unit and mode of its density are used, but not its bandwidth.
        bandwidths: One bandwidth, or several numbers to choose from with half of the candidates each, see
            [`choose_bandwidth`].

    Returns:
        The networks, best first on validation images, and the bandwidth.

    Raises:
        ValueError: If the method is unknown, there is no bandwidth, or a rule is one of several; also from the
            sampler.
    """
    sampler = SAMPLERS.find(method)
    numbers = [value for value in bandwidths if not isinstance(value, str)]
    if not bandwidths or (len(bandwidths) > 1 and len(numbers) < len(bandwidths)):
        raise ValueError(f"expected one bandwidth, or several numbers to choose from, got {list(bandwidths)}")
    bandwidth = bandwidths[0]
    if len(bandwidths) > 1:
        bandwidth = choose_bandwidth(
            task.codec,
            task.anchors,
            task.judge,
            bandwidths=numbers,
            density=task.density,
            num_candidates=max(task.num_samples, task.num_candidates // 2),
            num_samples=task.num_samples,
            generator=task.generator,
        ).bandwidth
    return sampler.run(replace(task, density=replace(task.density, bandwidth=bandwidth))), bandwidth


def parse_bandwidths(values: str | float | Sequence[str | float]) -> tuple[Bandwidth, ...]:
    """Parse bandwidths from numbers, from text such as `"0.1"` or `"0.1,0.2"`, or from the name of a rule.

    Raises:
        ValueError: If the value is none of these.
    """
    parts = values.split(",") if isinstance(values, str) else [values] if isinstance(values, int | float) else values
    if list(parts) in (["scott"], ["silverman"]):
        return tuple(parts)  # type: ignore[arg-type]
    try:
        found = tuple(float(part) for part in parts)
    except ValueError:
        found = ()
    if not found:
        raise ValueError(
            f"expected a bandwidth >= 0, several separated by commas, 'scott' or 'silverman', got {values!r}"
        )
    return found
