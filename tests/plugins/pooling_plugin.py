"""A new pooling: the largest latent of every dimension."""

from torch import Tensor

from hf_sane.core import Layout
from hf_sane.probing import register_pooling


@register_pooling("largest")
def largest_latents(latents: Tensor, layout: Layout) -> Tensor:
    """Latents `[M, N, Z]` to `[M, Z]`."""
    return latents.amax(dim=1)
