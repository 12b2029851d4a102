"""Key maps for published checkpoints."""

import re
from pathlib import Path

import torch
from torch import Tensor

from hf_sane.architectures.configuration_zoo import CIFARResNetConfig
from hf_sane.architectures.modeling_resnet import CIFARResNetForImageClassification
from hf_sane.architectures.presets import cifar_resnet
from hf_sane.records._errors import InvalidFileError, reading
from hf_sane.tokenization._pickles import unpickle
from hf_sane.tokenization._state_dicts import choose_state_dict

# Per-channel mean and standard deviation of pixels in [0, 1] for the released CIFAR ResNets (those of ImageNet).
RELEASED_PIXEL_MEAN = (0.485, 0.456, 0.406)
RELEASED_PIXEL_STD = (0.229, 0.224, 0.225)
# akamaster/pytorch_resnet_cifar10 -> ours. The files were saved from a DataParallel wrapper ("module."), call the
# classifier "linear" and hold neither shortcut parameters (option A) nor num_batches_tracked.
RELEASED_CIFAR_RESNET_KEYS = ((r"^module\.", ""), (r"^linear\.", "fc."))


REMEDY = "download it again from akamaster/pytorch_resnet_cifar10"


def rename_released_keys(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply `RELEASED_CIFAR_RESNET_KEYS` to every key; tensors and their order are not changed.

    Raises:
        ValueError: If two keys map to the same name.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in RELEASED_CIFAR_RESNET_KEYS:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"two keys of the checkpoint map to {name!r}, the second being {key!r}")
        renamed[name] = tensor
    return renamed


def infer_released_config(state_dict: dict[str, Tensor]) -> CIFARResNetConfig:
    """Read depth, width and classes of a CIFAR ResNet from its (renamed) tensors.

    Raises:
        ValueError: If the tensors do not form a three-stage ResNet with `6 n + 2` layers.
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

    Its inputs are CIFAR-10 images in RGB, scaled to [0, 1] and standardised with `RELEASED_PIXEL_MEAN` and
    `RELEASED_PIXEL_STD`.

    Args:
        path: File `{"state_dict": ..., "best_prec1": ...}`; read with `weights_only=True`, so it cannot run code.

    Returns:
        The network in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        InvalidFileError: If it holds no `state_dict`, or its tensors do not form such a network.
    """
    path = Path(path)
    content = unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InvalidFileError(
            path, expected="a dictionary with 'state_dict'", got=type(content).__name__, remedy=REMEDY
        )
    with reading(path, expected="a released CIFAR ResNet", remedy=REMEDY, also=(RuntimeError,)):
        state_dict = rename_released_keys(choose_state_dict(content["state_dict"], path))
        config = infer_released_config(state_dict)
        with torch.device("meta"):  # may claim any size until its tensors are compared
            wanted = CIFARResNetForImageClassification(config).state_dict()
        expected = {name: list(t.shape) for name, t in wanted.items() if not name.endswith("num_batches_tracked")}
        got = {
            name: list(tensor.shape) for name, tensor in state_dict.items() if name in expected or name not in wanted
        }
        if differing := sorted(name for name in expected | got if expected.get(name) != got.get(name)):
            raise ValueError(f"{differing[:3]} are missing, unexpected or of another shape for depths {config.depths}")
        model = CIFARResNetForImageClassification(config)
        model.load_state_dict(state_dict, strict=False)
    return model.eval()
