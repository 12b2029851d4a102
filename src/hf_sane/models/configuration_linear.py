"""Configuration of the linear code of weight tokens."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_sane import CheckedConfig

Grouping = Literal["all", "kind", "layer", "position", "network"]


@strict
class LinearCodeConfig(CheckedConfig):
    """Configuration of a [`LinearCode`].

    Args:
        token_dim (`int`, *optional*, defaults to 289): Number of scalars per weight token, `D`.
        latent_dim (`int`, *optional*, defaults to 64): Number of latents per token, or per network, `Z`.
        grouping (`str`, *optional*, defaults to `"kind"`):
            Which tokens share principal components: `"all"` tokens, those of all layers of a `"kind"` (convolutions,
            linear maps, ...), those of a `"layer"`, or those at a `"position"` of the network. With `"network"`, the
            components are those of whole networks.
        groups (`list[int]`, *optional*, defaults to `[0]`):
            Group of each layer, by its index, or of each token with `"position"` and `"network"`; not used with
            `"all"`.
        window_size (`int`, *optional*, defaults to 256): Number of tokens per window, which does not affect results.

    Raises:
        TypeError: If a key is not a field.
        StrictDataclassFieldValidationError: If a value has the wrong type or is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range.
    """

    model_type = "sane_linear"

    token_dim: int = 289
    latent_dim: int = 64
    grouping: Grouping = "kind"
    groups: list[int] | tuple[int, ...] = (0,)
    window_size: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        self.groups = list(self.groups)
        super().__post_init__(**kwargs)

    @property
    def num_groups(self) -> int:
        """Number of groups, `G`."""
        return max(self.groups) + 1

    @property
    def num_latents(self) -> int | None:
        """Number of latents of a network: one if they encode whole networks; `None` for one per token."""
        return 1 if self.grouping == "network" else None

    def validate_sizes(self) -> None:
        """Check that sizes are positive, and that groups are numbers from 0."""
        for name in ("token_dim", "latent_dim", "window_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.groups or min(self.groups) < 0:
            raise ValueError(f"expected at least one group, all >= 0, got {list(self.groups)[:10]}")


__all__ = ["LinearCodeConfig"]
