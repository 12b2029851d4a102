"""Tokenize networks that do not fit into memory, one block of rows at a time, with the same result as `encode`."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.core._token_layouts import LayerSpec, TensorSpec, find_token_layout
from hf_sane.tokenization._checkpoints import (
    CheckpointSource,
    Source,
    as_checkpoint,
    is_lazy,
    weights_path,
)
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_outlines
from hf_sane.tokenization._lazy_checkpoints import LazyCheckpoint
from hf_sane.tokenization._reading import Checkpoint, read_network

MAX_SCALARS = 2**22  # weights to read at a time: 16 MiB of float32
MAX_MEMORY_BYTES = 2**28  # largest weights that are tokenized all at once


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Consecutive tokens of one layer.

    Attributes:
        tokens: `[n, D]` normalised, float32 (float64 for float64 layers).
        positions: `[n, 3]` int64: indices of token, layer and channel in the network.
        layer: Index of the layer.
    """

    tokens: Tensor
    positions: Tensor
    layer: int


class TokenStream:
    """A network's token sequence, read from its file during iteration; iterating again reads the file again.

    Weights, tokens, masks and positions are never all in memory: the largest object is a block of `max_scalars`
    weights (or one row, if that is longer).

    Args:
        source: A source as in `SANEFeatureExtractor.encode`. At first, only headers of safetensors (or their shards)
            are read; a pickle is loaded in full.
        extractor: Fitted weight tokenizer.
        revision: Branch, tag or commit of a Hub repo.
        max_scalars: Number of weights to read at a time.

    Attributes:
        layout: Layout of the network. Use only its `layers`, since its masks and positions are as large as the
            network.
        num_tokens: `N`.
        layer_sizes: Number of tokens of each layer.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        ValueError: If a file is damaged, or the extractor was not fitted.
        KeyError: If the extractor was fitted on another architecture.
    """

    def __init__(
        self,
        source: Source | Checkpoint,
        extractor: SANEFeatureExtractor,
        *,
        revision: str | None = None,
        max_scalars: int = MAX_SCALARS,
    ) -> None:
        if max_scalars < 1:
            raise ValueError(f"expected max_scalars >= 1, got {max_scalars}")
        weights = read_network(source, revision=revision, lazy=True)
        self._tensors = weights.tensors
        self.layout: Layout = extractor.lay_out(weights)
        self.max_scalars = max_scalars
        self._rule = find_token_layout(self.layout.token_layout)
        self._affine = extractor.scales(self.layout)
        self.layer_sizes = [tokens.stop - tokens.start for tokens in self.layout.token_slices]
        self.num_tokens = sum(self.layer_sizes)

    def __len__(self) -> int:
        return self.num_tokens

    def __iter__(self) -> Iterator[TokenBlock]:
        """Yield blocks in the order of the sequence.

        Raises:
            ValueError: If weights are NaN or infinite, or overflow when normalised, or a tensor differs from the
                header.
        """
        first = 0
        for index, layer in enumerate(self.layout.layers):
            done = 0
            for tokens in self._layer_tokens(index, layer):
                if (
                    not tokens.sum().isfinite() and not tokens.isfinite().all()
                ):  # the sum is cheap and nearly always finds them
                    raise ValueError(
                        f"NaN or infinite weights in {layer.name}, or weights that overflow when normalised; leave "
                        "this network out"
                    )
                place = torch.arange(done, done + len(tokens))
                rows, size = self._rule.rows(layer), self.layer_sizes[index]
                third = place // (size // rows) if self._rule.counts_rows else place
                positions = torch.stack([first + place, torch.full_like(place, index), third], dim=1)
                yield TokenBlock(tokens, positions, index)
                done += len(tokens)
            first += done

    def _layer_tokens(self, index: int, layer: LayerSpec) -> Iterator[Tensor]:
        dim, (scale, shift) = self.layout.token_dim, self._affine[index]
        count = self._rule.rows(layer)
        if count > 1:
            length = layer.num_weights // count
            for rows in self._rows(layer.weight, layer.bias, count, layer.channels // count, length):
                yield torch.nn.functional.pad(_changed(rows, scale, shift), (0, -length % dim)).reshape(-1, dim)
            return
        rest = torch.empty(0)
        parts = [(layer.weight, layer.weight.numel // layer.channels)] + ([(layer.bias, 1)] if layer.bias else [])
        for spec, width in parts:
            for rows in self._rows(spec, None, layer.channels, 1, width):
                flat = torch.cat([rest.to(rows.dtype), _changed(rows.flatten(), scale, shift)])
                whole = len(flat) // dim * dim
                if whole:
                    yield flat[:whole].view(-1, dim)
                rest = flat[whole:].clone()
        if len(rest):
            yield torch.nn.functional.pad(rest, (0, dim - len(rest))).view(1, dim)

    def _rows(
        self, weight: TensorSpec, bias: TensorSpec | None, count: int, channels: int, width: int
    ) -> Iterator[Tensor]:
        """Yield rows `[weight | bias]`, up to `max_scalars` at a time: `[r, width]`, float32 or wider."""
        size = max(1, self.max_scalars // width)
        extra = None if bias is None else self._slice(bias, 0, count * channels).reshape(count, channels)
        for start, stop in pairwise([*range(0, count, size), count]):
            rows = self._slice(weight, start * channels, stop * channels).reshape(stop - start, -1)
            if extra is not None:
                rows = torch.cat([rows, extra[start:stop]], dim=1)
            yield rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)

    def _slice(self, spec: TensorSpec, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, or the whole tensor if it has no axes."""
        if isinstance(self._tensors, LazyCheckpoint):
            return self._tensors.rows(spec.name, start, stop) if spec.shape else self._tensors[spec.name]
        tensor = self._tensors[spec.name].detach()
        return tensor[start:stop] if spec.shape else tensor


def stream_if_large(
    source: Source,
    extractor: SANEFeatureExtractor,
    *,
    revision: str | None = None,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
) -> TokenStream | None:
    """Return a stream for a network that is too large to tokenize all at once.

    Args:
        source: A source as in `SANEFeatureExtractor.encode`. Only headers of safetensors are read here; a pickle is
            always loaded in full and never streamed.
        extractor: Fitted weight tokenizer.
        revision: Branch, tag or commit of a Hub repo.
        max_memory_bytes: Larger weights are streamed.

    Returns:
        The stream, or `None` for a network that `encode` can handle.

    Raises:
        FileNotFoundError: If a path, a shard, or safetensors in a folder or repo are missing.
        TypeError: If `encode` does not accept `source`.
    """
    if isinstance(source, str | Path | CheckpointSource):
        checkpoint = as_checkpoint(source, revision=revision)
        path = weights_path(checkpoint)
        if not is_lazy(path):
            return None
        tensors = read_outlines(path, key=checkpoint.key)
        found: Source | Checkpoint = CheckpointSource(path, key=checkpoint.key)
    else:
        found = read_network(source)
        tensors = dict(found.tensors)
        if any(tensor.is_meta for tensor in tensors.values()):
            return None  # without values, which `encode` reports
    if sum(tensor.nbytes for tensor in tensors.values()) <= max_memory_bytes:
        return None
    return TokenStream(found, extractor)


def _changed(weights: Tensor, scale: float, shift: float) -> Tensor:
    """`scale * w + shift`, rounded as in `Layout.tokens`."""
    return weights if (scale, shift) == (1.0, 0.0) else torch.add(weights.new_tensor(shift), weights, alpha=scale)
