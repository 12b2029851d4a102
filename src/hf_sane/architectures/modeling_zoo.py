"""Small convolutional and fully connected classifiers, and the base class of all zoo networks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_zoo import CNNConfig, MLPConfig, ZooConfig
from .initialization_zoo import initialize_layer

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


def drop(values: Tensor, rate: Tensor) -> Tensor:
    """Zero each value with probability `rate` and scale the rest by `1 / (1 - rate)`.

    `torch.nn.functional.dropout` takes a Python number. Here, the rate is a 0-d tensor, so that networks with
    different rates run in one `torch.vmap` (`randomness="different"`).

    Args:
        values: `[...]` float.
        rate: 0-d float in [0, 1).

    Returns:
        Shape and dtype of `values`.
    """
    keep = torch.rand_like(values) >= rate
    return torch.where(keep, values / (1 - rate), 0)


class ZooPreTrainedModel(PreTrainedModel):
    """Base class of zoo networks, with loss, output and initialisation.

    Values are initialised only in `_init_weights`, since those set in `__init__` would be lost on the meta device.
    """

    config: ZooConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities = "image"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            initialize_layer(module, self.config.initialization)
        elif isinstance(module, nn.BatchNorm2d):
            starts = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
            for name, start in starts.items():
                init.constant_(getattr(module, name), start)

    def check_images(self, pixel_values: Tensor) -> None:
        """Raise an error for images that do not fit the configuration.

        Args:
            pixel_values: `[B, C, height, width]`.

        Raises:
            ValueError: If the number of axes, the channels or the size differ from the configuration.
        """
        size = getattr(self.config, "image_size", None)
        expected = (self.config.num_channels, *((size, size) if size else pixel_values.shape[2:]))
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            shown = ", ".join(map(str, expected if size else (self.config.num_channels, "height", "width")))
            raise ValueError(
                f"expected pixel_values [batch, {shown}], got {list(pixel_values.shape)}; convert the images to this "
                "number of channels and size (--image-channels, --image-size)"
            )

    def classification_output(self, logits: Tensor, labels: Tensor | None) -> ImageClassifierOutputWithNoAttention:
        """Wrap logits `[B, K]`, with the mean cross-entropy if labels `[B]` (int64) are given."""
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class DropoutModel(ZooPreTrainedModel):
    """A network with one dropout rate, stored in the non-persistent 0-d buffer `dropout_rate`.

    As a buffer, it can be set for one call by `torch.func.functional_call(model, {..., "dropout_rate": rate}, ...)`,
    and for each network under `torch.vmap`. It is restored from the configuration after loading.
    """

    config: CNNConfig | MLPConfig
    dropout_rate: Tensor

    def __init__(self, config: CNNConfig | MLPConfig) -> None:
        super().__init__(config)
        self.register_buffer("dropout_rate", torch.tensor(float(config.dropout or 0.0)), persistent=False)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.dropout_rate, float(self.config.dropout or 0.0))

    def activate(self, values: Tensor) -> Tensor:
        """Apply the activation, then dropout in training mode."""
        values = ACTIVATIONS[self.config.activation](values)
        if not self.training or self.config.dropout is None:
            return values
        return drop(values, self.dropout_rate)

    def add_fully_connected(self) -> None:
        """Add hidden layers and classifier, which are the last layers of these networks."""
        config = self.config
        widths = (config.flattened_size, *config.hidden_sizes)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, config.hidden_sizes, strict=False))
        self.classifier = nn.Linear(widths[-1], config.num_classes)

    def fully_connected_output(self, values: Tensor, labels: Tensor | None) -> ImageClassifierOutputWithNoAttention:
        """Apply hidden layers and classifier to values `[B, flattened_size]`; labels as in `forward`."""
        for layer in self.hidden:
            values = self.activate(layer(values))
        return self.classification_output(self.classifier(values), labels)


class CNNForImageClassification(DropoutModel):
    """Unpadded convolutions, max pooling and fully connected layers, such as CNN-s and CNN-l.

    Every convolution is followed by pooling, activation and dropout; every hidden layer is followed by activation and
    dropout. Input features of the first fully connected layer are channel-major: channel `c` owns the contiguous block
    of its pixels.
    """

    config: CNNConfig

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        channels = (config.num_channels, *config.conv_channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c_in, c_out, kernel_size)
            for c_in, c_out, kernel_size in zip(channels, config.conv_channels, config.kernel_sizes, strict=False)
        )
        self.add_fully_connected()
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: `[B, C, image_size, image_size]` float.
            labels: `[B]` int64 class indices, for the loss.

        Returns:
            `logits` `[B, K]`; `loss` (mean cross-entropy) if labels are given.

        Raises:
            ValueError: If the images do not fit the configuration.
        """
        self.check_images(pixel_values)
        values = pixel_values
        for convolution, pool_size in zip(self.convolutions, self.config.pool_sizes, strict=True):
            values = convolution(values)
            if pool_size > 1:
                values = F.max_pool2d(values, pool_size)
            values = self.activate(values)
        return self.fully_connected_output(values.flatten(1), labels)


class MLPForImageClassification(DropoutModel):
    """Flattened images, fully connected hidden layers with activation and dropout, and a classifier."""

    config: MLPConfig

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.add_fully_connected()
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: `[B, C, image_size, image_size]` float.
            labels: `[B]` int64 class indices, for the loss.

        Returns:
            `logits` `[B, K]`; `loss` (mean cross-entropy) if labels are given.

        Raises:
            ValueError: If the images do not fit the configuration.
        """
        self.check_images(pixel_values)
        return self.fully_connected_output(pixel_values.flatten(1), labels)


__all__ = ["CNNForImageClassification", "MLPForImageClassification", "ZooPreTrainedModel"]
