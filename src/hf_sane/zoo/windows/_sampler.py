"""Cutting training windows out of networks: which scalars each view takes, how they are normalised and disturbed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._augmentation import erase_tokens, multiplicative_noise, random_token_mask
from hf_sane.core._layout import Layout
from hf_sane.records._errors import did_you_mean
from hf_sane.records._settings import setting
from hf_sane.symmetry._permutation import Permutation, PermutationSpec
from hf_sane.symmetry._token_permutations import TokenPermutations
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._alignment_record import Alignment
from hf_sane.zoo._facts import ZooFacts
from hf_sane.zoo._symmetries import network_spec

View = Literal["original", "aligned", "permuted"]
VIEWS = get_args(View)
SecondNetwork = Literal["same", "same_run"]
Gather = Callable[[Tensor], Tensor]
POOL_STREAM, ORDER_STREAM, SIBLING_STREAM = (
    2**32,
    2**32 + 1,
    2**32 + 2,
)  # beyond every step: seeds of what is drawn once


@dataclass(kw_only=True)
class WindowSettings:
    """How training windows are drawn from networks, and augmented.

    As in SANE (arXiv:2406.09997): one view aligned, one permuted at random, multiplicative noise on both.

    Raises:
        ValueError: For a value out of range.
    """

    batch_size: int = setting("Number of windows per process and forward pass.", default=32)
    views: list[str] = setting(
        "Views of each window: one or two of original, aligned, permuted. With one, only reconstruction is trained.",
        factory=lambda: ["aligned", "permuted"],
    )
    second_network: SecondNetwork = setting(
        "What the second view shows: the same network, or another checkpoint of its training run.", default="same"
    )
    noise: float = setting("Standard deviation of the factor N(1, noise) on every weight of both views.", default=0.1)
    num_permutations: int = setting(
        "Number of random permutations per architecture that the permuted view draws from.", default=200
    )
    erase: float = setting("Share of the tokens of each view that are set to zero, in [0, 1).", default=0.0)
    seed: int = setting("Random seed of everything that is drawn.", default=0)

    def __post_init__(self) -> None:
        self.validate_windows()

    @property
    def permutes(self) -> bool:
        """Whether a view needs to know the symmetries."""
        return bool(set(self.views) & {"aligned", "permuted"})

    def validate_windows(self) -> None:
        """Counts, shares and views have a meaning."""
        for name in ("batch_size", "num_permutations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("noise", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.noise == math.inf:
            raise ValueError("noise must be finite, got inf")
        if not 0 <= self.erase < 1:
            raise ValueError(f"erase must lie in [0, 1), got {self.erase}")
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or len(self.views) not in (1, 2):
            meant = did_you_mean(unknown[0], VIEWS) if unknown else ""
            names = ", ".join(map(repr, VIEWS))
            raise ValueError(f"expected views to be one or two of {names}, got {list(self.views)}{meant}")
        if self.second_network not in get_args(SecondNetwork):
            raise ValueError(f"expected second_network 'same' or 'same_run', got {self.second_network!r}")
        if self.second_network != "same" and len(self.views) != 2:
            raise ValueError(f"second_network={self.second_network!r} needs two views, got views={list(self.views)}")


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on all of the numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class WindowSource:
    """What windows of one architecture have in common: layout, normalisation, permutations.

    Args:
        spec: Symmetries of the networks; needed for the permuted and the aligned view.
        layout: Of their tokens.
        extractor: Fitted weight tokenizer.
        window_size: Tokens per window.
        settings: Of the windows.
        alignment: `[R, n]` permutation per axis and run; needed for the aligned view.

    Raises:
        ValueError: If the window is empty, the aligned view is asked for without alignment, or the extractor makes
            other tokens.
    """

    def __init__(
        self,
        spec: PermutationSpec | None,
        layout: Layout,
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings,
        alignment: Permutation | None,
    ) -> None:
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}")
        mine = (extractor.token_dim, extractor.token_layout, extractor.batch_norm)
        if mine != (layout.token_dim, layout.token_layout, layout.batch_norm):
            raise ValueError(
                f"the extractor makes (token_dim, token_layout, batch_norm) = {mine}, the zoo was built with "
                f"{(layout.token_dim, layout.token_layout, layout.batch_norm)}; build the extractor with the zoo's"
            )
        if "aligned" in settings.views and alignment is None:
            raise ValueError(
                "the view 'aligned' needs an aligned zoo: call align_zoo(zoo), or use the view 'original'"
            )
        self.layout = layout
        self.length = min(window_size, layout.num_tokens)
        self._permutations: dict[View, TokenPermutations] = {}
        if spec is not None and "permuted" in settings.views:
            pool = spec.random(settings.num_permutations, generator=seeded(settings.seed, POOL_STREAM))
            self._permutations["permuted"] = TokenPermutations(spec, layout, pool)
        if spec is not None and "aligned" in settings.views and alignment is not None:
            self._permutations["aligned"] = TokenPermutations(spec, layout, alignment)
        self._scales = torch.tensor(extractor.scales(layout), dtype=torch.float64)[
            layout.layer_index
        ].float()  # [N, 2]

    @classmethod
    def of(
        cls,
        facts: ZooFacts,
        architecture: str,
        layout_key: str,
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings,
        alignment: Alignment | None,
    ) -> Self:
        """What windows of one architecture of a zoo have in common; errors as of the class."""
        permutation, spec = None, None
        if alignment is not None and "aligned" in settings.views:
            permutation = alignment.permutations.get(alignment.key(architecture, layout_key))
        if settings.permutes:
            spec = network_spec(facts, architecture, layout_key, alignment=alignment)
        return cls(spec, facts.parsed_layouts[layout_key], extractor, window_size, settings, permutation)

    def window(self, starts: Tensor) -> Tensor:
        """Tokens of each window: `[k]` starts to `[k, L]` int64."""
        return starts.unsqueeze(1) + torch.arange(self.length)

    def index(self, view: View, starts: Tensor, chosen: Tensor) -> Tensor:
        """Scalars of each window in the flattened tokens of its network.

        Args:
            view: Which view.
            starts: `[k]` int64 first tokens.
            chosen: `[k]` int64: the permutation of each window.

        Returns:
            `[k, L * D]` int64.
        """
        if view == "original":
            length = self.length * self.layout.token_dim
            return starts.unsqueeze(1) * self.layout.token_dim + torch.arange(length)
        return self._permutations[view].index(chosen, starts, self.length).flatten(1)

    def normalize(self, raw: Tensor, window: Tensor) -> Tensor:
        """`(t - mu) / sigma` at real weights, zero at padding: raw `[k, L, D]` of the tokens `window` `[k, L]`."""
        scales, mask = self._scales[window], self.layout.weight_mask[window]
        return torch.addcmul(scales[..., 1:] * mask, raw, scales[..., :1] * mask)


@dataclass(frozen=True, slots=True)
class Members:
    """The networks of a batch that share a source.

    Attributes:
        source: What they share.
        places: `[k]` int64: their places in the batch.
        runs: `[k]` int64: the alignment of each; anything without the aligned view.
        gather: From an index `[k, L * D]` into flattened tokens to the scalars, `[k, L * D]`.
        second_gather: The same for the networks of the second view, if they are others; alignments are those of
            `runs`.
    """

    source: WindowSource
    places: Tensor
    runs: Tensor
    gather: Gather
    second_gather: Gather | None = None


def assemble(
    members: Sequence[Members], settings: WindowSettings, width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Make a batch of windows, ready for `SANEModel.forward`.

    Random numbers are drawn for the whole batch at once, so a window does not depend on how its neighbours are
    grouped.

    Args:
        members: Networks by source; together their places are `0..B-1`.
        settings: Of the windows.
        width: Tokens per row, `W`; shorter windows are padded.
        generator: Source of all randomness.
    """
    batch_size = sum(len(part.places) for part in members)
    token_dim = members[0].source.layout.token_dim
    shape = (batch_size, width)
    places = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    drawn = torch.randint(settings.num_permutations, (len(settings.views), batch_size), generator=generator)
    clean = torch.zeros(len(settings.views), *shape, token_dim)
    batch = {
        "positions": torch.zeros(*shape, 3, dtype=torch.int64),
        "weight_mask": torch.zeros(*shape, token_dim, dtype=torch.bool),
        "attention_mask": torch.zeros(shape, dtype=torch.bool),
    }
    for part in members:
        source, at, length = part.source, part.places, part.source.length
        starts = (places[at] * (source.layout.num_tokens - length + 1)).long()
        window = source.window(starts)
        batch["positions"][at, :length] = source.layout.positions[window]
        batch["weight_mask"][at, :length] = source.layout.weight_mask[window]
        batch["attention_mask"][at, :length] = True
        for number, view in enumerate(settings.views):
            chosen = part.runs if view == "aligned" else drawn[number][at]
            gather = part.gather if number == 0 or part.second_gather is None else part.second_gather
            raw = gather(source.index(cast(View, view), starts, chosen)).view(len(at), length, token_dim)
            clean[number, at, :length] = source.normalize(raw, window)
    for prefix, view_tokens in zip(("", "second_"), clean, strict=False):
        noisy = view_tokens
        if settings.noise > 0:
            noisy = multiplicative_noise(noisy, batch["weight_mask"], std=settings.noise, generator=generator)
        if settings.erase > 0:
            noisy = erase_tokens(noisy, random_token_mask(shape, probability=settings.erase, generator=generator))
        batch[f"{prefix}tokens"], batch[f"{prefix}target_tokens"] = noisy, view_tokens
    return batch


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, total: int) -> Tensor:
    """All networks in the random order of one epoch: int64 `[total]`. Cached: read-only."""
    return torch.randperm(total, generator=seeded(seed, ORDER_STREAM, epoch))
