"""Initialise the layers of zoo networks."""

import math

from torch import nn
from transformers import initialization as init


def initialize_layer(layer: nn.Linear | nn.Conv2d, scheme: str) -> None:
    """Draw the weights of a layer from the global random generator.

    With fan-in `n` (number of inputs of one output channel):

    | scheme | weight | bias |
    |---|---|---|
    | `uniform` | `U(-1/sqrt(n), 1/sqrt(n))` (PyTorch's default) | the same |
    | `normal` | `N(0, 1/n)` (LeCun 1998) | 0 |
    | `kaiming_uniform` | `U(-sqrt(6/n), sqrt(6/n))` (He et al. 2015, arXiv:1502.01852) | 0 |
    | `kaiming_normal` | `N(0, 2/n)` (same) | 0 |

    The ModelZooDataset uses the same four names, but its `uniform` and `normal` are PyTorch's `U(0, 1)` and `N(0, 1)`,
    regardless of the fan-in; networks drawn that way saturate and many of them never train.

    Args:
        layer: Layer with `weight` `[channels, ...]`, which is changed in place through `transformers.initialization`,
            without changing tensors from a checkpoint.
        scheme: One of the four names above.

    Raises:
        ValueError: If the name is unknown.
    """
    fan_in = layer.weight[0].numel()
    if scheme == "uniform":
        bound = 1 / math.sqrt(fan_in)
        init.uniform_(layer.weight, -bound, bound)
    elif scheme == "normal":
        init.normal_(layer.weight, mean=0.0, std=1 / math.sqrt(fan_in))
    elif scheme == "kaiming_uniform":
        bound = math.sqrt(6 / fan_in)
        init.uniform_(layer.weight, -bound, bound)
    elif scheme == "kaiming_normal":
        init.normal_(layer.weight, mean=0.0, std=math.sqrt(2 / fan_in))
    else:
        raise ValueError(f"initialization must be uniform, normal, kaiming_uniform or kaiming_normal, got {scheme!r}")
    if layer.bias is not None and scheme == "uniform":
        init.uniform_(layer.bias, -bound, bound)
    elif layer.bias is not None:
        init.zeros_(layer.bias)


__all__: list[str] = []  # used only by the networks in this folder
