"""Networks as ONNX files, which run without PyTorch."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import logits_of

ONNX_FILE = "model.onnx"
INPUT, OUTPUT = "pixel_values", "logits"


def require_onnx() -> None:
    """Raise an `ImportError` if a package that the export needs is missing."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ImportError(f"an ONNX file needs {' and '.join(missing)}: pip install 'hf_sane[onnx]'")


def export_onnx(network: nn.Module, pixel_values: Tensor, path: Path) -> None:
    """Export a network to an ONNX file that takes batches of any size, and check the file's structure.

    Args:
        network: Network, which is in evaluation mode during the export.
        pixel_values: `[B, C, H, W]` example images, `B` >= 2: an axis of size 1 would become a constant.
        path: New file with input `pixel_values` and output `logits`.

    Raises:
        ImportError: If onnx or onnxscript is missing.
    """
    require_onnx()
    import onnx

    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it lists torchvision operators, which are not needed
    try:
        with modes_kept(network), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch calls its own deprecated functions
            network.eval()
            torch.onnx.export(
                _Logits(network).eval(),
                (pixel_values,),
                path,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(before)
    onnx.checker.check_model(path)


class _Logits(nn.Module):
    """A network that returns its logits as a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Any:
        return logits_of(self.network(pixel_values))
