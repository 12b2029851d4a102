"""SANE: a transformer autoencoder over the weight tokens of neural networks (arXiv:2406.09997).

Axis letters: `B` windows in a batch, `M` models, `N` tokens of a whole model, `W` tokens in a window, `D` scalars of a
token, `H` residual stream, `Z` latent, `P` projection.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .autoencoder_sane import WeightAutoencoder, zero_padding
from .configuration_sane import SANEConfig
from .initialization_sane import network_directions, principal_directions
from .latents_sane import SANEComponentLinear, SANEComponentReader, SANEComponents, SANECrossLayer, SANEQueries
from .layers_sane import (
    SANEAttention,
    SANEBranchLinear,
    SANELayer,
    SANEPathLinear,
    SANEPositionEmbedding,
    SANEProjectionHead,
    SANESinusoidalEmbedding,
)
from .losses_sane import masked_reconstruction_loss, nt_xent_loss
from .outputs_sane import SANEOutput

FLAGS = ("output_hidden_states", "output_attentions", "use_cache")  # passed by decorators and Trainer


class SANEPreTrainedModel(WeightAutoencoder):
    """Base class with the attributes that Transformers requires, and the initialisation of all modules."""

    config: SANEConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must average it over accumulation steps
    _no_split_modules = ["SANELayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(SANELayer, index=0, layer_name="encoder"),
        "attentions": OutputRecorder(SANEAttention, index=1, layer_name="encoder"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module. Transformers calls it only for modules with parameters, so each kind has a class."""
        super()._init_weights(module)
        linear_path = self.config.initialization == "linear_path"
        of_networks = self.config.num_latents is not None
        std = self.config.initializer_range
        if isinstance(module, SANEPathLinear) and linear_path:
            init.copy_(module.weight, module.path_matrix())
            if of_networks and not module.towards_stream:  # the linear path does not go through the stream
                init.zeros_(module.weight)
        elif isinstance(module, SANEBranchLinear):
            small = std / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, std=0.0 if linear_path and not of_networks else small)
        elif isinstance(module, SANEQueries) or (isinstance(module, nn.Embedding) and of_networks):
            init.normal_(module.weight, std=1.0)  # they distinguish latents and tokens that read each other
        elif isinstance(module, SANEComponentLinear):
            init.normal_(module.weight, std=0.0 if module.last else module.in_features**-0.5)
        elif isinstance(module, SANEComponents):
            init.zeros_(module.mean)
            init.zeros_(module.directions)
            init.ones_(module.deviations)
        elif isinstance(module, SANESinusoidalEmbedding):
            init.constant_(module.gain, std * math.sqrt(2) if linear_path else 1.0)


class SANEModel(SANEPreTrainedModel):
    """Autoencoder over windows of weight tokens, with a contrastive head.

    `tokens -> Linear -> + P -> blocks -> Linear -> latents -> Linear -> + P -> blocks -> Linear -> reconstruction`
    (arXiv:2406.09997, section 3), with pre-LN bidirectional blocks without biases, and no final norm.

    Initialisation `"paper"`: all weights `N(0, 0.02)`, the last map of each residual branch `N(0, 0.02 / sqrt(2 L))`.
    The output of the untrained model is close to zero, so that it must first learn to pass tokens through two
    projections. Initialisation `"linear_path"` is our deviation. There is no norm on the path token -> stream ->
    latent -> stream -> token. With four slices of one orthogonal matrix (decoder maps are transposes of the encoder's)
    and residual branches that start at zero, the path is the identity on the first `min(D, H, Z)` coordinates of a
    token. With `Z >= D`, the untrained autoencoder thus already reconstructs, up to its small position embeddings, and
    training only has to improve on a linear code. With `Z < D`, [`initialize_from_tokens`] sets the path to the
    principal subspace of real tokens.

    With `num_latents`, a network has a few latents instead of one per token. Their linear path are the leading
    principal components of whole networks, see [`initialize_from_networks`]. Beyond these, latents are read from and
    written to all components by perceptrons ([`SANEComponentReader`]), or tokens by cross-attention
    ([`SANECrossLayer`]), between the same stacks of blocks.

    All tokens are *normalised* and zero wherever `weight_mask` is `False`.
    """

    def __init__(self, config: SANEConfig) -> None:
        super().__init__(config)
        self.reads_tokens = config.num_latents is None or config.latent_reader == "attention"
        if self.reads_tokens:
            positions = SANEPositionEmbedding if config.position_embedding == "learned" else SANESinusoidalEmbedding
            token_dim, width, latent_dim = config.token_dim, config.hidden_size, config.latent_dim
            self.token_in = SANEPathLinear(token_dim, width, towards_stream=True)
            self.encoder_positions = positions(config)
            self.encoder = nn.ModuleList(SANELayer(config) for _ in range(config.num_hidden_layers))
            self.latent_out = SANEPathLinear(width, latent_dim, towards_stream=False)
            self.latent_in = SANEPathLinear(latent_dim, width, towards_stream=True)
            self.decoder_positions = positions(config)
            self.decoder = nn.ModuleList(SANELayer(config) for _ in range(config.num_hidden_layers))
            self.token_out = SANEPathLinear(width, token_dim, towards_stream=False)
        self.projection_head = SANEProjectionHead(config)
        if config.num_latents is not None:
            self.components = SANEComponents(config)
            if self.reads_tokens:
                self.latent_queries, self.latent_places = SANEQueries(config), SANEQueries(config)
                self.reader, self.writer = SANECrossLayer(config), SANECrossLayer(config)
            else:
                self.component_reader = SANEComponentReader(config)
        self.post_init()

    def _transform(self, stream: Tensor, layers: nn.ModuleList, attention_mask: Tensor | None) -> Tensor:
        """Run one stack of blocks over `[B, W, H]`."""
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=stream, attention_mask=attention_mask)
        for layer in layers:
            stream = layer(stream, mask)
        return stream

    def encode(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map windows of tokens to latents.

        Args:
            tokens: `[B, W, D]` normalised tokens, zero at padding.
            positions: `[B, W, 3]` int64 (token, layer, channel).
            attention_mask: `[B, W]`, nonzero at real tokens; if `None`, all tokens are real.

        Returns:
            `[B, W, Z]`, zero at padded tokens; or `[B, L, Z]` with `num_latents`.

        Raises:
            ValueError: If shapes do not fit, or a position is outside the learned tables.
        """
        self._check(tokens, positions, self.config.token_dim, "tokens [B, W, token_dim]")
        if self.config.num_latents is not None:
            return self._encode_network(tokens, positions, attention_mask)
        return zero_padding(self.latent_out(self._encode_stream(tokens, positions, attention_mask)), attention_mask)

    def _encode_stream(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Run the encoder over tokens, up to the residual stream `[B, W, H]`."""
        stream = self.token_in(tokens.to(self.token_in.weight.dtype)) + self.encoder_positions(positions)
        return self._transform(stream, self.encoder, attention_mask)

    def _encode_network(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Latents `[B, L, Z]` of whole networks."""
        self.check_whole(tokens.shape[1])
        components, shape = self.components.encode(tokens, attention_mask), self.latent_shape(tokens.shape[1])
        if not self.reads_tokens:
            return self.component_reader.encode(components).unflatten(1, shape)
        stream = self._encode_stream(tokens, positions, attention_mask)
        read = self.latent_out(self.reader(self.latent_queries(len(tokens)), stream, attention_mask))
        return components[:, : math.prod(shape)].unflatten(1, shape) + read

    def decode(self, latents: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map windows of latents back to tokens.

        Args:
            latents: `[B, W, Z]`, or `[B, L, Z]` with `num_latents`.
            positions: `[B, W, 3]` int64, as in [`encode`].
            attention_mask: `[B, W]`, as in [`encode`].

        Returns:
            `[B, W, D]` normalised tokens, zero at padded tokens.
        """
        self._check_latents(latents, positions)
        if self.config.num_latents is not None:
            return zero_padding(self._decode_network(latents, positions, attention_mask), attention_mask)
        stream = self.latent_in(latents.to(self.latent_in.weight.dtype)) + self.decoder_positions(positions)
        return zero_padding(self.token_out(self._transform(stream, self.decoder, attention_mask)), attention_mask)

    def _decode_network(self, latents: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Tokens `[B, W, D]` of whole networks."""
        self.check_whole(positions.shape[1])
        deviations = self.components.deviations
        flat = latents.to(deviations.dtype).flatten(1)
        if not self.reads_tokens:
            components = self.component_reader.decode(flat, deviations)
            return self.components.decode(components, positions.shape[1])
        linear = self.components.decode(
            nn.functional.pad(flat, (0, len(deviations) - flat.shape[1])), positions.shape[1]
        )
        context = self.latent_in(latents.to(self.latent_in.weight.dtype)) + self.latent_places(len(latents))
        stream = self.writer(self.decoder_positions(positions), context)
        return linear + self.token_out(self._transform(stream, self.decoder, attention_mask))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        weight_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        target_tokens: Tensor | None = None,
        second_tokens: Tensor | None = None,
        second_target_tokens: Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> SANEOutput:
        """Reconstruct one or two views of each window and compute the loss by default.

        Args:
            tokens: `[B, W, D]` first view, with noise.
            positions: `[B, W, 3]` int64, of both views.
            weight_mask: `[B, W, D]` bool, `True` at real weights of both views; if `None`, all weights are real.
            attention_mask: `[B, W]`, nonzero at real tokens of both views; if `None`, all tokens are real.
            target_tokens: `[B, W, D]` first view before noise; if `None`, `tokens`.
            second_tokens: `[B, W, D]` second view of the same windows.
            second_target_tokens: `[B, W, D]` second view before noise; if `None`, `second_tokens`.
            return_loss: Whether to compute losses; `Trainer` recognises this name.
            **kwargs: Transformers' `output_hidden_states`, `output_attentions`, `return_dict`; nothing else.

        Returns:
            [`SANEOutput`].

        Raises:
            ValueError: If shapes do not fit, or there is a second view and windows are longer than the projection head
                allows.
            TypeError: If a keyword is unknown.
        """
        if unknown := sorted(k for k, v in kwargs.items() if v is not None and k not in FLAGS):
            raise TypeError(f"SANEModel.forward has no argument {unknown}; see its docstring for the names it accepts")
        views = [tokens] if second_tokens is None else [tokens, second_tokens]
        positions = _join([positions] * len(views))
        weight_mask, attention_mask = (
            None if part is None else _join([part] * len(views)) for part in (weight_mask, attention_mask)
        )
        latents = self.encode(_join(views), positions, attention_mask)
        reconstruction = self.decode(self._add_noise(latents, attention_mask), positions, attention_mask)
        contrast = len(views) == 2 and return_loss and self.config.contrast_weight > 0
        projections = self._project(latents, required=contrast)
        losses: dict[str, Any] = {}
        if return_loss:
            clean = (
                [target_tokens, second_target_tokens] if self.config.reconstruction_target == "clean" else [None] * 2
            )
            target = _join([view if other is None else other for view, other in zip(views, clean, strict=False)])
            losses = self._losses(
                reconstruction, target, weight_mask, attention_mask, projections if contrast else None
            )
        output = SANEOutput(**losses, latents=latents, reconstruction=reconstruction, projection=projections)
        if len(views) == 2:
            output.latents, output.second_latents = latents.chunk(2)
            output.reconstruction, output.second_reconstruction = reconstruction.chunk(2)
            output.projection = None if projections is None else projections.chunk(2)[0]
        return output

    def _losses(
        self,
        reconstruction: Tensor,
        target: Tensor,
        weight_mask: Tensor | None,
        attention_mask: Tensor | None,
        projections: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all views, `[V B, W, D]`, and of the projections of two views, `[2 B, P]`."""
        mask = torch.ones_like(target, dtype=torch.bool) if weight_mask is None else weight_mask
        if attention_mask is not None:
            mask = mask & (attention_mask != 0)[..., None]
        reconstruction_loss = masked_reconstruction_loss(
            reconstruction,
            target,
            mask,
            denominator=self.config.reconstruction_denominator,
            normalization=self.config.loss_normalization,
        )
        if projections is None:
            return {"loss": reconstruction_loss, "reconstruction_loss": reconstruction_loss}
        first, second = projections.chunk(2)
        contrastive_loss = nt_xent_loss(first, second, temperature=self.config.temperature)
        gamma = self.config.contrast_weight
        loss = (1 - gamma) * reconstruction_loss + gamma * contrastive_loss
        return {"loss": loss, "reconstruction_loss": reconstruction_loss, "contrastive_loss": contrastive_loss}

    def _add_noise(self, latents: Tensor, attention_mask: Tensor | None) -> Tensor:
        """In training, add Gaussian noise in units of each latent dimension's root mean square over real tokens."""
        if not self.training or self.config.latent_noise == 0:
            return latents
        power = latents.detach().float().square()  # zero at padded tokens
        padded = attention_mask if self.config.num_latents is None else None
        count = power[..., 0].numel() if padded is None else (padded != 0).sum().clamp_min(1)
        scale = self.config.latent_noise * (power.sum((0, 1)) / count).sqrt()
        return latents + (torch.randn_like(power) * scale).to(latents.dtype)

    def _project(self, latents: Tensor, *, required: bool) -> Tensor | None:
        """Projections `[B, P]`; `None` for windows longer than the head, unless required by the loss."""
        if latents.shape[1] <= self.projection_head.window_size:
            return self.projection_head(latents)
        if required:
            raise ValueError(
                f"the contrastive loss takes windows of at most window_size={self.config.window_size} tokens, got "
                f"{latents.shape[1]}; cut shorter windows, or set contrast_weight=0"
            )
        return None

    @torch.no_grad()
    def initialize_from_tokens(self, tokens: Tensor, weight_mask: Tensor) -> float:
        """Set the linear path to the principal subspace of real tokens, before training.

        The path becomes `t_hat = mu + V_r V_r^T (t - mu)`, where `V_r` are the `r = min(D, H, Z)` leading principal
        directions of the sample (singular value decomposition in float64), which is the best linear autoencoder with
        `r` latents. Latent dimensions start as principal components, largest first.

        Args:
            tokens: `[n, D]` normalised tokens.
            weight_mask: `[n, D]` bool, `True` at real weights; other entries are treated as zero.

        Returns:
            R2 of the linear path on the real weights of the sample.

        Raises:
            ValueError: If shapes do not fit or there are no real weights.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.config.token_dim or weight_mask.shape != tokens.shape:
            raise ValueError(
                f"expected tokens and weight_mask [n, {self.config.token_dim}], got {tuple(tokens.shape)} and "
                f"{tuple(weight_mask.shape)}; join windows along the first axis"
            )
        if not weight_mask.any():
            raise ValueError(
                f"expected real weights among {len(tokens)} tokens, got only padding; sample other tokens"
            )
        rank = min(self.config.token_dim, self.config.hidden_size, self.config.latent_dim)
        mean, directions, r2 = principal_directions(tokens, weight_mask, rank)
        to_stream = self.token_in.path_matrix().double() @ directions.T
        for layer, weight in (
            (self.token_in, to_stream),
            (self.token_out, to_stream.T),
            (self.latent_out, self.latent_out.path_matrix()),
            (self.latent_in, self.latent_in.path_matrix()),
        ):
            layer.weight.copy_(weight)
            layer.bias.zero_()
        self.token_in.bias.copy_(-to_stream @ mean)
        self.token_out.bias.copy_(mean)
        return r2

    @torch.no_grad()
    def initialize_from_networks(self, tokens: Tensor, weight_mask: Tensor) -> float:
        """Set the linear path of latents of whole networks to the principal components of training networks.

        No other linear code of the same size has a smaller squared error on the training networks.

        Args:
            tokens: `[T, N, D]` normalised tokens of training networks of one layout.
            weight_mask: `[N, D]` bool, `True` at real weights.

        Returns:
            R2 of the linear path on the real weights of these networks.

        Raises:
            ValueError: If the model has no such path, or shapes do not fit.
        """
        if self.config.num_latents is None:
            raise ValueError("expected a model with num_latents, got one with latents of tokens; set num_latents")
        length = tokens.shape[1] if tokens.ndim == 3 else 0
        if not 0 < length <= self.config.window_size or weight_mask.shape != tokens.shape[1:] or not len(tokens):
            raise ValueError(
                f"expected networks [T, N, D] of at most window_size={self.config.window_size} tokens and a mask "
                f"[N, D], got {tuple(tokens.shape)} and {tuple(weight_mask.shape)}"
            )
        found, size = self.components, math.prod(self.latent_shape(length))
        mean, directions, deviations = network_directions(tokens, weight_mask, len(found.deviations))
        found.mean[:length] = mean
        found.directions[:length] = directions
        found.deviations.copy_(deviations)
        real = tokens[:, weight_mask].double()
        leading = directions[:, :, :size].flatten(0, 1)
        centred = (tokens.double().cpu() - mean).masked_fill(~weight_mask.cpu(), 0.0).flatten(1)
        error = (centred - centred @ leading @ leading.T).square().sum()
        return 1.0 - (error / (real - real.mean()).square().sum().clamp_min(torch.finfo(torch.float64).tiny)).item()


def _join(views: list[Tensor]) -> Tensor:
    """Join views along the batch; a single view is not copied."""
    return views[0] if len(views) == 1 else torch.cat(views)


__all__ = ["SANEModel", "SANEPreTrainedModel"]
