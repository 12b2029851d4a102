"""Sample latents around anchors, and decode latents to new networks."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.core._finite import check_results, check_sizes
from hf_sane.core._kde import BandwidthRule, SamplingMode, sample_latents
from hf_sane.core._layout import Layout
from hf_sane.models.autoencoder_sane import WeightAutoencoder
from hf_sane.models.configuration_linear import Grouping
from hf_sane.networks._stacked import StackedNetworks, empty_model
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._linear_code import fit_linear_code

BandwidthUnit = Literal["anchor_std", "latent_std", "latent"]


@dataclass(frozen=True, slots=True)
class Density:
    """Settings of the kernel density estimate that new latents are drawn from.

    Attributes:
        bandwidth: Kernel standard deviation, >= 0, in units of `unit`; or the rule `"scott"` or `"silverman"`.
        unit: `"anchor_std"`: standard deviation over the anchors, separately for every token and latent dimension, so
            that a kernel of width 1 has the shape and size of the anchors' spread. `"latent_std"`: standard deviation
            over all tokens of all anchors, separately for every latent dimension, which also works for a single
            anchor. `"latent"`: latent units, as in the released code (0.2 for every zoo). Rules support only
            `"anchor_std"`.
        mode: Which coordinates share an anchor, see [`sample_latents`].

    Raises:
        ValueError: If the bandwidth is negative, a choice is unknown, or a rule has another unit than `"anchor_std"`.
    """

    bandwidth: float | BandwidthRule
    unit: BandwidthUnit = "anchor_std"
    mode: SamplingMode = "joint"

    def __post_init__(self) -> None:
        known = isinstance(self.bandwidth, str) and self.bandwidth in ("scott", "silverman")
        if not known and (isinstance(self.bandwidth, str) or not 0 <= self.bandwidth < float("inf")):
            raise ValueError(f"expected a bandwidth >= 0, 'scott' or 'silverman', got {self.bandwidth!r}")
        if self.unit not in get_args(BandwidthUnit):
            raise ValueError(f"expected a bandwidth unit of {get_args(BandwidthUnit)}, got {self.unit!r}")
        if known and self.unit != "anchor_std":
            raise ValueError(
                f"the rules 'scott' and 'silverman' require the unit 'anchor_std', got bandwidth="
                f"{self.bandwidth!r} and unit={self.unit!r}; leave the unit out, or pass the bandwidth as a number"
            )
        if self.mode not in ("joint", "token", "scalar"):
            raise ValueError(f"expected mode 'joint', 'token' or 'scalar', got {self.mode!r}")

    def kernel(self, anchors: Tensor) -> float | Tensor | BandwidthRule:
        """The bandwidth in latent units for anchors `[A, N, Z]`: a number, `[N, Z]`, or the rule.

        Raises:
            ValueError: If the unit is the standard deviation of a single anchor.
        """
        if isinstance(self.bandwidth, str) or self.unit == "latent" or self.bandwidth == 0:
            return self.bandwidth
        if self.unit == "latent_std":
            return self.bandwidth * anchors.flatten(0, 1).std(dim=0).expand(anchors.shape[1:])
        if len(anchors) < 2:
            raise ValueError(
                "one anchor has no standard deviation as unit of the bandwidth; use more anchors, or another unit "
                "(--unit latent_std, unit='latent_std')"
            )
        return self.bandwidth * anchors.std(dim=0)

    def sample(
        self,
        anchors: Tensor,
        num_samples: int,
        *,
        anchor_weights: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw latents `[S, N, Z]` around anchors `[A, N, Z]`; see [`sample_latents`]."""
        return sample_latents(
            anchors,
            num_samples,
            bandwidth=self.kernel(anchors),
            mode=self.mode,
            anchor_weights=anchor_weights,
            generator=generator,
        )


@dataclass(frozen=True, slots=True)
class NetworkCodec:
    """Converts between networks of one architecture and their latents.

    Attributes:
        model: SANE autoencoder.
        extractor: Its weight tokenizer, fitted on the zoo.
        layout: Layout of the networks.
        config: Their architecture, or a module of it (see `StackedNetworks`).
        window_size: Tokens per window, including the halo; the training window if `None`.
        halo_size: Context tokens on each side of a window. Any length of network works.
        batch_size: Number of windows at a time.

    Raises:
        ValueError: If model, layout and architecture do not fit together.
    """

    model: WeightAutoencoder
    extractor: SANEFeatureExtractor
    layout: Layout
    config: ZooConfig | nn.Module
    window_size: int | None = None
    halo_size: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.layout.token_dim != self.model.config.token_dim:
            raise ValueError(
                f"the SANE model expects tokens of {self.model.config.token_dim} values, the layout has "
                f"{self.layout.token_dim}; use the extractor that was saved with the model"
            )
        network = empty_model(self.config) if isinstance(self.config, ZooConfig) else self.config
        names = {self.layout.module_names.get(name, name) for name in self.layout.tensor_names}
        if differing := sorted(network.state_dict().keys() ^ names):
            raise ValueError(
                f"layout and architecture belong to different networks: missing or unexpected tensors {differing}"
            )

    def encode(self, raw_tokens: Tensor) -> Tensor:
        """Encode raw tokens `[M, N, D]` (not normalised) as latents `[M, N, Z]`, float32.

        Raises:
            ValueError: If there are no networks, tokens do not fit the layout, or tokens or latents are not finite.
        """
        check_raw_tokens(raw_tokens, self.layout)
        tokens = self.extractor.normalize(raw_tokens, self.layout)
        check_sizes(tokens, self.layout)
        latents = self.model.encode_sequences(
            tokens,
            self.layout.positions,
            window_size=self.window_size,
            halo_size=self.halo_size,
            batch_size=self.batch_size,
        )
        check_results(latents, "latents")
        return latents

    def decode_tokens(self, latents: Tensor, *, with_gradient: bool = False) -> Tensor:
        """Decode latents `[M, N, Z]` to raw tokens `[M, N, D]`, with zeros as padding; optionally differentiable."""
        tokens = self.model.decode_sequences(
            latents,
            self.layout.positions,
            window_size=self.window_size,
            halo_size=self.halo_size,
            batch_size=self.batch_size,
            with_gradient=with_gradient,
        )
        return self.extractor.denormalize(tokens, self.layout)

    def decode(self, latents: Tensor, *, with_gradient: bool = False) -> StackedNetworks:
        """Decode latents `[M, N, Z]` to networks; optionally differentiable."""
        return self.networks(self.decode_tokens(latents, with_gradient=with_gradient))

    def linear(self, training_tokens: Tensor, grouping: Grouping = "kind") -> Self:
        """The baseline: a linear code of the same size for the same tokens, instead of the autoencoder.

        Args:
            training_tokens: `[T, N, D]` raw tokens of training networks.
            grouping: Which tokens share principal components, see `LinearCodeConfig`. If the autoencoder has latents
                of whole networks, so has the linear code.
        """
        grouping, latent_dim = self.model.linear_rival(grouping)
        blocks = [(self.layout, training_tokens)]
        model = fit_linear_code(
            lambda: blocks, [self.layout], self.extractor, latent_dim=latent_dim, grouping=grouping
        )
        return replace(self, model=model)

    def networks(self, raw_tokens: Tensor) -> StackedNetworks:
        """Convert raw tokens `[M, N, D]` to networks; see [`networks_from_tokens`]."""
        return networks_from_tokens(raw_tokens, self.layout, self.config)

    def tokens(self, networks: StackedNetworks) -> Tensor:
        """Convert networks of this layout to raw tokens `[M, N, D]`."""
        return self.layout.tokens(networks.tensors, batch_dims=1)


@dataclass(frozen=True, slots=True)
class SampledNetworks:
    """Networks and the latents that they were decoded from.

    Attributes:
        latents: `[S, N, Z]`.
        networks: `S` networks, in the same order.
    """

    latents: Tensor
    networks: StackedNetworks


def check_raw_tokens(raw_tokens: Tensor, layout: Layout) -> None:
    """Raise an error for tokens that are not networks of `layout`.

    Raises:
        ValueError: If the shape is not `[M, N, D]` with at least one network, or weights are not finite.
    """
    if raw_tokens.ndim != 3 or raw_tokens.shape[1:] != (layout.num_tokens, layout.token_dim) or not len(raw_tokens):
        raise ValueError(
            f"expected raw tokens [M, {layout.num_tokens}, {layout.token_dim}] of at least one network, got "
            f"{list(raw_tokens.shape)}"
        )
    if bad := (~raw_tokens.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist():
        raise ValueError(f"NaN or infinite weights in networks {bad}; leave them out")


def networks_from_tokens(raw_tokens: Tensor, layout: Layout, config: ZooConfig | nn.Module) -> StackedNetworks:
    """Convert raw tokens to networks; tensors that are not tokenized come from the layout's template.

    Args:
        raw_tokens: `[M, N, D]`, not normalised.
        layout: Their layout.
        config: Their architecture.

    Returns:
        The networks, in the stored dtypes.

    Raises:
        ValueError: If tokens, layout and architecture do not fit.
    """
    return StackedNetworks(config, layout.for_module(layout.state_dict(raw_tokens)))


def sample_from_prior(
    codec: NetworkCodec, num_samples: int, *, std: float, generator: torch.Generator | None = None
) -> SampledNetworks:
    """Decode latents from `N(0, std^2 I)` without anchors, from which bootstrapping without prompts starts.

    The released code draws from `N(0, 10^2)` for every zoo. The right scale is that of the latents, which depends on
    the autoencoder.

    Args:
        codec: Autoencoder, tokenizer, layout and architecture.
        num_samples: Number of networks to draw, `S` >= 1.
        std: Standard deviation in latent units, >= 0.
        generator: CPU source of randomness; the global one if `None`.

    Raises:
        ValueError: If `num_samples < 1`, or `std` is negative or not finite.
    """
    if num_samples < 1 or not 0 <= std < float("inf"):
        raise ValueError(f"expected num_samples >= 1 and a finite std >= 0, got {num_samples} and {std}")
    shape = (num_samples, *codec.model.latent_shape(codec.layout.num_tokens))
    latents = torch.randn(shape, generator=generator) * std
    return SampledNetworks(latents, codec.decode(latents))


def for_num_labels(config: ZooConfig, num_labels: int) -> ZooConfig:
    """The configuration of the same network for a different number of classes."""
    settings = {**config.to_dict(), "num_labels": num_labels, "id2label": None, "label2id": None}
    return type(config).from_dict(settings)


def classifier_name(config: ZooConfig) -> str:
    """Name of the classifier, which is the last layer of every network of a zoo configuration."""
    return list(empty_model(config).state_dict())[-1].rpartition(".")[0]
