"""Base class of autoencoders of weight tokens: SANE, and the linear code as its baseline.

Axis letters: `B` windows in a batch, `M` models, `N` tokens of a whole model, `W` tokens in a window, `D` scalars of a
token, `Z` latent.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .modes_sane import modes_kept
from .windows_sane import map_windows

AUTOENCODERS = ("sane", "sane_linear")  # model types


class WeightAutoencoder(PreTrainedModel):
    """Maps windows of weight tokens to latents and back; whole networks are processed window by window.

    Configurations have `token_dim`, `latent_dim` and `window_size`.
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
        """Encode windows of normalised tokens `[B, W, D]` at positions `[B, W, 3]` as latents `[B, W, Z]`."""
        raise NotImplementedError

    def decode(self, latents: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Decode latents `[B, W, Z]` to normalised tokens `[B, W, D]`."""
        raise NotImplementedError

    @staticmethod
    def _check(features: Tensor, positions: Tensor, width: int, expected: str) -> None:
        if features.ndim != 3 or features.shape[2] != width or positions.shape != (*features.shape[:2], 3):
            raise ValueError(
                f"expected {expected} with last axis {width} and positions [B, W, 3], got {tuple(features.shape)} and "
                f"{tuple(positions.shape)}; was the model tokenized with another token_dim?"
            )

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
            `[M, N, Z]` float32, on the device of `tokens`, without gradient or dropout.

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
            latents: `[M, N, Z]`, on any device.
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
        with modes_kept(self):
            self.eval()
            return map_windows(
                lambda window, where: method(window.to(self.device), where.to(self.device)),
                features,
                positions,
                window_size=window_size or self.config.window_size,
                halo_size=halo,
                batch_size=batch_size,
            )


def zero_padding(features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Set padded tokens of `[B, W, *]` to zero."""
    return features if attention_mask is None else features.masked_fill((attention_mask == 0)[..., None], 0.0)


__all__ = ["WeightAutoencoder"]
