"""Embed networks as one vector each, by pooling the latents of their tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_sane.core._finite import check_results, check_sizes
from hf_sane.core._layout import Layout
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.probing._poolings import POOLINGS, choose_poolings
from hf_sane.records._progress import tracked
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


@torch.no_grad()
def embed_networks(
    model: WeightAutoencoder,
    extractor: SANEFeatureExtractor,
    layout: Layout,
    raw_tokens: Tensor,
    *,
    poolings: Sequence[str] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Embed networks of one architecture.

    Most poolings use only the latents. Three of them also decode the latents: `spectrum_distribution` joins
    `layer_spectrum` with the distribution of each layer's decoded weights ([`layer_distribution`]), because quantiles
    of weights are no linear function of moments of latents. `decoded_profile` uses the decoded weights alone
    ([`weight_profile`]), and `decoded_distribution` omits their spectra. Compare them with the same statistics of the
    weights themselves, not only with s(W).

    Args:
        model: SANE autoencoder, which runs on its device in evaluation mode.
        extractor: Its weight tokenizer, which normalises the tokens.
        layout: Layout of the networks. Tokens are first arranged in the extractor's order of layers (`arrange`), so
            that the embedding of a network does not depend on whether it comes from a zoo, file or module.
        raw_tokens: `[M, N, D]` float, not normalised, such as `ZooSplit.stacked_tokens()`.
        poolings: Names, see [`pool_latents`]. Tokens are encoded once for all of them.
        window_size: Number of tokens per window; that of training if `None`.
        halo_size: Number of context tokens on each side of a window.
        batch_size: Number of networks, and of windows, at a time.

    Returns:
        `{pooling: [M, F]}` float32 on the CPU.

    Raises:
        ValueError: If tokens do not fit the layout, weights are not finite, there are no networks, or poolings are
            missing or unknown.
        KeyError: If the extractor was fitted on another architecture.
    """
    expected = [layout.num_tokens, layout.token_dim]
    if raw_tokens.ndim != 3 or list(raw_tokens.shape[1:]) != expected or not len(raw_tokens):
        raise ValueError(
            f"expected raw tokens [M, {expected[0]}, {expected[1]}] of at least one network, got "
            f"{list(raw_tokens.shape)}"
        )
    poolings = choose_poolings(poolings, model)
    parts: dict[str, list[Tensor]] = {name: [] for name in poolings}
    for start in tracked(range(0, len(raw_tokens), batch_size), desc="embedding", unit="batch"):
        batch = raw_tokens[start : start + batch_size]
        if bad := (start + (~batch.flatten(1).isfinite().all(dim=1)).nonzero().flatten()).tolist():
            raise ValueError(f"NaN or infinite weights in networks {bad}; leave them out")
        arranged, batch = extractor.arrange(layout, batch)
        tokens = extractor.normalize(batch, arranged)
        check_sizes(tokens, arranged, first=start)
        found = embed_tokens(
            model,
            arranged,
            tokens,
            poolings=poolings,
            window_size=window_size,
            halo_size=halo_size,
            batch_size=batch_size,
        )
        for name, values in found.items():
            parts[name].append(values)
    return {name: torch.cat(values) for name, values in parts.items()}


@torch.no_grad()
def embed_tokens(
    model: WeightAutoencoder,
    layout: Layout,
    tokens: Tensor,
    *,
    poolings: Sequence[str] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Embed networks of one architecture from their *normalised* tokens, in one pass.

    Args:
        model: SANE autoencoder, which runs on its device in evaluation mode.
        layout: Layout of the networks.
        tokens: `[M, N, D]` float, as returned by `SANEFeatureExtractor.encode`.
        poolings: As in [`embed_networks`], like all that follow.
        window_size: Number of tokens per window; that of training if `None`.
        halo_size: Number of context tokens on each side of a window.
        batch_size: Number of windows at a time.

    Returns:
        `{pooling: [M, F]}` float32 on the CPU.

    Raises:
        ValueError: If shapes do not fit, or tokens or embeddings are not finite or too large for single precision.
    """
    windows: dict[str, Any] = {"window_size": window_size, "halo_size": halo_size, "batch_size": batch_size}
    check_sizes(tokens, layout)
    poolings = choose_poolings(poolings, model)
    latents = model.encode_sequences(tokens, layout.positions, **windows)
    found: dict[str, Tensor] = {}
    decoded = None
    if any(POOLINGS.find(name).decodes for name in poolings):
        decoded = model.decode_sequences(latents, layout.positions, **windows)
    for name in poolings:
        pooling = POOLINGS.find(name)
        pooled = pooling.pool(latents.float(), layout, *([decoded] if pooling.decodes else []))
        check_results(pooled, f"embeddings ({name})")
        found[name] = pooled.cpu()
    return found
