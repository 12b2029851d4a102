"""Configuration of the SANE autoencoder, validated whenever a value is set."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Keys that Transformers itself (including `Trainer`) puts into `config.json` or passes through `from_pretrained`.
TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "base_model_revision",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
    "use_cache",
}


class CheckedConfig(PreTrainedConfig):
    """Base class of configurations that raise errors for unknown keys and other model types."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a configuration from the result of `to_dict`.

        Raises:
            ValueError: If it is the configuration of another model type.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(f"expected model_type {cls.model_type!r}, got {str(kind)[:80]!r}")
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        names = {field.name for field in fields(self)}
        for key in kwargs:
            if key not in TRANSFORMERS_KEYS and not key.startswith("_"):
                close = get_close_matches(key, names, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"its fields are {', '.join(sorted(names))}"
                raise TypeError(f"{type(self).__name__} has no field {key!r}; {remedy}")
        super().__post_init__(**kwargs)


@strict
class SANEConfig(CheckedConfig):
    """Configuration of a [`SANEModel`].

    Axis letters: `W` tokens in a window, `D` scalars of a token, `H` width of the residual stream, `Z` latent scalars
    of a token. Unknown keys and values of the wrong type raise an error, also on later assignment.

    Args:
        token_dim (`int`, *optional*, defaults to 289): Number of scalars per weight token, `D`.
        hidden_size (`int`, *optional*, defaults to 128): Width of the residual stream, `H`; must be even and a
            multiple of the heads.
        latent_dim (`int`, *optional*, defaults to 64): Number of scalars per latent, `Z`.
        num_latents (`int`, *optional*):
            Number of latents of a whole network. By default, each token has a latent, as in the paper. Networks must
            be of one layout and fit in a window, and they need `"linear_path"`.
        latent_reader (`str`, *optional*, defaults to `"components"`):
            How latents of whole networks are read and written, beyond a linear code. `"components"`: by perceptrons,
            from principal components of whole networks, without attention. `"attention"`: by cross-attention, from
            tokens.
        num_components (`int`, *optional*, defaults to 256):
            Number of principal components of whole networks, `R`; at least `num_latents * latent_dim`.
        num_hidden_layers (`int`, *optional*, defaults to 3): Number of blocks in each of encoder and decoder.
        num_attention_heads (`int`, *optional*, defaults to 8): Number of heads per block.
        intermediate_size (`int`, *optional*): Hidden width of the feed-forward branch; by default four times `H`.
        max_positions (`tuple[int, int, int]`, *optional*, defaults to `(1000, 100, 1000)`):
            Sizes of the three learned tables: token index, layer index, channel index. Not used by `"sinusoidal"`.
        position_embedding (`str`, *optional*, defaults to `"learned"`):
            `"learned"`: the paper's tables. `"sinusoidal"`: fixed sines, without a limit on positions.
        window_size (`int`, *optional*, defaults to 64):
            Number of tokens in a training window; determines the input width `W * Z` of the projection head.
        projection_dim (`int`, *optional*, defaults to 30): Number of outputs of the projection head.
        projection_output (`str`, *optional*, defaults to `"linear"`):
            Last activation of the projection head. With `"relu"`, as in the released code, projections cannot be
            negative, so that windows are never pushed beyond orthogonal, and dead units cannot recover. `"linear"`
            omits the activation, as is usual for contrastive heads.
        contrast_weight (`float`, *optional*, defaults to 0.05): `gamma` in `L = (1 - gamma) L_rec + gamma L_contrast`.
        temperature (`float`, *optional*, defaults to 0.1): Temperature of NT-Xent.
        reconstruction_target (`str`, *optional*, defaults to `"clean"`):
            `"clean"`: the window before noise. `"noisy"`: the input with noise, as in the released code.
        reconstruction_denominator (`str`, *optional*, defaults to `"weights"`):
            `"weights"`: mean over real weights. `"all"`: mean over all entries, including padding, as in the
            released code.
        loss_normalization (`str`, *optional*, defaults to `"none"`):
            Masked loss normalisation of MultiZoo-SANE: `"masked"` with statistics of the batch, as in its code, or
            `"masked_per_token"` with statistics of each token, as in its text.
        latent_noise (`float`, *optional*, defaults to 0.0):
            Standard deviation of Gaussian noise on the latents in training, in units of each latent dimension's root
            mean square over the batch.
        initialization (`str`, *optional*, defaults to `"linear_path"`): See [`SANEModel`]; `"paper"` is as
            published.
        hidden_dropout (`float`, *optional*, defaults to 0.0): Dropout on attention weights and on both residual
            branches.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the normal initialisation.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the layer norms.

    Raises:
        TypeError: If a key is not a field.
        StrictDataclassFieldValidationError: If a value has the wrong type or is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range, or values are inconsistent.
    """

    model_type = "sane"

    token_dim: int = 289
    hidden_size: int = 128
    latent_dim: int = 64
    num_latents: int | None = None
    latent_reader: Literal["components", "attention"] = "components"
    num_components: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    max_positions: list[int] | tuple[int, ...] = (1000, 100, 1000)
    position_embedding: Literal["learned", "sinusoidal"] = "learned"
    window_size: int = 64
    projection_dim: int = 30
    projection_output: Literal["linear", "relu"] = "linear"
    contrast_weight: float | int = 0.05
    temperature: float | int = 0.1
    reconstruction_target: Literal["clean", "noisy"] = "clean"
    reconstruction_denominator: Literal["weights", "all"] = "weights"
    loss_normalization: Literal["none", "masked", "masked_per_token"] = "none"
    latent_noise: float | int = 0.0
    initialization: Literal["linear_path", "paper"] = "linear_path"
    hidden_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.max_positions = tuple(self.max_positions)
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        """Check that counts and widths are positive and consistent."""
        for name in (
            "token_dim",
            "hidden_size",
            "latent_dim",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "window_size",
            "projection_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_latents is not None:
            self._validate_latents(self.num_latents)
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2 or self.hidden_size < 6:
            raise ValueError(
                "hidden_size must be even, at least 6 and a multiple of "
                f"num_attention_heads={self.num_attention_heads}, got {self.hidden_size}"
            )
        if len(self.max_positions) != 3 or min(self.max_positions) < 1:
            raise ValueError(
                f"max_positions needs three table sizes >= 1 (token, layer, channel), got {self.max_positions}"
            )

    def _validate_latents(self, num_latents: int) -> None:
        """Check the settings of latents of whole networks."""
        if num_latents < 1:
            raise ValueError(f"num_latents must be at least 1, or None for one per token, got {num_latents}")
        if self.num_components < num_latents * self.latent_dim:
            raise ValueError(
                f"num_components must be at least num_latents * latent_dim = {num_latents * self.latent_dim}, got "
                f"{self.num_components}"
            )
        if self.initialization != "linear_path":
            raise ValueError(
                f"num_latents requires initialization='linear_path', got {self.initialization!r}; leave one out"
            )

    def validate_ranges(self) -> None:
        """Check that weights, rates and scales are in range."""
        for name in ("contrast_weight", "hidden_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("temperature", "initializer_range", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.latent_noise >= 0:
            raise ValueError(f"latent_noise must not be negative, got {self.latent_noise}")


__all__ = ["SANEConfig"]
