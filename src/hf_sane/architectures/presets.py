"""Named configurations from the literature, and functions that build a network from a configuration."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_zoo import CIFARResNetConfig, CNNConfig, MLPConfig, ZooConfig
from .modeling_resnet import CIFARResNetForImageClassification
from .modeling_zoo import CNNForImageClassification, MLPForImageClassification, ZooPreTrainedModel

MODEL_CLASSES: dict[type[ZooConfig], type[ZooPreTrainedModel]] = {
    CNNConfig: CNNForImageClassification,
    MLPConfig: MLPForImageClassification,
    CIFARResNetConfig: CIFARResNetForImageClassification,
}
# Blocks per stage: the first five are from He et al. 2015, section 4.2 (three stages), others from its ImageNet table.
CIFAR_RESNET_DEPTHS = (20, 32, 44, 56, 110)
RESNET_STAGES = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def register_preset(
    name: str,
    preset: Callable[..., ZooConfig],
    config_class: type[ZooConfig],
    model_class: type[ZooPreTrainedModel],
) -> None:
    """Register a family of networks for zoos, also with Transformers' Auto classes.

    Args:
        name: New name for the setting `architecture` of zoos.
        preset: Function that creates the configuration from `num_channels`, `num_labels`, `image_size` (if it has that
            parameter) and the `architecture_settings` of the zoo.
        config_class: Class of the configuration, with its own `model_type`.
        model_class: Class of the network.

    Raises:
        ValueError: If the name or the configuration class is taken.
    """
    if name in PRESETS or config_class in MODEL_CLASSES:
        raise ValueError(
            f"an architecture {name!r}, or one of {config_class.__name__}, exists already; register another one"
        )
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
    PRESETS[name], MODEL_CLASSES[config_class] = preset, model_class


def find_preset(name: str) -> Callable[..., ZooConfig]:
    """The function that creates configurations of a named architecture.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"expected architecture to be one of {', '.join(map(repr, PRESETS))}, got {name!r}{meant}")
    return PRESETS[name]


def build_model(config: ZooConfig) -> ZooPreTrainedModel:
    """Build the network of a configuration, initialised from the global random generator.

    Raises:
        TypeError: If `config` is no configuration of zoo networks.
    """
    model_class = MODEL_CLASSES.get(type(config))
    if model_class is None:
        names = ", ".join(known.__name__ for known in MODEL_CLASSES)
        raise TypeError(f"expected one of {names}, got {type(config).__name__}")
    return model_class(config)


def mlp(*, num_channels: int = 1, image_size: int = 28, num_labels: int = 10, **settings: Any) -> MLPConfig:
    """An MLP with one hidden layer of 20 by default; `settings` are further fields of [`MLPConfig`]."""
    return MLPConfig(**{"num_channels": num_channels, "image_size": image_size, "num_labels": num_labels, **settings})


def cnn_s(*, num_channels: int = 1, image_size: int = 28, num_labels: int = 10, **settings: Any) -> CNNConfig:
    """CNN-s of the ModelZooDataset: 2,464 parameters for grey 28x28 images, 2,864 for colour.

    Three convolutions (8 of 5x5, 6 of 5x5, 4 of 2x2), 36 features, 20 hidden units.
    """
    return CNNConfig(**{"num_channels": num_channels, "image_size": image_size, "num_labels": num_labels, **settings})


def cnn_l(*, num_channels: int = 3, image_size: int = 32, num_labels: int = 10, **settings: Any) -> CNNConfig:
    """CNN-l of the ModelZooDataset: 10,853 parameters for colour 32x32 images.

    Three 3x3 convolutions (16, 32, 15), each halving the image, 60 features, 20 hidden units; GELU and Kaiming-uniform
    initialisation as in its CIFAR-10 zoo.
    """
    shape = {"conv_channels": (16, 32, 15), "kernel_sizes": (3, 3, 3), "pool_sizes": (2, 2, 2)}
    defaults = {**shape, "activation": "gelu", "initialization": "kaiming_uniform"}
    return CNNConfig(
        **{"num_channels": num_channels, "image_size": image_size, "num_labels": num_labels, **defaults, **settings}
    )


def cnn_digits(*, num_channels: int = 1, image_size: int = 8, num_labels: int = 10, **settings: Any) -> CNNConfig:
    """A CNN for 8x8 images such as scikit-learn's digits: 1,108 parameters.

    Three convolutions (8 of 3x3, 6 of 3x3, 8 of 2x2; pooling after the second), 8 features, 20 hidden units; GELU.
    """
    shape = {"conv_channels": (8, 6, 8), "kernel_sizes": (3, 3, 2), "pool_sizes": (1, 2, 1)}
    defaults = {**shape, "activation": "gelu", "initialization": "kaiming_uniform"}
    return CNNConfig(
        **{"num_channels": num_channels, "image_size": image_size, "num_labels": num_labels, **defaults, **settings}
    )


def cifar_resnet(depth: int = 20, *, width: int = 16, num_labels: int = 10, **settings: Any) -> CIFARResNetConfig:
    """ResNet-20, -32, -44, -56 or -110: `6 n + 2` layers, three stages of `width`, `2 width`, `4 width` channels.

    Shortcuts are option A (no parameters) by default.

    Raises:
        ValueError: If the depth is not one of these.
    """
    if depth not in CIFAR_RESNET_DEPTHS:
        raise ValueError(f"a CIFAR ResNet has one of {CIFAR_RESNET_DEPTHS} layers, got {depth}; see also resnet()")
    blocks = (depth - 2) // 6
    shape = {"depths": (blocks, blocks, blocks), "widths": (width, 2 * width, 4 * width)}
    return CIFARResNetConfig(**{**shape, "shortcut": "identity", "num_labels": num_labels, **settings})


def resnet(depth: int = 18, *, width: int = 64, num_labels: int = 10, **settings: Any) -> CIFARResNetConfig:
    """ResNet-18, -34, -50, -101 or -152 with a 3x3 stem: four stages of `width` to `8 width` inner channels.

    Shortcuts are projections by default.

    Raises:
        ValueError: If the depth is not one of these.
    """
    if depth not in RESNET_STAGES:
        raise ValueError(f"a ResNet has one of {tuple(RESNET_STAGES)} layers, got {depth}; see also cifar_resnet()")
    block, depths = RESNET_STAGES[depth]
    shape = {"depths": depths, "widths": (width, 2 * width, 4 * width, 8 * width), "block": block}
    return CIFARResNetConfig(**{**shape, "shortcut": "projection", "num_labels": num_labels, **settings})


# Choices for the setting `architecture` of zoos.
PRESETS: dict[str, Callable[..., ZooConfig]] = {
    preset.__name__: preset for preset in (cnn_digits, cnn_s, cnn_l, mlp, cifar_resnet, resnet)
}

__all__ = [
    "build_model",
    "cifar_resnet",
    "cnn_digits",
    "cnn_l",
    "cnn_s",
    "mlp",
    "register_preset",
    "resnet",
]
