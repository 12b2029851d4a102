"""Augment weight tokens by multiplicative noise and erasing, with an explicit random generator."""

import torch
from torch import Tensor


def multiplicative_noise(
    tokens: Tensor, weight_mask: Tensor, *, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Multiply every real weight by an independent factor from a normal distribution around one.

    `t' = t * (1 + std * eps)`, `eps ~ N(0, 1)`, as in the training of SANE with `std` 0.1 (arXiv:2406.09997). If
    tokens are normalised, weights at the mean of their layer are unchanged.

    Args:
        tokens: `[..., D]` float.
        weight_mask: `[..., D]` bool, broadcastable to `tokens`; other entries are unchanged.
        std: Standard deviation of the factor, >= 0.
        generator: Source of randomness on `tokens.device`; the global one if `None`.

    Returns:
        Shape and dtype of `tokens`; a copy.

    Raises:
        ValueError: If `std` is negative or not finite.
    """
    if not 0 <= std < float("inf"):
        raise ValueError(f"std must be a finite number >= 0, got {std}")
    noise = torch.randn(tokens.shape, generator=generator, dtype=tokens.dtype, device=tokens.device)
    return torch.addcmul(tokens, tokens * weight_mask, noise, value=std)


def random_token_mask(
    shape: tuple[int, ...],
    *,
    probability: float,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose tokens independently, for [`erase_tokens`].

    Args:
        shape: `(..., W)`.
        probability: Expected share of chosen tokens, in [0, 1].
        attention_mask: `[..., W]` bool, `True` for real tokens; others are never chosen. All are real if `None`.
        generator: Source of randomness (on the device of `attention_mask`, if given); the global one if `None`.

    Returns:
        `[..., W]` bool.

    Raises:
        ValueError: If `probability` is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    device = None if attention_mask is None else attention_mask.device
    chosen = torch.rand(shape, generator=generator, device=device) < probability
    return chosen if attention_mask is None else chosen & attention_mask


def erase_tokens(tokens: Tensor, erased: Tensor) -> Tensor:
    """Set whole tokens to zero, which is the mean of their layer if tokens are normalised.

    Args:
        tokens: `[..., W, D]` float.
        erased: `[..., W]` bool, `True` for the tokens to erase.

    Returns:
        Shape and dtype of `tokens`; a copy.

    Raises:
        ValueError: If `erased` does not have the leading shape of `tokens`, or is not bool.
    """
    if erased.shape != tokens.shape[:-1] or erased.dtype != torch.bool:
        raise ValueError(
            f"erased must be bool {list(tokens.shape[:-1])}, got {erased.dtype} {list(erased.shape)} for tokens "
            f"{list(tokens.shape)}"
        )
    return tokens.masked_fill(erased.unsqueeze(-1), 0)
