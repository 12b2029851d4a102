"""Configurations of networks in zoos: small CNNs, MLPs and ResNets for small images."""

from dataclasses import fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

Activation = Literal["tanh", "relu", "gelu", "sigmoid"]
Initialization = Literal["uniform", "normal", "kaiming_uniform", "kaiming_normal"]
"""Distributions of initial weights."""
Sizes = list[int] | tuple[int, ...]

BOTTLENECK_EXPANSION = 4  # output channels of a bottleneck block per inner channel
DEFAULT_NUM_LABELS = 10
# Keys other than fields that Transformers writes to config.json or passes through from_pretrained.
TRANSFORMERS_KEYS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "torch_dtype",
    }
)


@strict
class ZooConfig(PreTrainedConfig):
    """Base class of the configurations, with strict keys, tuples of sizes, and ten classes by default.

    `PreTrainedConfig` accepts any keyword as an attribute and thus ignores misspelt ones. This class raises an error
    for keys that are neither fields nor keys of Transformers.

    Raises:
        TypeError: If a key is unknown.
        ValueError: If `num_labels` contradicts named labels in `id2label`.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        known = {field.name for field in fields(self)}
        for key in kwargs:
            if key in TRANSFORMERS_KEYS or key.startswith("_"):
                continue
            close = get_close_matches(key, known | {"num_labels"}, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"its fields are {', '.join(sorted(known))}"
            raise TypeError(f"{type(self).__name__} has no field {key!r}; {remedy}")
        for name in known:
            if isinstance(value := getattr(self, name), list) and name != "architectures":
                setattr(self, name, tuple(value))
        self._settle_labels(kwargs)
        super().__post_init__(**kwargs)

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier, `K`."""
        return len(self.id2label or ())

    def to_diff_dict(self) -> dict[str, Any]:
        """Serialise values that differ from the defaults, and always the labels, of which Transformers omits pairs."""
        return {**super().to_diff_dict(), "id2label": self.id2label, "label2id": self.label2id}

    def _settle_labels(self, kwargs: dict[str, Any]) -> None:
        """Prefer `num_labels` to generated names, since `from_pretrained(folder, num_labels=...)` passes both."""
        if self.id2label is None:
            kwargs.setdefault("num_labels", DEFAULT_NUM_LABELS)
            return
        num_labels = kwargs.get("num_labels")
        if num_labels is None or num_labels == len(self.id2label):
            return
        if any(name != f"LABEL_{index}" for index, name in self.id2label.items()):
            raise ValueError(
                f"num_labels={num_labels} contradicts the {len(self.id2label)} names in id2label; pass id2label and "
                "label2id for the new classes"
            )
        self.id2label = None
        self.label2id = None

    def _require_at_least(self, minimum: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            values = value if isinstance(value, tuple | list) else (value,)
            if any(entry < minimum for entry in values):
                raise ValueError(f"{name} must be at least {minimum}, got {value}")

    def validate_labels(self) -> None:
        """Check that there is at least one class."""
        if self.num_classes < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_classes}")


def _check_dropout(rate: float | None) -> None:
    if rate is not None and not 0 <= rate < 1:
        raise ValueError(f"dropout must lie in [0, 1) or be None (no dropout in the graph), got {rate}")


@strict
class CNNConfig(ZooConfig):
    """Configuration of a [`CNNForImageClassification`] with unpadded convolutions, then fully connected layers.

    Each convolution is followed by max pooling, the activation and dropout; each hidden layer is followed by the
    activation and dropout. The defaults are CNN-s, the smaller network of the ModelZooDataset (2,464 parameters).

    Args:
        image_size (`int`, *optional*, defaults to 28): Height and width of the input.
        num_channels (`int`, *optional*, defaults to 1): Number of input channels.
        conv_channels (`tuple[int, ...]`, *optional*, defaults to `(8, 6, 4)`): Output channels of each convolution.
        kernel_sizes (`tuple[int, ...]`, *optional*, defaults to `(5, 5, 2)`): Kernel size of each convolution.
        pool_sizes (`tuple[int, ...]`, *optional*, defaults to `(2, 2, 1)`): Size of max pooling after each
            convolution; 1 for none.
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(20,)`): Widths of the hidden fully connected layers.
        activation (`str`, *optional*, defaults to `"tanh"`): `"tanh"`, `"relu"`, `"gelu"` or `"sigmoid"`.
        dropout (`float`, *optional*, defaults to 0.0):
            Probability of setting an activation to zero in training. It can be overridden per call (see
            [`CNNForImageClassification`]); `None` disables dropout and draws no random numbers.
        initialization (`str`, *optional*, defaults to `"uniform"`): See [`initialize_layer`].

    Raises:
        TypeError: If a key is not a field.
        StrictDataclassFieldValidationError: If a value has the wrong type or is not among the choices.
        StrictDataclassClassValidationError: If sizes are inconsistent or values are out of range.
    """

    model_type = "sane_cnn"

    image_size: int = 28
    num_channels: int = 1
    conv_channels: Sizes = (8, 6, 4)
    kernel_sizes: Sizes = (5, 5, 2)
    pool_sizes: Sizes = (2, 2, 1)
    hidden_sizes: Sizes = (20,)
    activation: Activation = "tanh"
    dropout: float | int | None = 0.0
    initialization: Initialization = "uniform"

    @property
    def feature_map_size(self) -> int:
        """Height and width after the last pooling layer."""
        size = self.image_size
        for kernel_size, pool_size in zip(self.kernel_sizes, self.pool_sizes, strict=True):
            size = (size - kernel_size + 1) // pool_size
        return size

    @property
    def flattened_size(self) -> int:
        """Number of inputs of the first fully connected layer: channels times pixels of the last convolution."""
        return self.conv_channels[-1] * self.feature_map_size**2

    def validate_sizes(self) -> None:
        """Check that each convolution has one kernel and one pooling size, and that the feature map is not empty."""
        self._require_at_least(
            1, "image_size", "num_channels", "conv_channels", "kernel_sizes", "pool_sizes", "hidden_sizes"
        )
        counts = {name: len(getattr(self, name)) for name in ("conv_channels", "kernel_sizes", "pool_sizes")}
        if len(set(counts.values())) != 1 or not self.conv_channels:
            raise ValueError(f"expected at least one convolution, each with a kernel and a pool size, got {counts}")
        if self.feature_map_size < 1:
            raise ValueError(
                f"an image of {self.image_size} pixels is too small for kernels {tuple(self.kernel_sizes)} and "
                f"pooling {tuple(self.pool_sizes)}: no pixels remain; use smaller kernels or less pooling"
            )

    def validate_dropout(self) -> None:
        """Check that dropout is a probability below one, or `None`."""
        _check_dropout(self.dropout)


@strict
class MLPConfig(ZooConfig):
    """Configuration of an [`MLPForImageClassification`] with flattened images, hidden layers and a classifier.

    Args:
        image_size (`int`, *optional*, defaults to 28): Height and width of the input.
        num_channels (`int`, *optional*, defaults to 1): Number of input channels.
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(20,)`): Widths of the hidden layers; may be empty.
        activation (`str`, *optional*, defaults to `"tanh"`): `"tanh"`, `"relu"`, `"gelu"` or `"sigmoid"`.
        dropout (`float`, *optional*, defaults to 0.0): As in [`CNNConfig`].
        initialization (`str`, *optional*, defaults to `"uniform"`): See [`initialize_layer`].

    Raises:
        TypeError: If a key is not a field.
        StrictDataclassFieldValidationError: If a value has the wrong type or is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range.
    """

    model_type = "sane_mlp"

    image_size: int = 28
    num_channels: int = 1
    hidden_sizes: Sizes = (20,)
    activation: Activation = "tanh"
    dropout: float | int | None = 0.0
    initialization: Initialization = "uniform"

    @property
    def flattened_size(self) -> int:
        """Number of inputs of the first layer: pixels times channels."""
        return self.num_channels * self.image_size**2

    def validate_sizes(self) -> None:
        """Check that sizes are positive."""
        self._require_at_least(1, "image_size", "num_channels", "hidden_sizes")

    def validate_dropout(self) -> None:
        """Check that dropout is a probability below one, or `None`."""
        _check_dropout(self.dropout)


@strict
class CIFARResNetConfig(ZooConfig):
    """Configuration of a [`CIFARResNetForImageClassification`], a ResNet with a 3x3 stem and no initial pooling.

    The first stage keeps the resolution, and each later one halves it. The defaults are ResNet-20 (He et al. 2015,
    arXiv:1512.03385, section 4.2).

    Args:
        depths (`tuple[int, ...]`, *optional*, defaults to `(3, 3, 3)`): Number of blocks per stage.
        widths (`tuple[int, ...]`, *optional*, defaults to `(16, 32, 64)`):
            Inner channels per stage; a bottleneck block outputs four times as many.
        block (`str`, *optional*, defaults to `"basic"`): `"basic"` for two 3x3 convolutions, or `"bottleneck"` for
            1x1, 3x3 and 1x1.
        shortcut (`str`, *optional*, defaults to `"identity"`):
            Shortcut of blocks that change the shape: `"identity"` (option A of the paper) takes every second pixel and
            pads channels with zeros, without parameters; `"projection"` (option B) is a strided 1x1 convolution with
            batch norm.
        num_channels (`int`, *optional*, defaults to 3): Number of input channels.
        initialization (`str`, *optional*, defaults to `"kaiming_normal"`): See [`initialize_layer`].

    Raises:
        TypeError: If a key is not a field.
        StrictDataclassFieldValidationError: If a value has the wrong type or is not among the choices.
        StrictDataclassClassValidationError: If sizes are inconsistent.
    """

    model_type = "sane_resnet"

    depths: Sizes = (3, 3, 3)
    widths: Sizes = (16, 32, 64)
    block: Literal["basic", "bottleneck"] = "basic"
    shortcut: Literal["identity", "projection"] = "identity"
    num_channels: int = 3
    initialization: Initialization = "kaiming_normal"

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the residual stream after the stem and after each stage."""
        expansion = BOTTLENECK_EXPANSION if self.block == "bottleneck" else 1
        return (self.widths[0], *(width * expansion for width in self.widths))

    def validate_sizes(self) -> None:
        """Check that there are as many widths as depths, and that zero-padded shortcuts do not reduce channels."""
        self._require_at_least(1, "depths", "widths", "num_channels")
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(
                f"expected at least one stage, each with a depth and a width, got {self.depths} and {self.widths}"
            )
        channels = self.stage_channels
        if self.shortcut == "identity" and any(b < a for a, b in pairwise(channels)):
            raise ValueError(
                f"shortcut='identity' pads channels and cannot drop them, got stages of {channels} channels; use "
                "shortcut='projection'"
            )


__all__ = ["CIFARResNetConfig", "CNNConfig", "MLPConfig", "ZooConfig"]
