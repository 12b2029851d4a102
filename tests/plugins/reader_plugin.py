"""A new reader: checkpoints as NumPy archives."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_sane.tokenization import register_format


def is_npz(head: bytes, path: Path) -> bool:
    """Whether a file is a NumPy archive."""
    return head.startswith(b"PK\x03\x04") and path.suffix == ".npz"


def read_npz(path: Path) -> Mapping[str, Tensor]:
    """Arrays by name."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


register_format("a NumPy archive of weights", is_npz, read_npz)
