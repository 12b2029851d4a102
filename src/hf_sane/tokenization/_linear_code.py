"""Fitting of the linear code to the tokens of training networks."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.models.configuration_linear import Grouping, LinearCodeConfig
from hf_sane.models.modeling_linear import LinearCode
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

Blocks = Iterable[tuple[Layout, Tensor]]


def fit_linear_code(
    read: Callable[[], Blocks],
    layouts: Sequence[Layout],
    extractor: SANEFeatureExtractor,
    *,
    latent_dim: int,
    grouping: Grouping = "kind",
) -> LinearCode:
    """Principal components of the tokens that a SANE autoencoder is trained on.

    Args:
        read: Yields layouts and raw tokens `[M, N, D]` of training networks in blocks, such as `token_blocks`; may be
            called repeatedly.
        layouts: Layouts of the networks.
        extractor: Fitted weight tokenizer.
        latent_dim: Latents per token, or per network with `grouping="network"`.
        grouping: Which tokens share components, see [`LinearCodeConfig`].

    Returns:
        The code, in evaluation mode; see [`LinearCode.fit`].

    Raises:
        ValueError: If there are no networks, layers of one index are of several kinds, or whole networks are of
            several layouts.
    """
    config = LinearCodeConfig(
        token_dim=extractor.token_dim,
        latent_dim=latent_dim,
        grouping=grouping,
        groups=_groups(layouts, grouping),
    )

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for layout, raw in read():
            yield extractor.normalize(raw, layout), layout.positions

    return LinearCode.fit(config, blocks)


def _groups(layouts: Sequence[Layout], grouping: Grouping) -> list[int]:
    """Group of each layer or token, by its index."""
    if grouping == "all":
        return [0]
    if grouping == "network" and len({layout.signature for layout in layouts}) > 1:
        raise ValueError(
            f"expected networks of one layout for principal components of whole networks, got {len(layouts)} layouts; "
            "fit one linear code per architecture, or use another grouping"
        )
    if grouping in ("position", "network"):
        return list(range(max(layout.num_tokens for layout in layouts)))
    if grouping == "layer":
        return list(range(max(len(layout.layers) for layout in layouts)))
    kinds: dict[int, str] = {}
    for layout in layouts:
        for index, layer in enumerate(layout.layers):
            if kinds.setdefault(index, layer.kind) != layer.kind:
                raise ValueError(
                    f"layer {index} is of kind {kinds[index]!r} in some networks and {layer.kind!r} in others; fit "
                    "one linear code to all tokens (grouping='all'), or one per architecture"
                )
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds[index] for index in sorted(kinds)))}
    return [numbers[kinds[index]] for index in range(len(kinds))]
