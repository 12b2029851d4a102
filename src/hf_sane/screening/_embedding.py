"""Embed a checkpoint from a sample of its tokens, and estimate the sampling error."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_sane.core._finite import MAX_TOKEN, too_large
from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import LayerSpec, find_token_layout
from hf_sane.core._types import StateDict
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.records._failures import describe_error
from hf_sane.screening._plan import MIN_BLOCKS
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._state_dicts import choose_tensors

MAX_TOKENS = 2**13  # tokens to encode, which takes some seconds


@dataclass(frozen=True)
class Encoder:
    """A SANE that is loaded when the first checkpoint fits its weight tokenizer.

    Attributes:
        name: The user's name for it.
        extractor: Its weight tokenizer.
        load: Function that loads the autoencoder.
    """

    name: str
    extractor: SANEFeatureExtractor
    load: Callable[[], WeightAutoencoder]


@dataclass(frozen=True, kw_only=True)
class SampledEmbedding:
    """The mean of a checkpoint's latents, estimated from some of its tokens.

    Attributes:
        sane: Name of the SANE.
        vector: Embedding `[Z]`, as from `SANE.embed`; empty if there is none.
        error: Standard error of sampling: the root of the expected squared distance from the embedding of all tokens.
            0 if all were encoded, NaN if a layer has too few tokens to estimate it.
        tokens_read: Number of encoded tokens.
        num_tokens: Number of tokens in the network.
        reason: Why there is no embedding.
    """

    sane: str
    vector: tuple[float, ...] = ()
    error: float = math.nan
    tokens_read: int = 0
    num_tokens: int = 0
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"vector": list(self.vector), "error": self.error if math.isfinite(self.error) else None}


@dataclass(frozen=True)
class _Piece:
    """Consecutive values of a tensor."""

    start: int
    values: Tensor

    @property
    def stop(self) -> int:
        """Index after the last value."""
        return self.start + len(self.values)


@dataclass
class TokenSample:
    """Collects values for tokens while a checkpoint is read, and embeds them.

    At most `MAX_TOKENS` tokens are kept, the same share of every tensor.

    Args:
        encoder: The SANE.
        outlines: All tensors on the meta device.
        num_read: Number of values of each tensor that will be read.
        seed: Random seed of the sample.
    """

    encoder: Encoder
    outlines: Mapping[str, Tensor]
    num_read: Mapping[str, int]
    seed: int = 0
    _reason: str = ""
    _pieces: dict[str, list[_Piece]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        extractor = self.encoder.extractor
        try:
            stored = choose_tensors(dict(zip(self.outlines, self.outlines, strict=True)), "the checkpoint")
            self._layout = extractor.lay_out({name: self.outlines[place] for name, place in stored.items()})
            self._affine = extractor.scales(self._layout)
        except (KeyError, TypeError, ValueError) as error:
            self._reason = describe_error(error)
            return
        rule, dim = find_token_layout(self._layout.token_layout), self._layout.token_dim
        # Any run of this many values of a weight contains a whole token.
        self._least = {
            layer.weight.name: 2 * min(dim, layer.weight.numel // rule.rows(layer)) for layer in self._layout.layers
        }
        used = {spec.name for layer in self._layout.layers for spec in layer.tensors}
        # Other tensors, such as packed integers, would fill the memory.
        self._names = {place: name for name, place in stored.items() if name in used}
        total = sum(self.num_read[stored[name]] for name in self._least)
        self._share = min(1.0, MAX_TOKENS * dim / total) if self._layout.num_tokens > MAX_TOKENS else 1.0
        self._generator = np.random.default_rng(self.seed)

    def add(self, stored_name: str, start: int, values: Tensor) -> None:
        """Add consecutive values of a tensor, starting at index `start`."""
        if self._reason or (name := self._names.get(stored_name)) is None:
            return
        pieces = self._pieces.setdefault(name, [])
        least, is_all = self._least.get(name), len(values) == self.outlines[stored_name].numel()
        # Biases belong to the tokens of weights, and tensors with few tokens are kept in full.
        if self._share == 1 or least is None or (is_all and len(values) < MIN_BLOCKS * least):
            if pieces and pieces[-1].stop == start:
                start, values = pieces[-1].start, torch.cat([pieces.pop().values, values])
            pieces.append(_Piece(start, values))
            return
        # A tensor that is read in one block is still cut into several pieces, since a single piece gives no error
        # estimate.
        for part in values.tensor_split(MIN_BLOCKS if is_all else 1):
            size = min(len(part), least + math.ceil(self._share * len(part)))
            first = int(self._generator.integers(len(part) - size + 1))
            pieces.append(_Piece(start + first, part[first : first + size].clone()))
            start += len(part)

    def embed(self) -> SampledEmbedding:
        """Return the embedding, or the reason why there is none."""
        if not self._reason:
            try:
                return self._embed()
            except ValueError as error:
                self._reason = describe_error(error)
        return SampledEmbedding(sane=self.encoder.name, reason=self._reason)

    @torch.no_grad()
    def _embed(self) -> SampledEmbedding:
        layout = self._layout
        rule = find_token_layout(layout.token_layout)
        tokens, places, pieces = [], [], []
        for index, (layer, part) in enumerate(zip(layout.layers, layout.token_slices, strict=True)):
            per_row = (part.stop - part.start) // rule.rows(layer)
            for number, piece in enumerate(self._pieces[layer.weight.name]):
                found, place = self._tokens(piece, layer, rule.rows(layer), self._affine[index])
                if not found.isfinite().all():
                    raise ValueError(f"NaN or infinite weights in {layer.name}")
                if len(found) and (size := found.abs().max().item()) > MAX_TOKEN:
                    raise ValueError(too_large(layer.name, size))
                third = place // per_row if rule.counts_rows else place
                tokens.append(found)
                places.append(torch.stack([part.start + place, torch.full_like(place, index), third], dim=1))
                pieces.append(torch.full_like(place, number))
        positions = torch.cat(places)
        latents = self._encode(torch.cat(tokens).float(), positions)
        vector, error = _estimate(
            latents.double().numpy(), positions[:, 1].numpy(), torch.cat(pieces).numpy(), _sizes(layout)
        )
        return SampledEmbedding(
            sane=self.encoder.name,
            vector=tuple(vector.tolist()),
            error=error,
            tokens_read=len(positions),
            num_tokens=layout.num_tokens,
        )

    def _encode(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Latents `[n, Z]`. Each window holds tokens of one layer, like most windows of a large network.

        Windows across layers made the error of small samples 1.4 times as large.
        """
        model = self.encoder.load()
        if model.config.num_latents is not None:
            raise ValueError(
                f"expected a SANE with one latent per token, got one with {model.config.num_latents} per network; "
                "embed the network as a whole (hf-sane embed)"
            )
        if len(tokens) == self._layout.num_tokens:
            return model.encode_sequences(tokens[None], positions)[0].cpu()
        _, sizes = positions[:, 1].unique_consecutive(return_counts=True)
        parts = zip(tokens.split(sizes.tolist()), positions.split(sizes.tolist()), strict=True)
        return torch.cat([model.encode_sequences(part[None], where)[0].cpu() for part, where in parts])

    def _tokens(
        self, piece: _Piece, layer: LayerSpec, rows: int, affine: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Tokens `[n, D]` that a piece fully contains, and their indices `[n]` in the layer."""
        dim, width, (scale, shift) = self._layout.token_dim, layer.weight.numel // rows, affine
        bias = self._bias(layer)
        bias = bias.view(rows, len(bias) // rows) * scale + shift
        per_row = math.ceil((width + bias.shape[1]) / dim)
        values = piece.values.to(torch.float64 if piece.values.dtype == torch.float64 else torch.float32)
        values = values * scale + shift
        tokens, places, done = [torch.empty(0, dim)], [torch.empty(0, dtype=torch.int64)], 0
        while done < len(values):
            row, column = divmod(piece.start + done, width)
            whole = (len(values) - done) // width if column == 0 else 0  # rows
            size = whole * width or min(width - column, len(values) - done)
            count, skipped = max(1, whole), -column % dim
            part = values[done : done + size].view(count, -1)[:, skipped:]
            done += size
            if skipped <= size and (whole or column + size == width):  # up to the end of the row
                part = torch.cat([part, bias[row : row + count].to(part)], dim=1)
                part = torch.nn.functional.pad(part, (0, -part.shape[1] % dim))
            part = part[:, : part.shape[1] // dim * dim].reshape(-1, dim)
            first = row * per_row + (column + skipped) // dim
            tokens.append(part)
            places.append(torch.arange(first, first + len(part)))
        return torch.cat(tokens), torch.cat(places)

    def _bias(self, layer: LayerSpec) -> Tensor:
        """The bias of a layer, with its mean in place of values that were not read."""
        if layer.bias is None:
            return torch.empty(0)
        pieces = self._pieces[layer.bias.name]
        filled = torch.cat([piece.values for piece in pieces]).float().mean().repeat(layer.bias.numel)
        for piece in pieces:
            filled[piece.start : piece.stop] = piece.values.float()
        return filled


def _sizes(layout: Layout) -> NDArray[np.int64]:
    return np.array([part.stop - part.start for part in layout.token_slices])


def _estimate(
    latents: NDArray[np.float64], layers: NDArray[np.int64], pieces: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Estimate the mean over all tokens from those that were read, and its standard error.

    Layers are strata of known sizes `N_l`: `sum_l N_l / N mean_l`. Pieces, not tokens, were sampled, so the error of
    each mean is estimated by leaving out one piece at a time, as for standard deviations.
    """
    vector, variance = np.zeros(latents.shape[1]), 0.0
    for layer, size in enumerate(sizes):
        mine = layers == layer
        if not mine.any():
            raise ValueError("too few values were read for a token of every layer; use a larger --budget")
        share, own = size / sizes.sum(), pieces[mine]
        counts = np.bincount(own)
        sums = np.stack([np.bincount(own, column) for column in latents[mine].T], axis=1)[counts > 0]
        counts = counts[counts > 0]
        vector += share * sums.sum(0) / counts.sum()
        left_out = 1 - counts.sum() / size
        if left_out <= 0:
            continue
        if len(counts) < 2:
            variance = math.nan
            continue
        without = (sums.sum(0) - sums) / (counts.sum() - counts)[:, None]
        spread = np.square(without - without.mean(0)).sum()
        variance += share**2 * left_out * (len(counts) - 1) / len(counts) * spread
    return vector, math.sqrt(variance)


def embed_tensors(encoder: Encoder, tensors: StateDict, *, seed: int = 0) -> SampledEmbedding:
    """Embed a checkpoint that is in memory."""
    outlines = {name: tensor.to("meta") for name, tensor in tensors.items()}
    sample = TokenSample(encoder, outlines, {name: tensor.numel() for name, tensor in tensors.items()}, seed)
    for name, tensor in tensors.items():
        sample.add(name, 0, tensor.detach().flatten())
    return sample.embed()
