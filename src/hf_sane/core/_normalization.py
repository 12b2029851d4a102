"""Normalise weights per layer, with statistics that are fitted on training networks and inverted when decoding."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_sane.core._layer_kinds import statistics_kind
from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import LayerSpec

FitMethod = Literal["standardize", "robust"]


def layer_key(layer: LayerSpec) -> str:
    """Name and row length, which layers of related architectures share (ResNet-20 and -32, other class counts)."""
    return f"{layer.name}:{layer.row_length}"


def layer_keys(layer: LayerSpec) -> tuple[str, str, str]:
    """Keys to look up a layer's statistics: its own, that of its kind (`"*:conv"`), and the global one (`"*"`)."""
    return layer_key(layer), f"*:{statistics_kind(layer.weight.name, layer.weight.shape)}", "*"


@dataclass(frozen=True)
class LayerStatistics:
    """Mean and standard deviation of the weights of each layer.

    Attributes:
        means: Mean by key ([`layer_keys`]).
        stds: Standard deviation > 0, by key.

    Raises:
        ValueError: If their keys differ, or values are not finite.
    """

    means: Mapping[str, float]
    stds: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.means.keys() != self.stds.keys():
            differing = sorted(self.means.keys() ^ self.stds.keys())
            raise ValueError(
                f"expected mean and standard deviation of every layer, but one is missing for {differing[:5]}"
            )
        for key, mean in self.means.items():
            values = (mean, self.stds[key])
            if any(type(value) not in (int, float) or not math.isfinite(value) for value in values) or values[1] <= 0:
                raise ValueError(
                    f"expected a finite mean and a finite standard deviation above 0 for {key!r}, got {mean!r} and "
                    f"{values[1]!r}; leave out networks with weights that are not finite, and fit again"
                )

    @classmethod
    def fit(
        cls, batches: Iterable[tuple[Layout, Tensor]], method: FitMethod = "standardize", *, by_kind: bool = False
    ) -> "LayerStatistics":
        """Fit on training networks.

        With `standardize`, `mu = mean_m mean(w_m)` and `sigma = sqrt(mean_m var(w_m))` over models `m`, common to
        weights and bias of a layer and without padding (as in the released code of SANE, which also ignores the spread
        of means between models). With `robust`, medians over models replace means, so that a few diverged networks
        cannot determine the scale.

        Args:
            batches: Pairs of a layout and raw tokens `[M, N, D]` (or `[N, D]`).
            method: `"standardize"` or `"robust"`.
            by_kind: Whether to fit one mean and standard deviation per kind of layer and one for all layers, too, over
                all networks with equal weights. They apply to layers whose own key was not fitted.

        Raises:
            ValueError: If there are no networks, or the method is unknown.
        """
        if method not in ("standardize", "robust"):
            raise ValueError(f"expected method 'standardize' or 'robust', got {method!r}")
        means: dict[str, list[Tensor]] = {}
        variances: dict[str, list[Tensor]] = {}
        for layout, tokens in batches:
            batch = tokens if tokens.ndim == 3 else tokens[None]
            for layer, part in zip(layout.layers, layout.token_slices, strict=True):
                weights = batch[:, part][:, layout.weight_mask[part]].double()
                mean = weights.mean(dim=1)
                variance = (weights - mean.unsqueeze(1)).square().mean(dim=1)
                for key in layer_keys(layer)[: None if by_kind else 1]:
                    means.setdefault(key, []).append(mean)
                    variances.setdefault(key, []).append(variance)
        if not means or not all(sum(map(len, found)) for found in means.values()):
            raise ValueError("expected at least one network to fit on, got none; pass the training split of a zoo")
        centre = torch.median if method == "robust" else torch.mean
        mu = {key: centre(torch.cat(found)).item() for key, found in means.items()}
        sigma = {key: centre(torch.cat(found)).sqrt().item() for key, found in variances.items()}
        return cls(mu, {key: value if value > 0 else 1.0 for key, value in sigma.items()})

    def per_layer(self, layout: Layout) -> list[tuple[float, float]]:
        """Mean and standard deviation of each layer of `layout`.

        Raises:
            KeyError: If a layer was not fitted.
        """
        found = [next((key for key in layer_keys(layer) if key in self.means), None) for layer in layout.layers]
        if unknown := [layer_key(layer) for layer, key in zip(layout.layers, found, strict=True) if key is None]:
            raise KeyError(
                "the extractor was fitted on another layout: no statistics for "
                f"{unknown[:5]}{' and more' if len(unknown) > 5 else ''} (name:row length), but for layers such as "
                f"{list(self.means)[:5]}; for a trained SANE, add those of a few networks of this "
                "architecture (SANEFeatureExtractor.extended(), hf-sane sample --prompt-statistics); for a new one, "
                "use normalization='none', fit on networks of this architecture, or also fit by kind of layer"
            )
        return [(self.means[key], self.stds[key]) for key in found if key is not None]

    def scales(self, layout: Layout) -> list[tuple[float, float]]:
        """Scale and shift that normalise each layer, `(1 / sigma, -mu / sigma)`."""
        return [(1 / std, -mean / std) for mean, std in self.per_layer(layout)]

    def inverse_scales(self, layout: Layout) -> list[tuple[float, float]]:
        """Scale and shift that invert the normalisation of each layer, `(sigma, mu)`."""
        return [(std, mean) for mean, std in self.per_layer(layout)]

    def apply(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Compute `(t - mu) / sigma` at real weights, zero at padding, of `[*batch, N, D]`; differentiable."""
        return _affine(tokens, layout, self.scales(layout))

    def invert(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Compute `t * sigma + mu` at real weights, zero at padding, of `[*batch, N, D]`; differentiable."""
        return _affine(tokens, layout, self.inverse_scales(layout))


def _affine(tokens: Tensor, layout: Layout, scales: list[tuple[float, float]]) -> Tensor:
    per_token = torch.tensor(scales, dtype=torch.float64)[layout.layer_index].to(tokens)  # [N, 2]
    mask = layout.weight_mask.to(tokens.device)
    return torch.addcmul(per_token[:, 1:] * mask, tokens, per_token[:, :1] * mask)
