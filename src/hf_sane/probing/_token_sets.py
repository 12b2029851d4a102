"""Networks as sets of tokens with features, for probes that see every token instead of one pooled vector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_sane.core._layer_kinds import LAYER_KINDS
from hf_sane.core._layout import Layout
from hf_sane.probing._quantiles import quantiles

TOKEN_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MIN_LOG = -10.0  # of statistics on a logarithmic scale


@dataclass(frozen=True)
class TokenSets:
    """Networks as sets of tokens: what each token holds, and to which layer it belongs.

    There is no index of a token or channel: tokens that trade channels of a layer are the same set.

    Attributes:
        values: `[M, N, F]` float32; networks with fewer than `N` tokens are padded.
        places: `[M, N, 3]` int64: kind of the layer (its index in `LAYER_KINDS`), index of the layer, and place of the
            token within its channel.
        mask: `[M, N]` bool, `True` where there is a token.
    """

    values: Tensor
    places: Tensor
    mask: Tensor

    @classmethod
    def of_layout(cls, values: Tensor, layout: Layout) -> "TokenSets":
        """Networks of one layout, with features `[M, N, F]` of their tokens.

        Raises:
            ValueError: If the features do not fit the layout.
        """
        if values.ndim != 3 or values.shape[1] != layout.num_tokens:
            raise ValueError(
                f"expected features of tokens [M, {layout.num_tokens}, F] of this layout, got {list(values.shape)}"
            )
        count = len(values)
        places = token_places(layout).expand(count, -1, -1)
        return cls(values.float().cpu(), places, torch.ones(places.shape[:2], dtype=torch.bool))

    @classmethod
    def joined(cls, parts: Sequence["TokenSets"]) -> "TokenSets":
        """All networks of several sets, padded to the longest.

        Raises:
            ValueError: If there are none, or tokens have different numbers of features.
        """
        if len(sizes := {part.num_features for part in parts}) != 1:
            raise ValueError(f"expected networks whose tokens have equally many features, got {sorted(sizes)}")
        longest = max(part.mask.shape[1] for part in parts)
        missing = [longest - part.mask.shape[1] for part in parts]
        pairs = list(zip(parts, missing, strict=True))
        return cls(
            torch.cat([pad(part.values, (0, 0, 0, count)) for part, count in pairs]),
            torch.cat([pad(part.places, (0, 0, 0, count)) for part, count in pairs]),
            torch.cat([pad(part.mask, (0, count)) for part, count in pairs]),
        )

    @property
    def num_features(self) -> int:
        """Number of features per token, `F`."""
        return self.values.shape[2]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor | np.ndarray | slice) -> "TokenSets":
        rows = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return TokenSets(self.values[rows], self.places[rows], self.mask[rows])


def token_places(layout: Layout) -> Tensor:
    """Kind of layer, index of layer and place within the channel of every token, `[N, 3]` int64."""
    kinds = torch.tensor([LAYER_KINDS.index(layer.kind) for layer in layout.layers])
    owner = layout.positions[:, 1:]
    _, channel = torch.unique(owner, dim=0, return_inverse=True)
    order = channel.argsort(stable=True)
    counts = channel.bincount()
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.empty_like(channel)
    within[order] = torch.arange(len(channel)) - first
    return torch.stack([kinds[owner[:, 0]], owner[:, 0], within], dim=1)


def summarize_tokens(tokens: Tensor, layout: Layout) -> Tensor:
    """Statistics of the real weights of each token.

    Mean, standard deviation, the logarithms of the root mean square and of the geometric mean of the absolute values,
    seven quantiles (minimum and maximum included), and the last weight, which in the layout `rowwise` is the bias.

    Args:
        tokens: `[M, N, D]` float, raw or normalised.
        layout: Layout of the networks.

    Returns:
        `[M, N, 12]` float32.

    Raises:
        ValueError: If the tokens do not fit the layout.
    """
    if tokens.ndim != 3 or tokens.shape[1:] != layout.weight_mask.shape:
        raise ValueError(f"expected tokens [M, {layout.num_tokens}, {layout.token_dim}], got {list(tokens.shape)}")
    found = torch.empty(*tokens.shape[:2], len(TOKEN_LEVELS) + 5)
    patterns, members = torch.unique(layout.weight_mask, dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        weights = tokens[:, members == index][..., pattern].float()  # [M, n, w]
        found[:, members == index] = torch.cat([_statistics(weights), weights[..., -1:]], dim=2)
    return found


def describe_latents(latents: Tensor) -> Tensor:
    """Latents `[M, N, Z]`, followed by the statistics of each token's latents, `[M, N, Z + 11]`.

    Networks from independent seeds share no directions, so that a few epochs learn little from latents alone.
    """
    return torch.cat([latents.float(), _statistics(latents.float())], dim=2)


def _statistics(values: Tensor) -> Tensor:
    """Moments, logarithms and quantiles of `[M, N, w]` along the last axis."""
    moments = [values.mean(dim=2), values.std(dim=2, unbiased=False)]
    logs = [values.square().mean(dim=2).log() / 2, values.abs().log().clamp_min(MIN_LOG).mean(dim=2)]
    parts = [*moments, *(log.clamp_min(MIN_LOG) for log in logs)]
    return torch.cat([torch.stack(parts, dim=2), quantiles(values, TOKEN_LEVELS, dim=2)], dim=2)
