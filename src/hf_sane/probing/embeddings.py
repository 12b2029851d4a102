"""One vector per network: latents of its tokens, pooled."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_sane.core.finite import check_results, check_sizes
from hf_sane.core.layout import Layout
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing.quantiles import quantiles
from hf_sane.probing.spectra import layer_distribution, layer_spectrum, weight_profile
from hf_sane.tokenization.feature_extraction_sane import SANEFeatureExtractor

LatentPooling = Literal[
    "mean", "layer_mean", "layer_mean_std", "layer_moments", "layer_covariance", "layer_spectrum", "concat"
]
DecodedPooling = Literal["spectrum_distribution", "decoded_distribution", "decoded_profile"]
EmbeddingPooling = Literal[LatentPooling, DecodedPooling]
LATENT_POOLINGS: tuple[LatentPooling, ...] = get_args(LatentPooling)
DECODED_POOLINGS: tuple[DecodedPooling, ...] = get_args(DecodedPooling)
POOLINGS: tuple[EmbeddingPooling, ...] = (*LATENT_POOLINGS, *DECODED_POOLINGS)
MOMENT_LEVELS = (
    0.0,
    0.25,
    0.5,
    0.75,
    1.0,
)  # quantiles of `layer_moments`: few layers have enough tokens for finer ones


def pool_latents(latents: Tensor, layout: Layout, pooling: LatentPooling) -> Tensor:
    """Turn the token latents of networks into one vector each.

    With `z_n` the latents of the tokens of one layer, `Z` latent dimensions, `L` layers and `N` tokens:

    | pooling | per layer | scalars | |
    |---|---|---|---|
    | `mean` | | `Z` | mean over all tokens: the embedding of SANE (arXiv:2406.09997, section 4.1) |
    | `layer_mean` | mean | `L Z` | keeps which layer it was |
    | `layer_mean_std` | mean, standard deviation | `2 L Z` | what s(W) has for weights |
    | `layer_moments` | mean, standard deviation, five quantiles | `7 L Z` | minimum, quartiles and maximum |
    | `layer_covariance` | mean, second moments `mean(z z^T)` | `L Z (Z + 3) / 2` | products of dimensions too |
    | `layer_spectrum` | singular values of the tokens | `sum min(n, Z)` | see [`layer_spectrum`] |
    | `concat` | | `N Z` | all tokens, in order |

    All but `concat` do not depend on the order of the tokens within a layer. The mean over all tokens is the weak part
    of the published embedding: large layers drown small ones, and the spread of a layer, which says most about
    training, is lost. Standard deviations divide by the number of tokens; a layer of one token has zero.

    Args:
        latents: `[M, N, Z]` float.
        layout: Which token belongs to which layer.
        pooling: One of the names above.

    Returns:
        `[M, F]` float32 on the device of `latents`.

    Raises:
        ValueError: If `latents` does not have the tokens of `layout`, or for an unknown pooling.
    """
    if latents.ndim != 3 or latents.shape[1] != layout.num_tokens:
        raise ValueError(f"expected latents [M, {layout.num_tokens}, Z] of this layout, got {list(latents.shape)}")
    latents = latents.float()
    if pooling == "mean":
        return latents.mean(dim=1)
    if pooling == "concat":
        return latents.flatten(1)
    if pooling == "layer_spectrum":
        return layer_spectrum(latents, layout)
    layers = [latents[:, part] for part in layout.token_slices]
    if pooling == "layer_mean":
        parts = [layer.mean(dim=1) for layer in layers]
    elif pooling == "layer_mean_std":
        parts = [_mean_and_std(layer) for layer in layers]
    elif pooling == "layer_moments":
        parts = [
            torch.cat([_mean_and_std(layer), quantiles(layer, MOMENT_LEVELS, dim=1).flatten(1)], dim=1)
            for layer in layers
        ]
    elif pooling == "layer_covariance":
        row, column = torch.triu_indices(latents.shape[2], latents.shape[2], device=latents.device)
        parts = [
            torch.cat([layer.mean(dim=1), (layer.mT @ layer)[:, row, column] / layer.shape[1]], dim=1)
            for layer in layers
        ]
    else:
        raise ValueError(f"expected one of the poolings {', '.join(LATENT_POOLINGS)}, got {pooling!r}")
    return torch.cat(parts, dim=1)


def _mean_and_std(layer: Tensor) -> Tensor:
    return torch.cat([layer.mean(dim=1), layer.std(dim=1, unbiased=False)], dim=1)


@torch.no_grad()
def embed_networks(
    model: SANEModel,
    extractor: SANEFeatureExtractor,
    layout: Layout,
    raw_tokens: Tensor,
    *,
    poolings: Sequence[EmbeddingPooling] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Embed networks of one architecture.

    All poolings but three look at the latents alone. `spectrum_distribution` also decodes them: it joins
    `layer_spectrum` with the distribution of each layer's decoded weights ([`layer_distribution`]), because quantiles
    of weights cannot be read linearly off moments of latents. `decoded_profile` reads the decoded weights alone
    ([`weight_profile`]), `decoded_distribution` does so without their spectra. Compare them with the same statistics
    of the weights themselves, not with s(W) only.

    Args:
        model: SANE autoencoder; runs on its own device, in evaluation mode.
        extractor: Its weight tokenizer, which normalises the tokens.
        layout: Layout of the networks. Tokens are put in the extractor's own order of layers first (`arrange`), so
            that a network has one embedding, whether a zoo, a file or a module holds it.
        raw_tokens: `[M, N, D]` float, not normalised, such as `ZooSplit.stacked_tokens()`.
        poolings: Names, see [`pool_latents`]. Tokens are encoded once for all of them.
        window_size: Tokens per window; the training window when `None`.
        halo_size: Context tokens on each side of a window.
        batch_size: Networks, and windows, at a time.

    Returns:
        `{pooling: [M, F]}` float32 on the CPU.

    Raises:
        ValueError: For tokens of another shape than the layout's, weights that are not finite, no networks, or no or
            unknown poolings.
        KeyError: If the extractor was fitted on another architecture.
    """
    expected = [layout.num_tokens, layout.token_dim]
    if raw_tokens.ndim != 3 or list(raw_tokens.shape[1:]) != expected or not len(raw_tokens):
        raise ValueError(
            f"expected raw tokens [M, {expected[0]}, {expected[1]}] of at least one network, got "
            f"{list(raw_tokens.shape)}"
        )
    if not poolings or (unknown := [name for name in poolings if name not in POOLINGS]):
        raise ValueError(f"expected poolings among {', '.join(POOLINGS)}, got {unknown if poolings else 'none'}")
    parts: dict[str, list[Tensor]] = {name: [] for name in poolings}
    for start in range(0, len(raw_tokens), batch_size):
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
    model: SANEModel,
    layout: Layout,
    tokens: Tensor,
    *,
    poolings: Sequence[EmbeddingPooling] = ("mean",),
    window_size: int | None = None,
    halo_size: int = 0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Embed networks of one architecture from their *normalised* tokens, all in one go.

    Args:
        model: SANE autoencoder; runs on its own device, in evaluation mode.
        layout: Layout of the networks.
        tokens: `[M, N, D]` float, as `SANEFeatureExtractor.encode` gives them.
        poolings: As in [`embed_networks`], like all that follows.
        window_size: Tokens per window; the training window when `None`.
        halo_size: Context tokens on each side of a window.
        batch_size: Windows at a time.

    Returns:
        `{pooling: [M, F]}` float32 on the CPU.

    Raises:
        ValueError: If shapes do not fit, or tokens or embeddings are not finite or too large for single precision.
    """
    windows: dict[str, Any] = {"window_size": window_size, "halo_size": halo_size, "batch_size": batch_size}
    check_sizes(tokens, layout)
    latents = model.encode_sequences(tokens, layout.positions, **windows)
    found: dict[str, Tensor] = {}
    decoded = None
    if not set(poolings).isdisjoint(DECODED_POOLINGS):
        decoded = model.decode_sequences(latents, layout.positions, **windows)
    for name in poolings:
        if name == "spectrum_distribution":
            assert decoded is not None
            pooled = torch.cat([layer_spectrum(latents, layout), layer_distribution(decoded, layout)], dim=1)
        elif name == "decoded_distribution" or name == "decoded_profile":
            assert decoded is not None
            pooled = weight_profile(decoded, layout, with_spectrum=name == "decoded_profile")
        else:
            pooled = pool_latents(latents, layout, name)
        check_results(pooled, f"embeddings ({name})")
        found[name] = pooled.cpu()
    return found
