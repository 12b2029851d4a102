"""Building blocks of SANE: linear layers, position embeddings, attention blocks and the projection head."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_sane import SANEConfig

SINUSOID_BASE = 10_000.0


class SANEPathLinear(nn.Linear):
    """One of the four maps between token, residual stream and latent, which form a linear path in the autoencoder.

    Args:
        in_features: Input width.
        out_features: Output width.
        towards_stream: Whether the residual stream is the output of the map (from tokens or latents) rather than its
            input.
    """

    def __init__(self, in_features: int, out_features: int, *, towards_stream: bool) -> None:
        super().__init__(in_features, out_features)
        self.towards_stream = towards_stream

    def path_matrix(self) -> Tensor:
        """Slice `[out, in]` of one orthogonal `Q [H, H]`, which all four maps share (initialisation `linear_path`).

        Maps to the stream are `Q[:, :in]`, and maps from it `Q[:, :out]^T`, with columns beyond `H` zero. Any two of
        them therefore compose to the identity on the first `min(in, out, H)` coordinates. `Q` has a fixed seed, since
        it is merely a choice of coordinates.
        """
        width, features = (
            (self.out_features, self.in_features) if self.towards_stream else (self.in_features, self.out_features)
        )
        generator = torch.Generator().manual_seed(0)
        gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
        rotation = torch.linalg.qr(gaussian[:, :features])[0]  # the first columns of Q do not depend on later ones
        columns = nn.functional.pad(rotation, (0, max(features - width, 0))).float()
        return columns if self.towards_stream else columns.T


class SANEBranchLinear(nn.Linear):
    """Last linear layer of a residual branch, with small initial weights, so that deep stacks start near identity."""


class SANEPositionEmbedding(nn.Module):
    """Learned embedding of (token, layer, channel): `P = concat(E1[n] + E2[l], E3[k])`, both of width `H / 2`."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        half = config.hidden_size // 2
        self.max_positions = tuple(config.max_positions)
        self.token_table, self.layer_table, self.channel_table = (nn.Embedding(n, half) for n in self.max_positions)

    def forward(self, positions: Tensor) -> Tensor:
        """Look up `positions` `[B, W, 3]` int64; returns `[B, W, H]`."""
        self.check(positions)
        token, layer, channel = positions.unbind(-1)
        return torch.cat([self.token_table(token) + self.layer_table(layer), self.channel_table(channel)], dim=-1)

    def check(self, positions: Tensor) -> None:
        """Raise an error for positions outside the tables.

        On the CPU, the error gives the positions. On an accelerator, reading them would wait for all queued kernels at
        every step, so the check is queued, too, and stops the process without values.

        Raises:
            ValueError: If a position is outside its table (on the CPU).
        """
        remedy = "set larger max_positions in SANEConfig, or position_embedding='sinusoidal', which has no limit"
        if positions.numel() == 0 or positions.device.type == "meta":
            return
        if positions.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (extreme.tolist() for extreme in torch.aminmax(positions.reshape(-1, 3), dim=0))
            if min(low) < 0 or any(h >= n for h, n in zip(high, self.max_positions, strict=True)):
                raise ValueError(
                    f"positions (token, layer, channel) must be in the learned tables of {self.max_positions} rows, "
                    f"got values from {tuple(low)} to {tuple(high)}; {remedy}"
                )
            return
        limits = positions.new_tensor(self.max_positions)
        inside = ((positions >= 0) & (positions < limits)).all()
        torch._assert_async(inside, f"positions outside the learned tables of {self.max_positions} rows; {remedy}")


class SANESinusoidalEmbedding(nn.Module):
    """Fixed sines and cosines of token, layer and channel index, concatenated, with a learned gain per dimension.

    Each index takes a third of the width; wavelengths range from `2 pi` to `2 pi * 10000`. MultiZoo-SANE and GeoSANE
    *sum* the three parts over the same frequencies, so that token 3 of layer 5 and token 5 of layer 3 coincide; here,
    they are concatenated. Positions have no upper limit.
    """

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        third = config.hidden_size // 6 * 2
        self.widths = (third, third, config.hidden_size - 2 * third)
        self.gain = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, positions: Tensor) -> Tensor:
        """Embed `positions` `[B, W, 3]` int64; returns `[B, W, H]`."""
        parts = []
        for column, width in enumerate(self.widths):
            steps = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
            frequencies = torch.exp(steps * (-math.log(SINUSOID_BASE) / (width // 2)))
            angles = positions[..., column, None].float() * frequencies
            parts += [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1).to(self.gain.dtype) * self.gain


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Explicit attention `softmax(q k^T s + mask) v` for `output_attentions`, with `[B, heads, W, head_dim]` each."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SANEAttention(nn.Module):
    """Bidirectional multi-head attention over all tokens of a window, or over a context, without biases."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = SANEBranchLinear(width, width, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mix `hidden_states` `[B, W, H]`; returns the same shape, and the attention weights if they were computed.

        Args:
            hidden_states: Tokens that attend.
            attention_mask: Mask of the tokens that are attended to, as made by Transformers.
            context: `[B, C, H]` tokens that are attended to; the same ones by default.
        """
        context = hidden_states if context is None else context
        query, key, value = (
            projection(states).view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for projection, states in ((self.q_proj, hidden_states), (self.k_proj, context), (self.v_proj, context))
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = float(self.config.hidden_dropout) if self.training else 0.0
        mixed, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), weights


class SANELayer(GradientCheckpointingLayer):
    """Pre-LN transformer block: `h += attention(norm(h))`, `h += fc_out(gelu(fc_in(norm(h))))`."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.attention = SANEAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.fc_in = nn.Linear(config.hidden_size, config.intermediate_size or 4 * config.hidden_size, bias=False)
        self.fc_out = SANEBranchLinear(self.fc_in.out_features, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Apply both branches to `hidden_states` `[B, W, H]`."""
        mixed, _ = self.attention(self.attention_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(mixed)
        expanded = nn.functional.gelu(self.fc_in(self.mlp_norm(hidden_states)))
        return hidden_states + self.dropout(self.fc_out(expanded))


class SANEProjectionHead(nn.Module):
    """Contrastive head: flatten `[W * Z]`, then linear, norm, ReLU, linear, norm and optionally a final ReLU."""

    def __init__(self, config: SANEConfig) -> None:
        super().__init__()
        self.window_size = config.num_latents or config.window_size
        self.fc_in = nn.Linear(self.window_size * config.latent_dim, config.projection_dim, bias=False)
        self.norm_in = nn.LayerNorm(config.projection_dim, eps=config.layer_norm_eps)
        self.fc_out = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.norm_out = nn.LayerNorm(config.projection_dim, eps=config.layer_norm_eps)
        self.output = nn.ReLU() if config.projection_output == "relu" else nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        """Project windows `[B, W, Z]`, zero at padded tokens, to `[B, P]`; short windows are zero-padded."""
        padded = nn.functional.pad(latents, (0, 0, 0, self.window_size - latents.shape[1]))
        hidden = nn.functional.relu(self.norm_in(self.fc_in(padded.flatten(1))))
        return self.output(self.norm_out(self.fc_out(hidden)))


__all__ = [
    "SANEPositionEmbedding",
    "SANEProjectionHead",
    "SANESinusoidalEmbedding",
]
