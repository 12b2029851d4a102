"""A new architecture for zoos: a configuration, a network, and a name."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from hf_sane.architectures.configuration_zoo import Initialization, ZooConfig
from hf_sane.architectures.modeling_zoo import ZooPreTrainedModel
from hf_sane.architectures.presets import register_preset


@strict
class GatedMLPConfig(ZooConfig):
    """A perceptron with gated units."""

    model_type = "gated_mlp"
    num_channels: int = 1
    image_size: int = 8
    hidden_size: int = 6
    initialization: Initialization = "kaiming_uniform"


class GatedMLP(ZooPreTrainedModel):
    """`classifier(sigmoid(gate x) * (value x))`."""

    config_class = GatedMLPConfig

    def __init__(self, config: GatedMLPConfig) -> None:
        super().__init__(config)
        size = config.num_channels * config.image_size**2
        self.gate = nn.Linear(size, config.hidden_size)
        self.value = nn.Linear(size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_classes)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """Logits of images `[B, C, H, W]`."""
        pixels = pixel_values.flatten(1)
        return ImageClassifierOutput(logits=self.classifier(self.gate(pixels).sigmoid() * self.value(pixels)))


def gated_mlp(*, num_channels: int, num_labels: int, image_size: int, **settings: Any) -> GatedMLPConfig:
    """Configuration for images of a size."""
    return GatedMLPConfig(num_channels=num_channels, num_labels=num_labels, image_size=image_size, **settings)


register_preset("gated_mlp", gated_mlp, GatedMLPConfig, GatedMLP)
