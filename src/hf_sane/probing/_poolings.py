"""Poolings, which combine the latents of a network's tokens in one vector, by name.

A pooling is a decorated function, in any module that is imported before the pooling is used:

```python
@register_pooling("largest")
def largest(latents, layout):
    return latents.amax(dim=1)  # [M, N, Z] -> [M, F]
```
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sane.core._layout import Layout
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.probing._quantiles import quantiles
from hf_sane.probing._spectra import layer_distribution, layer_spectrum, weight_profile
from hf_sane.records._registry import Registry

# Quantiles of `layer_moments`; few layers have enough tokens for finer ones.
MOMENT_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Pooling:
    """A pooling.

    Attributes:
        pool: The function.
        decodes: Whether it takes the decoded tokens `[M, N, D]` as a third argument.
        by_token: Whether it needs the latents to be those of tokens, not of whole networks.
    """

    pool: Callable[..., Tensor]
    decodes: bool
    by_token: bool = True

    def fits(self, model: WeightAutoencoder) -> bool:
        """Whether it can pool the latents of an autoencoder."""
        return model.config.num_latents is None or not self.by_token


POOLINGS: Registry[Pooling] = Registry("pooling")
"""Poolings by name, in the order of registration."""


def register_pooling(
    name: str, *, decodes: bool = False, by_token: bool = True
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a pooling, for everything that embeds networks.

    It is called with the float32 latents `[M, N, Z]` of networks and their [`Layout`], and returns `[M, F]`.
    Checkpoints are loaded in full for it, regardless of their size.

    Args:
        name: New name.
        decodes: Whether it is also called with the decoded tokens `[M, N, D]`.
        by_token: Whether it needs one latent per token, as in SANE. Otherwise, it is also used for autoencoders with
            latents of whole networks, `[M, L, Z]`.

    Raises:
        ValueError: If the name is taken.
    """

    def register(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
        POOLINGS.add(name, Pooling(pool, decodes, by_token))
        return pool

    return register


def choose_poolings(names: Sequence[str], model: WeightAutoencoder) -> list[str]:
    """Check names of poolings for the latents of an autoencoder; `all` stands for those that fit.

    Raises:
        ValueError: If there are none, or one is unknown or does not fit.
    """
    fitting = [name for name, pooling in POOLINGS.items() if pooling.fits(model)]
    names = fitting if list(names) == ["all"] else list(names)
    if not names or (unknown := [name for name in names if name not in POOLINGS]):
        raise ValueError(f"expected poolings among {', '.join(POOLINGS)}, got {unknown if names else 'none'}")
    if others := [name for name in names if name not in fitting]:
        raise ValueError(
            f"{', '.join(others)}: expected an autoencoder with one latent per token, got one with "
            f"{model.config.num_latents} per network; use {', '.join(fitting)}"
        )
    return names


def pool_latents(latents: Tensor, layout: Layout, pooling: str) -> Tensor:
    """Pool the token latents of each network into one vector.

    With `z_n` the latents of the tokens of one layer, `Z` latent dimensions, `L` layers and `N` tokens:

    | pooling | per layer | scalars | |
    |---|---|---|---|
    | `mean` | | `Z` | mean over all tokens: the embedding of SANE (arXiv:2406.09997, section 4.1) |
    | `layer_mean` | mean | `L Z` | distinguishes layers |
    | `layer_mean_std` | mean, standard deviation | `2 L Z` | like s(W) for weights |
    | `layer_moments` | mean, standard deviation, five quantiles | `7 L Z` | minimum, quartiles and maximum |
    | `layer_covariance` | mean, second moments `mean(z z^T)` | `L Z (Z + 3) / 2` | includes products of dimensions |
    | `layer_spectrum` | singular values of the tokens | `sum min(n, Z)` | see [`layer_spectrum`] |
    | `concat` | | `N Z` | all tokens, in order |

    All but `concat` are independent of the order of the tokens within a layer. The mean over all tokens is the weak
    part of the published embedding: large layers dominate small ones, and the spread of a layer, which is most
    informative about training, is lost. Standard deviations divide by the number of tokens; they are zero for a layer
    of one token.

    Args:
        latents: `[M, N, Z]` float.
        layout: Layout of the networks.
        pooling: One of the names above, or of a registered pooling that does not decode.

    Returns:
        `[M, F]` float32 on the device of `latents`.

    Raises:
        ValueError: If `latents` does not fit `layout`, or the pooling is unknown.
    """
    if latents.ndim != 3 or latents.shape[1] != layout.num_tokens:
        raise ValueError(f"expected latents [M, {layout.num_tokens}, Z] of this layout, got {list(latents.shape)}")
    found = POOLINGS.find(pooling)
    if found.decodes:
        raise ValueError(f"{pooling} requires decoded tokens in addition to latents; use embed_networks()")
    return found.pool(latents.float(), layout)


@register_pooling("mean", by_token=False)
def _mean(latents: Tensor, layout: Layout) -> Tensor:
    return latents.mean(dim=1)


@register_pooling("layer_mean")
def _layer_mean(latents: Tensor, layout: Layout) -> Tensor:
    return _by_layer(latents, layout, lambda layer: layer.mean(dim=1))


@register_pooling("layer_mean_std")
def _layer_mean_std(latents: Tensor, layout: Layout) -> Tensor:
    return _by_layer(latents, layout, _mean_and_std)


@register_pooling("layer_moments")
def _layer_moments(latents: Tensor, layout: Layout) -> Tensor:
    def moments(layer: Tensor) -> Tensor:
        return torch.cat([_mean_and_std(layer), quantiles(layer, MOMENT_LEVELS, dim=1).flatten(1)], dim=1)

    return _by_layer(latents, layout, moments)


@register_pooling("layer_covariance")
def _layer_covariance(latents: Tensor, layout: Layout) -> Tensor:
    row, column = torch.triu_indices(latents.shape[2], latents.shape[2], device=latents.device)

    def products(layer: Tensor) -> Tensor:
        return torch.cat([layer.mean(dim=1), (layer.mT @ layer)[:, row, column] / layer.shape[1]], dim=1)

    return _by_layer(latents, layout, products)


register_pooling("layer_spectrum")(layer_spectrum)


@register_pooling("concat", by_token=False)
def _concat(latents: Tensor, layout: Layout) -> Tensor:
    return latents.flatten(1)


@register_pooling("spectrum_distribution", decodes=True)
def _spectrum_distribution(latents: Tensor, layout: Layout, decoded: Tensor) -> Tensor:
    return torch.cat([layer_spectrum(latents, layout), layer_distribution(decoded, layout)], dim=1)


@register_pooling("decoded_distribution", decodes=True, by_token=False)
def _decoded_distribution(latents: Tensor, layout: Layout, decoded: Tensor) -> Tensor:
    return weight_profile(decoded, layout, with_spectrum=False)


@register_pooling("decoded_profile", decodes=True, by_token=False)
def _decoded_profile(latents: Tensor, layout: Layout, decoded: Tensor) -> Tensor:
    return weight_profile(decoded, layout, with_spectrum=True)


def _by_layer(latents: Tensor, layout: Layout, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Vectors `[M, F]` from the latents `[M, n, Z]` of each layer, concatenated."""
    return torch.cat([pool(latents[:, part]) for part in layout.token_slices], dim=1)


def _mean_and_std(layer: Tensor) -> Tensor:
    return torch.cat([layer.mean(dim=1), layer.std(dim=1, unbiased=False)], dim=1)
