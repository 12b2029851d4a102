"""Embed networks that do not fit into memory: tokens are streamed and latents are pooled on the fly."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from hf_sane.core._finite import MAX_TOKEN, check_results, too_large
from hf_sane.core._layout import Layout
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.models.modes_sane import modes_kept
from hf_sane.models.windows_sane import halo_spans
from hf_sane.probing._accumulation import STREAM_POOLINGS, LatentAccumulator, StreamPooling
from hf_sane.probing._embeddings import embed_tokens
from hf_sane.probing._poolings import choose_poolings
from hf_sane.records._progress import progress
from hf_sane.tokenization._checkpoints import Source
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import MAX_MEMORY_BYTES, TokenStream, stream_if_large

Batch = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def embed_stream(
    model: WeightAutoencoder,
    stream: TokenStream,
    *,
    poolings: Sequence[StreamPooling] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Embed one network of any size.

    Windows, and up to rounding the embeddings, are the same as in `embed_networks` with all tokens, but sums over the
    latents of each layer are kept, in float64, instead of the latents. Memory holds twice `batch_size` windows (one
    batch is read while another is encoded), one block of the stream, and the sums of [`LatentAccumulator`].

    Args:
        model: SANE autoencoder, which runs on its device in evaluation mode.
        stream: Tokens of the network.
        poolings: Names, as in `pool_latents`, except `concat`, which is as long as the latents themselves.
        window_size: Number of tokens per window, including the halo; that of training if `None`.
        halo_size: Number of context tokens on each side of a window, which are encoded but not pooled.
        batch_size: Number of windows per pass, which does not affect the result.

    Returns:
        `{pooling: [F]}` float32 on the CPU.

    Raises:
        ValueError: If poolings are missing or unknown, the halo fills the window, weights are not finite, or the
            network is longer than the learned positions allow.
    """
    if not poolings or (unknown := [name for name in poolings if name not in STREAM_POOLINGS]):
        raise ValueError(
            f"expected poolings among {', '.join(STREAM_POOLINGS)}, got {unknown if poolings else 'none'}; the "
            "others require all latents at once: embed_networks()"
        )
    if model.config.num_latents is not None:
        model.check_whole(len(stream))
        raise ValueError(
            f"expected an autoencoder with one latent per token, got one with {model.config.num_latents} per network; "
            "read the network as a whole: embed_checkpoint()"
        )
    gathered = LatentAccumulator(stream.layer_sizes, model.config.latent_dim, poolings)
    with modes_kept(model), progress(total=len(stream), desc="embedding", unit="token") as bar:
        model.eval()
        batches = _window_batches(stream, window_size or model.config.window_size, halo_size, batch_size)
        for tokens, positions, keep in _prepared(batches):
            if tokens.abs().max() > MAX_TOKEN:
                token = int(tokens.abs().flatten(0, 1).amax(dim=1).argmax())
                layer = stream.layout.layers[int(positions.flatten(0, 1)[token, 1])]
                raise ValueError(too_large(layer.name, tokens.abs().max().item()))
            latents = model.encode(tokens.to(model.device, torch.float32), positions.to(model.device))
            gathered.add(latents.cpu()[keep], positions[keep][:, 1])
            bar.update(int(keep.sum()))
    found: dict[str, Tensor] = {name: gathered.pool(name) for name in poolings}
    for name, vector in found.items():
        check_results(vector[None], f"embeddings ({name})")
    return found


def embed_checkpoint(
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    source: Source,
    *,
    poolings: Sequence[str] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
    revision: str | None = None,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
) -> tuple[Layout, dict[str, Tensor]]:
    """Embed one network from any source; large ones are streamed if all requested poolings allow it.

    Four poolings require the whole network in memory, regardless of its size: `concat`, which is as long as the
    latents themselves, and `spectrum_distribution`, `decoded_distribution` and `decoded_profile`, which decode all of
    them.

    Args:
        model: SANE autoencoder, which runs on its device in evaluation mode.
        extractor: Its weight tokenizer.
        source: Any source that `SANEFeatureExtractor.encode` accepts.
        poolings: Names, as in `pool_latents`.
        window_size: Number of tokens per window, including the halo; that of training if `None`.
        halo_size: Number of context tokens on each side of a window.
        batch_size: Number of windows per pass.
        revision: Branch, tag or commit of a network on the Hub.
        max_memory_bytes: Size of weights above which they are streamed, if the poolings allow it.

    Returns:
        The layout (with only its `layers` if streamed), and `{pooling: [F]}` float32 on the CPU.

    Raises:
        FileNotFoundError: If a path is missing, or a repo holds no safetensors.
        ValueError: If poolings are missing or unknown, weights are not finite, or the network is longer than the
            learned positions allow.
        KeyError: If the extractor was fitted on another architecture.
    """
    windows: dict[str, Any] = {"window_size": window_size, "halo_size": halo_size, "batch_size": batch_size}
    poolings = choose_poolings(poolings, model)
    summed = [name for name in STREAM_POOLINGS if name in poolings]
    if len(summed) == len(set(poolings)) and model.config.num_latents is None:
        stream = stream_if_large(source, extractor, revision=revision, max_memory_bytes=max_memory_bytes)
        if stream is not None:
            return stream.layout, embed_stream(model, stream, poolings=summed, **windows)
    sequence = extractor.encode(source, revision=revision)
    found = embed_tokens(model, sequence.layout, sequence.tokens[None], poolings=poolings, **windows)
    return sequence.layout, {name: values[0] for name, values in found.items()}


def _window_batches(stream: TokenStream, window_size: int, halo_size: int, batch_size: int) -> Iterator[Batch]:
    """Windows of a stream: tokens `[B, C, D]`, positions `[B, C, 3]`, and the tokens of each window `[B, C]` bool.

    Buffers are reused for the next batch but one.
    """
    context_size = min(window_size, len(stream))
    shape = (min(batch_size * context_size, len(stream)), stream.layout.token_dim)
    buffers = cycle([_TokenBuffer(shape), _TokenBuffer(shape)])
    spans, reader, held = halo_spans(len(stream), window_size, halo_size), _BlockReader(stream), None
    while batch := list(islice(spans, batch_size)):
        buffer = next(buffers)
        buffer.fill(batch[0][0].start, batch[-1][0].stop, held, reader)
        held = buffer
        starts = torch.tensor([context.start for context, _ in batch]) - buffer.first
        own = torch.zeros(len(batch), context_size, dtype=torch.bool)
        for row, (_, keep) in zip(own, batch, strict=True):
            row[keep] = True
        yield (
            buffer.windows(buffer.tokens, starts, context_size),
            buffer.windows(buffer.positions, starts, context_size),
            own,
        )


class _BlockReader:
    """Reads the tokens of a stream in pieces of any length."""

    def __init__(self, stream: TokenStream) -> None:
        self._blocks = iter(stream)
        self._tokens, self._positions = torch.empty(0), torch.empty(0)

    def take(self, tokens: Tensor, positions: Tensor) -> None:
        """Write the next tokens into `tokens` `[n, D]` and `positions` `[n, 3]`."""
        done = 0
        while done < len(tokens):
            if not len(self._tokens):
                block = next(self._blocks)
                self._tokens, self._positions = block.tokens, block.positions
            part = slice(done, done + len(self._tokens[: len(tokens) - done]))
            size = part.stop - part.start
            tokens[part], positions[part] = self._tokens[:size], self._positions[:size]
            self._tokens, self._positions = self._tokens[size:], self._positions[size:]
            done = part.stop


class _TokenBuffer:
    """Consecutive tokens of a stream in reused memory, into which every token is copied once."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.tokens = torch.empty(shape)
        self.positions = torch.empty(shape[0], 3, dtype=torch.int64)
        self.first = self.end = 0

    def fill(self, first: int, end: int, held: "_TokenBuffer | None", reader: _BlockReader) -> None:
        """Read tokens `first` to `end`, copying those that the previous buffer holds."""
        known = 0 if held is None else max(0, held.end - first)
        if held is not None and known:
            old = slice(first - held.first, held.end - held.first)
            self.tokens[:known], self.positions[:known] = held.tokens[old], held.positions[old]
        reader.take(self.tokens[known : end - first], self.positions[known : end - first])
        self.first, self.end = first, end

    @staticmethod
    def windows(values: Tensor, starts: Tensor, size: int) -> Tensor:
        """Windows `[B, size, *]`, as views if they are consecutive without overlap."""
        if torch.equal(starts, torch.arange(len(starts)) * size):
            return values[: len(starts) * size].view(len(starts), size, -1)
        return values[starts[:, None] + torch.arange(size)]


def _prepared(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, with the next one prepared in another thread, so that reading and encoding overlap."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch
