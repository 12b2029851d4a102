"""Output of a SANE autoencoder."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


@dataclass
class SANEOutput(ModelOutput):
    """Output of a [`SANEModel`].

    Attributes:
        loss: Scalar `(1 - gamma) L_rec + gamma L_contrast`; without a second view, `L_rec`.
        reconstruction_loss: Scalar, the mean over views.
        contrastive_loss: Scalar; given only with a second view and `contrast_weight > 0`.
        latents: `[B, W, Z]` of the first view, zero at padded tokens.
        reconstruction: `[B, W, D]` of the first view, zero at padded tokens.
        projection: `[B, P]` of the first view; `None` if the window is longer than the projection head allows.
        second_latents: Like `latents`, for the second view.
        second_reconstruction: Like `reconstruction`, for the second view.
        hidden_states: Encoder states, `num_hidden_layers + 1` of `[B, W, H]` (`[2 B, W, H]` with two views).
        attentions: Encoder attention weights `[B, heads, W, W]`; eager attention only.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    latents: Tensor | None = None
    reconstruction: Tensor | None = None
    projection: Tensor | None = None
    second_latents: Tensor | None = None
    second_reconstruction: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


__all__ = ["SANEOutput"]
