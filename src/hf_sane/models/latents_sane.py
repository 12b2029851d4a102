"""Latents of whole networks, for SANE with `num_latents`.

Axis letters: `B` networks in a batch, `W` tokens of a network, `D` scalars of a token, `H` residual stream, `L`
latents of a network, `Z` scalars of a latent, `R` principal components.
"""

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from .configuration_sane import SANEConfig
from .layers_sane import SANEAttention, SANEBranchLinear


class SANEQueries(nn.Module):
    """One learned vector per latent, `[L, H]`, by which latents are told apart."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        assert config.num_latents is not None
        self.weight = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))

    def forward(self, batch_size: int) -> Tensor:
        """The vectors, for each network of a batch: `[B, L, H]`."""
        return self.weight.expand(batch_size, -1, -1)


class SANECrossLayer(nn.Module):
    """Pre-LN block of cross-attention: `h += attention(norm(h), norm(context))`, `h += fc_out(gelu(fc_in(norm(h))))`.

    As in Perceiver IO (arXiv:2107.14795), a few latents read many tokens, or tokens read the latents.
    """

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.layer_norm_eps
        self.query_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.context_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.attention = SANEAttention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.fc_in = nn.Linear(width, config.intermediate_size or 4 * width, bias=False)
        self.fc_out = SANEBranchLinear(self.fc_in.out_features, width, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, queries: Tensor, context: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Let `queries` `[B, Q, H]` read `context` `[B, W, H]`, without its padding; returns `[B, Q, H]`."""
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=queries, attention_mask=attention_mask, encoder_hidden_states=context
        )
        mixed, _ = self.attention(self.query_norm(queries), mask, context=self.context_norm(context))
        queries = queries + self.dropout(mixed)
        expanded = nn.functional.gelu(self.fc_in(self.mlp_norm(queries)))
        return queries + self.dropout(self.fc_out(expanded))


class SANEComponents(nn.Module):
    """Principal components of whole networks, as the linear path from tokens to latents and back.

    `c = (V^T (t - mu)) / s` and `t_hat = mu + V (s c)`, where `V` are `R` directions in the space of all tokens, and
    `s` standard deviations along them. They are fitted to training networks and not trained further, so that the rest
    of the autoencoder learns what the code of the leading ones leaves out.
    """

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        size = config.num_components
        self.mean = nn.Parameter(torch.empty(config.window_size, config.token_dim), requires_grad=False)
        self.directions = nn.Parameter(torch.empty(config.window_size, config.token_dim, size), requires_grad=False)
        self.deviations = nn.Parameter(torch.empty(size), requires_grad=False)

    def encode(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Components `[B, R]` of tokens `[B, W, D]`, in standard deviations."""
        centred = tokens.to(self.mean.dtype) - self.mean[: tokens.shape[1]]
        if attention_mask is not None:
            centred = centred.masked_fill((attention_mask == 0)[..., None], 0.0)
        return centred.flatten(1) @ self.directions[: tokens.shape[1]].flatten(0, 1) / self.deviations

    def decode(self, components: Tensor, num_tokens: int) -> Tensor:
        """Tokens `[B, W, D]` of components `[B, R]`."""
        mean, directions = self.mean[:num_tokens], self.directions[:num_tokens]
        return mean + ((components * self.deviations) @ directions.flatten(0, 1).T).unflatten(1, mean.shape)


class SANEComponentLinear(nn.Linear):
    """Linear layer of [`SANEComponentReader`]; the last one of a branch starts at zero."""

    def __init__(self, in_features: int, out_features: int, *, last: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.last = last


class SANEComponentReader(nn.Module):
    """Perceptrons that latents are read from and written to components with, beyond the leading ones.

    `z = c_K + f(c)` and `c_hat = (z, 0) + g(z) s_rest / s`, with perceptrons `f` and `g` that start at zero, and the
    typical deviation `s_rest` of the components that are not latents. In families with several ancestors, for example,
    networks vary in other directions around each of them, so that the same latents can stand for other directions.
    """

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        assert config.num_latents is not None
        count, size, width = config.num_components, config.num_latents * config.latent_dim, config.hidden_size
        self.num_latents = size
        self.read = nn.Sequential(
            nn.Dropout(config.hidden_dropout),
            SANEComponentLinear(count, width),
            nn.GELU(),
            nn.Dropout(config.hidden_dropout),
            SANEComponentLinear(width, size, last=True),
        )
        self.write = nn.Sequential(
            SANEComponentLinear(size, width),
            nn.GELU(),
            nn.Dropout(config.hidden_dropout),
            SANEComponentLinear(width, width),
            nn.GELU(),
            SANEComponentLinear(width, count, last=True),
        )

    def encode(self, components: Tensor) -> Tensor:
        """Latents `[B, L Z]` of components `[B, R]`."""
        return components[:, : self.num_latents] + self.read(components)

    def decode(self, latents: Tensor, deviations: Tensor) -> Tensor:
        """Components `[B, R]` of latents `[B, L Z]`; `deviations` `[R]` are those of all components."""
        rest = deviations[self.num_latents :] if len(deviations) > self.num_latents else deviations
        unit = rest.square().mean().sqrt() / deviations
        return nn.functional.pad(latents, (0, len(deviations) - self.num_latents)) + self.write(latents) * unit


__all__: list[str] = []  # used only by `SANEModel`
