"""Base class of autoencoders of weight tokens: SANE, and the linear code as its baseline.

Axis letters: `B` windows in a batch, `M` models, `N` tokens of a whole model, `W` tokens in a window, `D` scalars of a
token, `L` latents of a whole model, `Z` scalars of a latent.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .configuration_linear import Grouping
from .modes_sane import modes_kept
from .windows_sane import map_whole, map_windows

AUTOENCODERS = ("sane", "sane_linear")  # model types


class WeightAutoencoder(PreTrainedModel):
    """Maps windows of weight tokens to latents and back; whole networks are processed window by window.

    Configurations have `token_dim`, `latent_dim`, `window_size` and `num_latents`. The last one is `None` if each
    token has a latent, as in SANE. Otherwise, it is the number of latents of a network, which is then always processed
    as a whole.
    """

    config: Any
    base_model_prefix = "sane"
    main_input_name = "tokens"
    input_modalities = ["weights"]  # noqa: RUF012

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """The smallest valid input."""
        shape = (1, min(4, self.config.window_size))
        return {
            "tokens": torch.zeros(*shape, self.config.token_dim),
            "positions": torch.zeros(*shape, 3, dtype=torch.long),
        }

    def encode(self, tokens: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode windows of normalised tokens `[B, W, D]` at positions `[B, W, 3]` as latents `[B, W or L, Z]`."""
        raise NotImplementedError

    def decode(self, latents: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Decode latents `[B, W or L, Z]` at positions `[B, W, 3]` to normalised tokens `[B, W, D]`."""
        raise NotImplementedError

    @staticmethod
    def _check(features: Tensor, positions: Tensor, width: int, expected: str) -> None:
        if features.ndim != 3 or features.shape[2] != width or positions.shape != (*features.shape[:2], 3):
            raise ValueError(
                f"expected {expected} with last axis {width} and positions [B, W, 3], got {tuple(features.shape)} and "
                f"{tuple(positions.shape)}; was the model tokenized with another token_dim?"
            )

    def _check_latents(self, latents: Tensor, positions: Tensor) -> None:
        count, size = self.config.num_latents, self.config.latent_dim
        if count is None:
            self._check(latents, positions, size, "latents [B, W, latent_dim]")
        elif latents.shape != (len(positions), count, size) or positions.shape[2:] != (3,):
            raise ValueError(
                f"expected latents [B, {count}, {size}] of whole networks and positions [B, W, 3], got "
                f"{tuple(latents.shape)} and {tuple(positions.shape)}"
            )

    def latent_shape(self, num_tokens: int) -> tuple[int, int]:
        """Number of latents of a network of `num_tokens` tokens, and their size: `(N or L, Z)`."""
        count = self.config.num_latents
        return (num_tokens if count is None else count, self.config.latent_dim)

    def linear_rival(self, grouping: Grouping) -> tuple[Grouping, int]:
        """Grouping and `latent_dim` of a linear code of the same size.

        Args:
            grouping: Grouping of a code of tokens. The rival of latents of whole networks is a code of whole networks.
        """
        count, size = self.config.num_latents, self.config.latent_dim
        return (grouping, size) if count is None else ("network", count * size)

    @torch.no_grad()
    def encode_sequences(
        self,
        tokens: Tensor,
        positions: Tensor,
        *,
        window_size: int | None = None,
        halo_size: int = 0,
        batch_size: int = 64,
    ) -> Tensor:
        """Encode whole models of any length, window by window (see [`halo_spans`]).

        Args:
            tokens: `[M, N, D]` normalised tokens, on any device.
            positions: `[N, 3]` or `[M, N, 3]` int64.
            window_size: Number of tokens per window, including the halo; that of training if `None`. Models that fit
                in a window are encoded in one pass.
            halo_size: Number of context tokens on each side, which are encoded and then dropped.
            batch_size: Number of windows per pass, which does not affect the result.

        Returns:
            `[M, N, Z]`, or `[M, L, Z]` with `num_latents`; float32, on the device of `tokens`, without gradient or
            dropout.

        Raises:
            ValueError: If shapes or sizes do not fit, or a position is outside the learned tables.
        """
        return self._map_sequences(self.encode, tokens, positions, window_size, halo_size, batch_size)

    def decode_sequences(
        self,
        latents: Tensor,
        positions: Tensor,
        *,
        window_size: int | None = None,
        halo_size: int = 0,
        batch_size: int = 64,
        with_gradient: bool = False,
    ) -> Tensor:
        """Decode whole models of any length, with the arguments of [`encode_sequences`].

        Args:
            latents: `[M, N, Z]`, or `[M, L, Z]` with `num_latents`, on any device.
            positions: `[N, 3]` or `[M, N, 3]` int64.
            window_size: Number of tokens per window, including the halo.
            halo_size: Number of context tokens on each side, which are decoded and then dropped.
            batch_size: Number of windows per pass.
            with_gradient: Whether the tokens can be differentiated, for a search of latents.

        Returns:
            `[M, N, D]` float32 normalised tokens, on the device of `latents`, without dropout.
        """
        with torch.set_grad_enabled(with_gradient):
            return self._map_sequences(self.decode, latents, positions, window_size, halo_size, batch_size)

    def _map_sequences(
        self,
        method: Callable,
        features: Tensor,
        positions: Tensor,
        window_size: int | None,
        halo: int,
        batch_size: int,
    ) -> Tensor:
        """Run `method` over the windows of whole models, in eval mode, on the model's device."""

        def on_device(window: Tensor, where: Tensor) -> Tensor:
            return method(window.to(self.device), where.to(self.device))

        if self.config.num_latents is not None:
            self.check_whole(positions.shape[-2], window_size, halo)
        with modes_kept(self):
            self.eval()
            if self.config.num_latents is not None:
                return map_whole(on_device, features, positions, batch_size=batch_size)
            return map_windows(
                on_device,
                features,
                positions,
                window_size=window_size or self.config.window_size,
                halo_size=halo,
                batch_size=batch_size,
            )

    def check_whole(self, num_tokens: int, window_size: int | None = None, halo_size: int = 0) -> None:
        """Check that a network with latents of its own is not cut into windows.

        Raises:
            ValueError: If it is longer than the window, or a halo is given.
        """
        limit = window_size or self.config.window_size
        if num_tokens > limit or halo_size:
            raise ValueError(
                f"this autoencoder has {self.config.num_latents} latents per network instead of one per token, and "
                f"takes whole networks of at most {limit} tokens, got {num_tokens} tokens and halo_size={halo_size}; "
                "leave out window and halo, or use an autoencoder with latents of tokens for larger networks"
            )


def zero_padding(features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Set padded tokens of `[B, W, *]` to zero."""
    return features if attention_mask is None else features.masked_fill((attention_mask == 0)[..., None], 0.0)


__all__ = ["WeightAutoencoder"]
