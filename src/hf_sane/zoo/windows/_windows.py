"""Training windows of networks: the scalars of each view, with normalisation and augmentation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from hf_sane.core._augmentation import erase_tokens, multiplicative_noise, random_token_mask
from hf_sane.records._errors import did_you_mean
from hf_sane.records._settings import SeedSettings, setting
from hf_sane.symmetry._token_permutations import TokenPermutations
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.zoo._dataset import ZooSplit
from hf_sane.zoo._stream import ZooStream
from hf_sane.zoo._symmetries import network_spec

View = Literal["original", "aligned", "permuted"]
VIEWS = get_args(View)
SecondNetwork = Literal["same", "same_run"]
Gather = Callable[[Tensor], Tensor]
POOL_STREAM, ORDER_STREAM, SIBLING_STREAM = range(2**32, 2**32 + 3)  # larger than any step; seeds what is drawn once
NEEDS_ALIGNMENT = (
    "the view 'aligned' requires an aligned zoo, got one that is not: align it (hf-sane zoo align, or "
    "hf_sane.align_zoo(zoo) in Python), or train on other views (--views original)"
)


@dataclass(kw_only=True)
class WindowSettings(SeedSettings):
    """Settings for drawing and augmenting training windows.

    The defaults follow SANE (arXiv:2406.09997): one aligned view, one randomly permuted view, and multiplicative noise
    on both.

    Raises:
        ValueError: If a value is out of range.
    """

    batch_size: int = setting("Number of windows per process and forward pass.", default=32)
    views: list[str] = setting(
        "Views of each window: one or two of original, aligned, permuted. With one view, only reconstruction is "
        "trained.",
        factory=lambda: ["aligned", "permuted"],
    )
    second_network: SecondNetwork = setting(
        "Network of the second view: the same network (same), or another checkpoint of its training run (same_run).",
        default="same",
    )
    noise: float = setting("Standard deviation of the multiplicative noise N(1, noise) on every weight.", default=0.1)
    num_permutations: int = setting(
        "Number of random permutations per architecture that the permuted view draws from.", default=200
    )
    erase: float = setting("Share of the tokens of each view that are set to zero, in [0, 1).", default=0.0)

    def __post_init__(self) -> None:
        self.validate_windows()

    @property
    def permutes(self) -> bool:
        """Whether a view requires the symmetries."""
        return bool(set(self.views) & {"aligned", "permuted"})

    def validate_windows(self) -> None:
        """Check counts, shares and views."""
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
    """A generator seeded by all of the numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class WindowSource:
    """Layout, normalisation and permutations shared by all windows of one architecture of a zoo.

    Args:
        zoo: Zoo with facts and, for the aligned view, an alignment.
        architecture: Value of the column.
        layout: Value of the column.
        extractor: Fitted weight tokenizer.
        window_size: Tokens per window.
        settings: Settings of the windows.

    Raises:
        ValueError: If the window is empty, the aligned view is requested without alignment, the extractor makes
            different tokens, or a view permutes networks with unknown symmetries.
    """

    def __init__(
        self,
        zoo: ZooSplit | ZooStream,
        architecture: str,
        layout: str,
        extractor: SANEFeatureExtractor,
        window_size: int,
        settings: WindowSettings,
    ) -> None:
        self.layout = zoo.facts.parsed_layouts[layout]
        self.length = min(window_size, self.layout.num_tokens)
        mine = (extractor.token_dim, extractor.token_layout, extractor.batch_norm)
        if mine != (self.layout.token_dim, self.layout.token_layout, self.layout.batch_norm):
            raise ValueError(
                f"the extractor makes (token_dim, token_layout, batch_norm) = {mine}, the zoo was built with "
                f"{(self.layout.token_dim, self.layout.token_layout, self.layout.batch_norm)}; build the extractor "
                "with the zoo's"
            )
        self._alignment = zoo.alignment if "aligned" in settings.views else None
        self._key = "" if self._alignment is None else self._alignment.key(architecture, layout)
        self._permutations: dict[View, TokenPermutations] = {}
        if settings.permutes:
            spec = network_spec(zoo.facts, architecture, layout, alignment=zoo.alignment)
            if "permuted" in settings.views:
                pool = spec.random(settings.num_permutations, generator=seeded(settings.seed, POOL_STREAM))
                self._permutations["permuted"] = TokenPermutations(spec, self.layout, pool)
            if self._alignment is not None and (known := self._alignment.permutations.get(self._key)) is not None:
                self._permutations["aligned"] = TokenPermutations(spec, self.layout, known)
        if "aligned" in settings.views and "aligned" not in self._permutations:
            raise ValueError(NEEDS_ALIGNMENT)
        scales = torch.tensor(extractor.scales(self.layout), dtype=torch.float64)
        self._scales = scales[self.layout.layer_index].float()  # [N, 2]

    def runs(self, run_ids: Sequence[str] | np.ndarray) -> Tensor:
        """Alignment indices of networks of these runs, `[k]` int64; zeros without the aligned view.

        Raises:
            KeyError: If the zoo was aligned without one of the runs.
        """
        if self._alignment is None:
            return torch.zeros(len(run_ids), dtype=torch.int64)
        return self._alignment.index(self._key, run_ids)

    def window(self, starts: Tensor) -> Tensor:
        """Token indices of each window, `[k, L]` int64, from starts `[k]`."""
        return starts.unsqueeze(1) + torch.arange(self.length)

    def index(self, view: View, starts: Tensor, chosen: Tensor) -> Tensor:
        """Indices of each window's scalars in the flattened tokens of its network.

        Args:
            view: Name of the view.
            starts: `[k]` int64 first tokens.
            chosen: `[k]` int64, the permutation of each window.

        Returns:
            `[k, L * D]` int64.
        """
        if view == "original":
            length = self.length * self.layout.token_dim
            return starts.unsqueeze(1) * self.layout.token_dim + torch.arange(length)
        return self._permutations[view].index(chosen, starts, self.length).flatten(1)

    def normalize(self, raw: Tensor, window: Tensor) -> Tensor:
        """Normalise raw tokens `[k, L, D]` at indices `[k, L]`: `(t - mu) / sigma` for weights, zero for padding."""
        scales, mask = self._scales[window], self.layout.weight_mask[window]
        return torch.addcmul(scales[..., 1:] * mask, raw, scales[..., :1] * mask)


@dataclass(frozen=True, slots=True)
class Members:
    """The networks of a batch that share a [`WindowSource`].

    Attributes:
        source: Their common source.
        places: `[k]` int64, their places in the batch.
        runs: `[k]` int64, the alignment of each; arbitrary without the aligned view.
        gather: Function from indices `[k, L * D]` into flattened tokens to scalars `[k, L * D]`.
        second_gather: The same for the networks of the second view, if these differ; alignments are those of `runs`.
    """

    source: WindowSource
    places: Tensor
    runs: Tensor
    gather: Gather
    second_gather: Gather | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """The networks of a batch.

    Attributes:
        members: Networks by source, whose places together are `0..B-1`.
        width: Tokens per row, `W`; shorter windows are padded.
        indices: `[B]` int64 positions in the concatenated splits, if there are splits.
    """

    members: Sequence[Members]
    width: int
    indices: Tensor | None = None


def assemble(taken: Taken, settings: WindowSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Assemble a batch of windows for `SANEModel.forward`.

    Random numbers are drawn for the whole batch at once, so a window does not depend on how its neighbours are
    grouped.

    Args:
        taken: The networks.
        settings: Settings of the windows.
        generator: Source of all randomness.
    """
    batch_size = sum(len(part.places) for part in taken.members)
    token_dim = taken.members[0].source.layout.token_dim
    shape = (batch_size, taken.width)
    places = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    drawn = torch.randint(settings.num_permutations, (len(settings.views), batch_size), generator=generator)
    clean = torch.zeros(len(settings.views), *shape, token_dim)
    batch = {
        "positions": torch.zeros(*shape, 3, dtype=torch.int64),
        "weight_mask": torch.zeros(*shape, token_dim, dtype=torch.bool),
        "attention_mask": torch.zeros(shape, dtype=torch.bool),
    }
    for part in taken.members:
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
