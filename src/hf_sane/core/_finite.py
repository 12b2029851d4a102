"""Check that weights are finite and fit single precision, so that results are never NaN or infinite unnoticed."""

import torch
from torch import Tensor

from hf_sane.core._layout import Layout

MAX_TOKEN = 1e18  # norms square their inputs, which beyond this overflow in single precision


def check_sizes(tokens: Tensor, layout: Layout, *, first: int = 0) -> None:
    """Raise an error for normalised tokens `[M, N, D]` that are not finite or too large for an autoencoder.

    Args:
        tokens: Tokens of networks of one layout.
        layout: Their layout.
        first: Index of the first network in messages.

    Raises:
        ValueError: If a token is not finite or larger than `MAX_TOKEN`, with layer and networks.
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
    """The message for a layer whose normalised weights are too large."""
    which = f" (networks {networks})" if networks else ""
    return (
        f"normalised weights of {layer}{which} reach {size:.3g}, but an autoencoder in single precision supports "
        f"up to {MAX_TOKEN:g}: the networks diverged, or differ in scale from those on which the extractor was "
        "fitted; leave them out"
    )


def check_results(values: Tensor, what: str) -> None:
    """Raise an error for results `[M, ...]` of finite weights that are not finite.

    Raises:
        ValueError: If a result is not finite.
    """
    if bad := int((~values.flatten(1).isfinite().all(dim=1)).sum()):
        raise ValueError(
            f"{what} of {bad} of {len(values)} networks are not finite, although their weights are; check that the "
            "weights of the autoencoder are finite, or leave these networks out"
        )
