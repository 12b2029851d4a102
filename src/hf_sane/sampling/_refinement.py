"""Refine sampled networks: search their latents for better ones, by gradient or by scores alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_sane.networks._stacked import StackedNetworks, example_losses
from hf_sane.records._progress import tracked
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._score_searches import SCORE_SEARCHES, ScoreSearch, ScoreSearchName
from hf_sane.sampling._selection import Judge, SelectedNetworks, rank_networks

CHECK_EVERY = 5  # steps of a search by gradient between two judgements
START_SPREAD = 0.3  # of the first candidates, in units of the scale


@dataclass(frozen=True, slots=True)
class Refinement:
    """Settings of a search.

    Attributes:
        steps: Steps of Adam, or rounds of a search by scores, >= 1.
        rate: Learning rate of Adam, in units of `scale`, > 0.
        prior: Weight of the mean squared movement (in units of `scale`) in the objective, >= 0.
        batch_size: Examples of each step.
        num_candidates: Candidates of each network in each round of a search by scores, >= 2.
        seed: Random seed of batches and candidates.

    Raises:
        ValueError: If a number is out of range.
    """

    steps: int = 60
    rate: float = 0.1
    prior: float = 0.0
    batch_size: int = 64
    num_candidates: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.rate < float("inf") or not 0 <= self.prior < float("inf"):
            raise ValueError(
                f"expected steps >= 1, a rate > 0 and a prior >= 0, got {self.steps}, {self.rate} and {self.prior}"
            )
        if self.batch_size < 1 or self.num_candidates < 2:
            raise ValueError(
                f"expected batch_size >= 1 and num_candidates >= 2, got {self.batch_size} and {self.num_candidates}"
            )


@dataclass(slots=True)
class _Best:
    """The best latents of each network so far, since the last need not be the best."""

    latents: Tensor
    networks: StackedNetworks
    score: Tensor
    loss: Tensor

    def update(self, latents: Tensor, networks: StackedNetworks, loss: Tensor, score: Tensor) -> None:
        """Replace those that are better now: by score, or by loss if scores are equal."""
        better = (score > self.score) | ((score == self.score) & (loss < self.loss))
        if not better.any():
            return
        self.score = torch.where(better, score, self.score)
        self.loss = torch.where(better, loss, self.loss)
        self.latents = torch.where(better.to(latents.device)[:, None, None], latents, self.latents)
        former = self.networks.tensors
        tensors = {
            name: torch.where(better.to(found.device).view(-1, *[1] * (found.ndim - 1)), found, former[name])
            for name, found in networks.tensors.items()
        }
        self.networks = StackedNetworks(networks.config, tensors)

    def selected(self, first: SelectedNetworks) -> SelectedNetworks:
        """All networks, best first."""
        order = rank_networks(self.score, self.loss)
        return replace(
            first,
            sources=self.latents[order.to(self.latents.device)],
            networks=self.networks.select(order),
            validation_score=self.score[order],
            validation_loss=self.loss[order],
        )


def refine_by_gradient(
    codec: NetworkCodec,
    selected: SelectedNetworks,
    judge: Judge,
    inputs: Tensor,
    labels: Tensor,
    *,
    scale: Tensor | float,
    settings: Refinement | None = None,
) -> SelectedNetworks:
    """Search latents by the gradient of the cross-entropy of their decoded networks, with Adam.

    The latents of each network move on their own. Every [`CHECK_EVERY`] steps and at the end, the judge scores the
    networks on its own data, and each network keeps the best of its states, the first included: on the judge's data no
    network becomes worse. Running statistics of batch norms are those of the last judgement.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        selected: Networks to start from, with their latents as sources.
        judge: Scores networks on validation data; must not use `inputs`.
        inputs: Labelled examples of training, `[n, ...]`.
        labels: Their classes, `[n]` int64.
        scale: Unit of movements in the space of latents: a number, or `[N, Z]`.
        settings: Steps, rate, prior; the defaults if `None`.

    Returns:
        As many networks, best first on the judge's data.

    Raises:
        ValueError: If there are no examples.
    """
    settings = settings or Refinement()
    if not len(inputs):
        raise ValueError("expected labelled examples to refine networks on, got none")
    first = selected.sources
    best = _Best(first, selected.networks, selected.validation_score, selected.validation_loss)
    buffers = _statistics(judge, selected.networks)
    moved = torch.zeros_like(first).requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=settings.rate)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.empty(0, dtype=torch.int64)
    size = min(settings.batch_size, len(inputs))
    for step in tracked(range(1, settings.steps + 1), desc="refining", unit="step"):
        if len(order) < size:
            order = torch.randperm(len(inputs), generator=generator)
        batch, order = order[:size], order[size:]
        decoded = codec.decode(first + scale * moved, with_gradient=True)
        networks = StackedNetworks(decoded.config, {**decoded.tensors, **buffers})
        losses = example_losses(networks.logits(inputs[batch]), labels[None, batch]).mean(dim=1)
        penalty = settings.prior * moved.square().flatten(1).mean(dim=1)
        # Sums, since networks are independent: one whose loss is not finite must not stop the others.
        objective = torch.where(losses.isfinite(), losses, 0.0) + penalty
        (gradient,) = torch.autograd.grad(objective.sum(), [moved])
        moved.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == settings.steps:
            latents = (first + scale * moved).detach()
            judged, loss, score = judge(codec.decode(latents))
            best.update(latents, judged, loss, score)
            buffers = _statistics(judge, judged)
    return best.selected(selected)


def _statistics(judge: Judge, networks: StackedNetworks) -> dict[str, Tensor]:
    """Running statistics of conditioned networks, which decoded networks lack."""
    if judge.conditioning_images is None:
        return {}
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor for name, tensor in networks.tensors.items() if name.rpartition(".")[2] in names}


@torch.no_grad()
def refine_by_scores(
    codec: NetworkCodec,
    selected: SelectedNetworks,
    judge: Judge,
    *,
    scale: Tensor | float,
    settings: Refinement | None = None,
    method: ScoreSearchName = "cross_entropy",
) -> SelectedNetworks:
    """Search latents by the cross-entropy method or CMA-ES, which need the judge's scores only.

    Around the latents of each network, candidates are drawn from a Gaussian, which moves towards the best of them.
    Each network keeps the best of its candidates, and itself if none is better.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        selected: Networks to start from, with their latents as sources.
        judge: Scores networks on validation data, on which no network becomes worse.
        scale: Unit of the first spread: a number, or `[N, Z]`.
        settings: `steps` is the number of rounds; the defaults if `None`.
        method: `"cross_entropy"` or `"cma"`, see [`CrossEntropySearch`] and [`CovarianceSearch`].

    Returns:
        As many networks, best first on the judge's data.

    Raises:
        ImportError: If the package `cma` is needed and not installed.
    """
    settings = settings or Refinement()
    best = _Best(selected.sources, selected.networks, selected.validation_score, selected.validation_loss)
    sources = selected.sources
    spread = (START_SPREAD * scale * torch.ones_like(sources[0])).abs()
    generator = torch.Generator(sources.device).manual_seed(settings.seed)
    make = SCORE_SEARCHES[method]
    searches: list[ScoreSearch] = [make(start, spread, settings.num_candidates, generator) for start in sources]
    for _ in tracked(range(settings.steps), desc="refining", unit="round"):
        chosen: list[tuple[Tensor, StackedNetworks, Tensor, Tensor]] = []
        for search in searches:
            latents = search.ask()
            judged, loss, score = judge(codec.decode(latents))
            order = rank_networks(score, loss)
            search.tell(latents, order)
            first = order[:1]
            chosen.append((latents[first.to(latents.device)], judged.select(first), loss[first], score[first]))
        networks = {name: torch.cat([part[1].tensors[name] for part in chosen]) for name in best.networks.tensors}
        best.update(
            torch.cat([part[0] for part in chosen]),
            StackedNetworks(best.networks.config, networks),
            torch.cat([part[2] for part in chosen]),
            torch.cat([part[3] for part in chosen]),
        )
    return best.selected(selected)
