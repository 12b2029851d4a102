"""Embeddings of networks that do not fit into memory: tokens come as a stream, latents are pooled as they are made."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from hf_sane.models.modeling_sane import SANEModel
from hf_sane.models.windows_sane import halo_spans
from hf_sane.tokenization.token_stream import TokenStream

StreamPooling = Literal["mean", "layer_mean", "layer_mean_std", "layer_covariance"]
STREAM_POOLINGS: tuple[StreamPooling, ...] = get_args(StreamPooling)


@torch.no_grad()
def embed_stream(
    model: SANEModel,
    stream: TokenStream,
    *,
    poolings: Sequence[StreamPooling] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
    progress_bar: bool = False,
) -> dict[str, Tensor]:
    """Embed one network of any size.

    The same windows, and up to rounding the same embeddings, as `embed_networks` of all its tokens; here sums over the
    latents of each layer are kept, in float64, in place of the latents. In memory: `batch_size` windows, one block of the
    stream, and `[L, Z]` sums (`[L, Z, Z]` for `layer_covariance`).

    Args:
        model: SANE autoencoder; runs on its own device, in evaluation mode.
        stream: Tokens of the network.
        poolings: Names, as in `pool_latents`, of those that sums are enough for.
        window_size: Tokens per window, halo included; the training window when `None`.
        halo_size: Context tokens on each side of a window that are seen but not kept.
        batch_size: Windows per pass; the result does not depend on it.
        progress_bar: Show how far it is.

    Returns:
        `{pooling: [F]}` float32 on the CPU.

    Raises:
        ValueError: For no or unknown poolings, a window that the halo fills, weights that are not finite, or networks
            longer than learned positions reach.
    """
    if not poolings or (unknown := [name for name in poolings if name not in STREAM_POOLINGS]):
        raise ValueError(
            f"expected poolings among {', '.join(STREAM_POOLINGS)}, got {unknown if poolings else 'none'}; the others need "
            "all latents at once: embed_networks()"
        )
    was_training = model.training
    model.eval()
    sums = _LayerSums(len(stream.layout.layers), model.config.latent_dim, with_products="layer_covariance" in poolings)
    bar = tqdm(total=len(stream), desc="embedding", unit="token", unit_scale=True, disable=not progress_bar)
    try:
        for tokens, positions, keep in _window_batches(
            stream, window_size or model.config.window_size, halo_size, batch_size
        ):
            latents = model.encode(tokens.to(model.device, torch.float32), positions.to(model.device))
            sums.add(latents.cpu()[keep], positions[keep][:, 1])
            bar.update(int(keep.sum()))
    finally:
        model.train(was_training)
        bar.close()
    return {name: sums.pool(name) for name in poolings}


def _window_batches(
    stream: TokenStream, window_size: int, halo_size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Windows of a stream: tokens `[B, C, D]`, positions `[B, C, 3]`, and which tokens each window owns `[B, C]` bool."""
    blocks = iter(stream)
    held: list[tuple[Tensor, Tensor]] = []  # tokens and positions, without gap
    first = end = 0  # of what is held
    ready: list[tuple[Tensor, Tensor, Tensor]] = []
    for context, keep in halo_spans(len(stream), window_size, halo_size):
        while end < context.stop:
            block = next(blocks)
            held.append((block.tokens, block.positions))
            end += len(block.tokens)
        while first + len(held[0][0]) <= context.start:
            first += len(held.pop(0)[0])
        if len(held) > 1:
            held = [(torch.cat([tokens for tokens, _ in held]), torch.cat([where for _, where in held]))]
        inside = slice(context.start - first, context.stop - first)
        own = torch.zeros(context.stop - context.start, dtype=torch.bool)
        own[keep] = True
        ready.append((held[0][0][inside], held[0][1][inside], own))
        if len(ready) == batch_size:
            yield _stacked(ready)
            ready = []
    if ready:
        yield _stacked(ready)


def _stacked(windows: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, positions, own = zip(*windows, strict=True)
    return torch.stack(tokens), torch.stack(positions), torch.stack(own)


class _LayerSums:
    """Sums over the latents of each layer, in float64."""

    def __init__(self, num_layers: int, latent_dim: int, *, with_products: bool) -> None:
        self.counts = torch.zeros(num_layers, 1, dtype=torch.float64)
        self.sums = torch.zeros(num_layers, latent_dim, dtype=torch.float64)
        self.squares = torch.zeros(num_layers, latent_dim, dtype=torch.float64)
        shape = (num_layers, latent_dim, latent_dim) if with_products else (0,)
        self.products = torch.zeros(shape, dtype=torch.float64)

    def add(self, latents: Tensor, layers: Tensor) -> None:
        """Latents `[n, Z]` of layers `[n]`, in the order of the sequence."""
        present, sizes = torch.unique_consecutive(layers, return_counts=True)
        for layer, part in zip(present.tolist(), latents.double().split(sizes.tolist()), strict=True):
            self.counts[layer] += len(part)
            self.sums[layer] += part.sum(dim=0)
            self.squares[layer] += part.square().sum(dim=0)
            if self.products.ndim == 3:
                self.products[layer] += part.mT @ part

    def pool(self, pooling: StreamPooling) -> Tensor:
        """One embedding, `[F]` float32."""
        means = self.sums / self.counts
        if pooling == "mean":
            return (self.sums.sum(dim=0) / self.counts.sum()).float()
        if pooling == "layer_mean":
            return means.flatten().float()
        if pooling == "layer_mean_std":
            variances = (self.squares / self.counts - means.square()).clamp(min=0)
            return torch.cat([means, variances.sqrt()], dim=1).flatten().float()
        row, column = torch.triu_indices(means.shape[1], means.shape[1])
        moments = self.products[:, row, column] / self.counts
        return torch.cat([means, moments], dim=1).flatten().float()
