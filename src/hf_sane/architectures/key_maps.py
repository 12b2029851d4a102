"""Key maps of checkpoints that others released."""

import re
from pathlib import Path

import torch
from torch import Tensor

from .configuration_zoo import CIFARResNetConfig
from .modeling_resnet import CIFARResNetForImageClassification
from .presets import cifar_resnet

# Per-channel mean and standard deviation the released CIFAR ResNets were trained with (ImageNet's), pixels in [0, 1].
RELEASED_PIXEL_MEAN = (0.485, 0.456, 0.406)
RELEASED_PIXEL_STD = (0.229, 0.224, 0.225)
# akamaster/pytorch_resnet_cifar10 -> ours. The files were saved from a DataParallel wrapper ("module."), call the
# classifier "linear" and hold neither shortcut parameters (option A) nor num_batches_tracked.
RELEASED_CIFAR_RESNET_KEYS = ((r"^module\.", ""), (r"^linear\.", "fc."))


def rename_released_keys(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply `RELEASED_CIFAR_RESNET_KEYS` to every key; tensors and their order stay.

    Raises:
        ValueError: If two keys would get the same name.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in RELEASED_CIFAR_RESNET_KEYS:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"two keys of the checkpoint map to {name!r}, the second is {key!r}")
        renamed[name] = tensor
    return renamed


def infer_released_config(state_dict: dict[str, Tensor]) -> CIFARResNetConfig:
    """Read depth, width and classes of a CIFAR ResNet from its (renamed) tensors.

    Raises:
        ValueError: If the tensors are not those of a three-stage ResNet of `6 n + 2` layers.
    """
    blocks = {key.split(".conv")[0] for key in state_dict if re.match(r"layer\d+\.\d+\.conv1\.weight$", key)}
    if not blocks or len(blocks) % 3 or not {"conv1.weight", "fc.weight"} <= state_dict.keys():
        raise ValueError(
            f"expected a CIFAR ResNet with conv1, layer1 to layer3 and fc, got {len(state_dict)} tensors, the first "
            f"being {sorted(state_dict)[:3]}"
        )
    width, num_labels = state_dict["conv1.weight"].shape[0], state_dict["fc.weight"].shape[0]
    return cifar_resnet(2 * len(blocks) + 2, width=width, num_labels=num_labels)


def load_released_cifar_resnet(path: str | Path) -> CIFARResNetForImageClassification:
    """Load a ResNet-20/32/44/56/110 of akamaster/pytorch_resnet_cifar10 (`.th` files) as one of our networks.

    Its images are CIFAR-10 in RGB, scaled to [0, 1], less `RELEASED_PIXEL_MEAN`, over `RELEASED_PIXEL_STD`.

    Args:
        path: File `{"state_dict": ..., "best_prec1": ...}`; read with `weights_only=True`, so it cannot run code.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If the file holds no `state_dict`, or not the tensors of such a network.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"expected a dictionary with 'state_dict' in {path}, got {type(content).__name__}")
    state_dict = rename_released_keys(content["state_dict"])
    model = CIFARResNetForImageClassification(infer_released_config(state_dict))
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit {model.config.depths}: missing {missing}, unexpected {unexpected}")
    return model.eval()


__all__ = ["RELEASED_PIXEL_MEAN", "RELEASED_PIXEL_STD", "load_released_cifar_resnet"]
