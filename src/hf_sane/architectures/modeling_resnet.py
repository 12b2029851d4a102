"""ResNets for small images, with a 3x3 stem, option-A or projection shortcuts, and basic or bottleneck blocks."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_zoo import CIFARResNetConfig
from .modeling_zoo import ZooPreTrainedModel


class IdentityShortcut(nn.Module):
    """Option A of He et al. 2015: every `stride`-th pixel, with new zero channels, half before and half after the old.

    If the number of new channels is odd, the larger half comes after.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, values: Tensor) -> Tensor:
        """Map `[B, in_channels, h, w]` to `[B, out_channels, ceil(h / stride), ceil(w / stride)]`."""
        return F.pad(values[:, :, :: self.stride, :: self.stride], self.padding)


class ResNetBlock(nn.Module):
    """Computes `relu(F(x) + shortcut(x))`, where `F` is two 3x3 convolutions or a bottleneck, with batch norm.

    A bottleneck consists of convolutions of 1x1, 3x3 and 1x1. Module names are torchvision's (`conv1`, `bn1`, ...,
    `downsample.0`, `downsample.1`), and so is the position of the stride, in the 3x3 convolution of a bottleneck.
    """

    def __init__(
        self, config: CIFARResNetConfig, in_channels: int, width: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        self.num_convolutions = 2 if config.block == "basic" else 3
        kernels, strides = ((3, 3), (stride, 1)) if config.block == "basic" else ((1, 3, 1), (1, stride, 1))
        outputs = (*(width for _ in kernels[1:]), out_channels)
        inputs = (in_channels, *outputs)
        for i in range(self.num_convolutions):
            convolution = nn.Conv2d(inputs[i], outputs[i], kernels[i], strides[i], kernels[i] // 2, bias=False)
            self.add_module(f"conv{i + 1}", convolution)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(outputs[i]))
        self.downsample: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.downsample = nn.Identity()
        elif config.shortcut == "identity":
            self.downsample = IdentityShortcut(in_channels, out_channels, stride)
        else:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, values: Tensor) -> Tensor:
        """Map `[B, in_channels, h, w]` to `[B, out_channels, ceil(h / stride), ceil(w / stride)]`."""
        shortcut = self.downsample(values)
        for i in range(1, self.num_convolutions + 1):
            values = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(values))
            values = F.relu(values + shortcut if i == self.num_convolutions else values)
        return values


class CIFARResNetForImageClassification(ZooPreTrainedModel):
    """ResNet-20/32/44/56/110 for CIFAR and ResNet-18/34/50/101/152 with a 3x3 stem, and names as in torchvision.

    In training mode, running statistics are updated in place, including those passed by `torch.func.functional_call`
    and stacked over models under `torch.vmap`.
    """

    config: CIFARResNetConfig

    def __init__(self, config: CIFARResNetConfig) -> None:
        super().__init__(config)
        channels = config.stage_channels
        self.conv1 = nn.Conv2d(config.num_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), start=1):
            inputs = (channels[stage - 1], *(channels[stage] for _ in range(depth - 1)))
            strides = (1 if stage == 1 else 2, *(1 for _ in range(depth - 1)))
            blocks = (
                ResNetBlock(config, c_in, width, channels[stage], stride)
                for c_in, stride in zip(inputs, strides, strict=True)
            )
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels[-1], config.num_classes)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Classify images of any size.

        Args:
            pixel_values: `[B, C, height, width]` float.
            labels: `[B]` int64 class indices, for the loss.

        Returns:
            `logits` `[B, K]`; `loss` (mean cross-entropy) if labels are given.

        Raises:
            ValueError: If the number of channels differs from the configuration.
        """
        self.check_images(pixel_values)
        values = F.relu(self.bn1(self.conv1(pixel_values)))
        for stage in range(1, len(self.config.depths) + 1):
            values = self.get_submodule(f"layer{stage}")(values)
        return self.classification_output(self.fc(values.mean(dim=(2, 3))), labels)


__all__ = ["CIFARResNetForImageClassification"]
