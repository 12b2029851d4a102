"""Checks that weights are finite and fit single precision, so that no result is silently NaN or infinite."""

import torch
from torch import Tensor

from hf_sane.core._layout import Layout

MAX_TOKEN = 1e18  # norms square what they see: beyond this, single precision overflows


def check_sizes(tokens: Tensor, layout: Layout, *, first: int = 0) -> None:
    """Refuse normalised tokens `[M, N, D]` that an autoencoder cannot take.

    Args:
        tokens: Tokens of networks of one layout.
        layout: Their layout.
        first: What messages call the first network.

    Raises:
        ValueError: If one is not finite or larger than `MAX_TOKEN`; it names layer and networks.
    """
    if not tokens.numel() or (tokens.amax() <= MAX_TOKEN and tokens.amin() >= -MAX_TOKEN):
        return
    sizes = torch.stack(
        [tokens[:, part].abs().nan_to_num(torch.inf).amax(dim=(1, 2)) for part in layout.token_slices], 1
    )
    largest, layers = sizes.max(dim=1)
    bad = (largest > MAX_TOKEN).nonzero().flatten().tolist()
    layer = layout.layers[int(layers[bad[0]])].name
    raise ValueError(too_large(layer, largest[bad[0]].item(), [first + index for index in bad]))


def too_large(layer: str, size: float, networks: list[int] | None = None) -> str:
    """The sentence for a layer whose normalised weights are too large."""
    which = f" (networks {networks})" if networks else ""
    return (
        f"weights of {layer} are {size:.3g} once normalised, an autoencoder in single precision takes up to "
        f"{MAX_TOKEN:g}{which}: diverged, or on another scale than the networks that the extractor was fitted on; "
        "leave them out"
    )


def check_results(values: Tensor, what: str) -> None:
    """Refuse results `[M, ...]` of finite weights that are not finite themselves.

    Raises:
        ValueError: If one is not.
    """
    if bad := int((~values.flatten(1).isfinite().all(dim=1)).sum()):
        raise ValueError(
            f"{what} of {bad} of {len(values)} networks are not finite though their weights are; is the autoencoder "
            "itself finite? Look at its weights, or leave these networks out"
        )
