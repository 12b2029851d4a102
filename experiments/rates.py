"""Rate against function: what networks still do after a code of few latents and few bits."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.models.configuration_linear import LinearCodeConfig
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._generation import NetworkCodec

RANGES = (1.0, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)  # standard deviations to either side that a quantiser may cover
LOWEST, HIGHEST = 0.25, 8.0  # bits per weight that areas are taken over


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Uniform quantisation of latents: `2^bits` levels around the mean of each latent of training networks.

    What lies outside the levels becomes the outermost one. Latents that do not vary keep their mean, and need no bits.

    Attributes:
        mean: `[N, Z]`.
        step: `[N, Z]`, distance of levels; zero where nothing varies.
        bits: Bits per latent.
    """

    mean: Tensor
    step: Tensor
    bits: int

    @classmethod
    def fit(cls, latents: Tensor, groups: Tensor, bits: int) -> Self:
        """Fit to latents of training networks, with the one of `RANGES` that has the smallest squared error.

        Args:
            latents: `[M, N, Z]`.
            groups: `[N]` int64: tokens that share mean and range, dimension by dimension.
            bits: Bits per latent, at least 1.
        """
        if bits < 1:
            raise ValueError(f"expected at least 1 bit per latent, got {bits}")
        mean, std = torch.zeros_like(latents[0]), torch.zeros_like(latents[0])
        for group in groups.unique():
            members = latents[:, groups == group].flatten(0, 1)
            mean[groups == group] = members.mean(dim=0)
            std[groups == group] = members.std(dim=0, correction=0)
        std = torch.where(std > 1e-6, std, 0.0)  # rounding is no variation
        fitted = [cls(mean, 2 * reach * std / 2**bits, bits) for reach in RANGES]
        return min(fitted, key=lambda quantizer: (quantizer(latents) - latents).square().sum().item())

    def __call__(self, latents: Tensor) -> Tensor:
        """Quantise latents `[M, N, Z]`, and give the values of the levels."""
        half = 2 ** (self.bits - 1)
        level = ((latents - self.mean) / torch.where(self.step > 0, self.step, 1.0)).floor().clamp(-half, half - 1)
        return self.mean + (level + 0.5) * self.step

    @property
    def num_latents(self) -> int:
        """Latents of a network that vary, and have to be stored."""
        return int((self.step > 0).sum())


@dataclass(frozen=True)
class RatePoint:
    """Networks after a code, beside what they were.

    Attributes:
        latents_per_weight: Stored numbers per weight.
        bits_per_latent: Bits of each number.
        accuracy: Accuracy of each decoded network.
        agreement: Share of images on which a decoded network predicts what the original does.
    """

    latents_per_weight: float
    bits_per_latent: int
    accuracy: tuple[float, ...]
    agreement: tuple[float, ...]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, without those that all networks share."""
        return self.latents_per_weight * self.bits_per_latent

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"bits_per_weight": self.bits_per_weight, **asdict(self)}


def measure_rates(
    codec: NetworkCodec,
    training_tokens: Tensor,
    tokens: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    bits: Iterable[int],
) -> list[RatePoint]:
    """Encode networks, quantise their latents, decode them and compare what they predict.

    Args:
        codec: The code, layout and architecture.
        training_tokens: `[T, N, D]` raw tokens of training networks, which quantisers are fitted to.
        tokens: `[M, N, D]` raw tokens of other networks.
        images: `[n, C, H, W]`.
        labels: `[n]`.
        bits: Bits per latent, one point for each.
    """
    return rate_points(
        codec.encode(training_tokens),
        codec.encode(tokens),
        latent_groups(codec.layout),
        lambda latents: _predictions(codec.decode(latents), images),
        labels=labels,
        original=_predictions(codec.networks(tokens), images),
        num_weights=codec.layout.num_weights,
        bits=bits,
    )


def rate_points(
    training_latents: Tensor,
    latents: Tensor,
    groups: Tensor,
    predict: Callable[[Tensor], Tensor],
    *,
    labels: Tensor,
    original: Tensor,
    num_weights: int,
    bits: Iterable[int],
) -> list[RatePoint]:
    """Quantise latents of any code, and compare what the decoded networks predict; see [`measure_rates`].

    Args:
        training_latents: `[T, N, Z]`, which quantisers are fitted to.
        latents: `[M, N, Z]` of other networks.
        groups: `[N]` int64: tokens that share mean and range, for instance from [`latent_groups`].
        predict: Function that decodes latents `[M, N, Z]` and returns the predicted classes `[M, n]`.
        labels: `[n]`, or `[M, n]` if each network has its own images.
        original: `[M, n]` classes that the original networks predict.
        num_weights: Number of weights of a network.
        bits: Bits per latent, one point for each.
    """
    points = []
    for number in bits:
        quantizer = Quantizer.fit(training_latents, groups, number)
        predicted = predict(quantizer(latents))
        accuracy, kept = ((predicted == known).float().mean(dim=1) for known in (labels, original))
        rate = quantizer.num_latents / num_weights
        points.append(RatePoint(rate, number, tuple(accuracy.tolist()), tuple(kept.tolist())))
    return points


def one_network(
    codec: NetworkCodec,
    training_tokens: Tensor,
    tokens: Tensor,
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> RatePoint:
    """One training network, the best on validation images, in place of every network: a code of no bits.

    A decoder that ignores its latents and always returns a good network is no better than this.

    Args:
        codec: Layout and architecture.
        training_tokens: `[T, N, D]` raw tokens of training networks.
        tokens: `[M, N, D]` raw tokens of other networks.
        validation: Images and labels that select the network.
        test: Images and labels that it is compared on.
    """
    accuracy = codec.networks(training_tokens).evaluate(*validation)[1]
    chosen = _predictions(codec.networks(training_tokens[[int(accuracy.argmax())]]), test[0])
    kept = (chosen == _predictions(codec.networks(tokens), test[0])).float().mean(dim=1)
    right = (chosen == test[1]).float().mean().item()
    return RatePoint(0.0, 0, (right,) * len(tokens), tuple(kept.tolist()))


def latent_groups(layout: Layout) -> Tensor:
    """Tokens of one layer whose weights are at the same places, `[N]`."""
    places = torch.cat([layout.layer_index[:, None], layout.weight_mask.long()], dim=1)
    return places.unique(dim=0, return_inverse=True)[1]


def rounded_weights(codec: NetworkCodec) -> NetworkCodec:
    """The code that rounding of weights is: latents are the normalised weights themselves."""
    size = codec.layout.token_dim
    identity = LinearCode(LinearCodeConfig(token_dim=size, latent_dim=size, grouping="all")).eval()
    return NetworkCodec(identity, codec.extractor, codec.layout, codec.config)


def area_under(points: Iterable[tuple[float, float]], *, floor: float) -> float:
    """Mean over `log2(bits per weight)`, from 1/4 to 8, of the best value that so many bits buy.

    Args:
        points: Bits per weight and value, such as accuracy kept.
        floor: Value where no point is cheap enough.
    """
    best, total, place = floor, 0.0, math.log2(LOWEST)
    for bits, value in sorted(points):
        here = min(max(math.log2(bits), math.log2(LOWEST)), math.log2(HIGHEST))
        total += (here - place) * best
        place = here
        if bits <= HIGHEST:
            best = max(best, value)
    return (total + (math.log2(HIGHEST) - place) * best) / math.log2(HIGHEST / LOWEST)


def accuracy_kept(point: RatePoint | dict[str, Any], original: Sequence[float]) -> float:
    """Mean accuracy of decoded networks as a share of that of the originals."""
    accuracy = point["accuracy"] if isinstance(point, dict) else point.accuracy
    return sum(accuracy) / sum(original)


@torch.no_grad()
def _predictions(networks: StackedNetworks, images: Tensor) -> Tensor:
    """`[M, n]` predicted classes."""
    return torch.cat([networks.logits(part).argmax(dim=-1) for part in images.split(256)], dim=1)
