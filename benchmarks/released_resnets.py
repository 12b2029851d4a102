"""Accuracy of released CIFAR-10 ResNets, before and after an encode/decode round trip through the weight tokenizer.

    python benchmarks/released_resnets.py --checkpoints FOLDER --images cifar10_jpeg.npz --output released_resnets.json

`FOLDER` contains the `.th` files of akamaster/pytorch_resnet_cifar10; the images are an npz of JPEG bytes
(`test_jpeg`, `test_offsets`, `test_labels`). Because of JPEG, accuracies are about ten points lower than with the
original images. Every token layout is tried with and without standardisation (fitted on the network itself). About a
minute on one CPU core.
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from released_cifar import RELEASED_PIXEL_MEAN, RELEASED_PIXEL_STD, load_released_cifar_resnet
from running import finish, new_parser, start
from torch import Tensor, nn

from hf_sane.architectures.presets import build_model
from hf_sane.records._failures import run_script
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

VARIANTS = [(layout, normalization) for layout in ("rowwise", "dense") for normalization in ("none", "standardize")]


def load_test_images(path: Path, limit: int) -> tuple[Tensor, Tensor]:
    """The first `limit` test images `[B, 3, 32, 32]`, standardised as in the networks' training, and labels `[B]`."""
    with np.load(path) as archive:
        offsets, blob = archive["test_offsets"], archive["test_jpeg"].tobytes()
        labels = torch.from_numpy(archive["test_labels"][:limit].astype(np.int64))
    spans = pairwise(offsets[: limit + 1])
    pixels = [np.asarray(Image.open(io.BytesIO(blob[start:stop])).convert("RGB")) for start, stop in spans]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RELEASED_PIXEL_MEAN, RELEASED_PIXEL_STD))
    return (images - mean) / std, labels


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class is predicted correctly."""
    hits = [
        model(part).logits.argmax(1) == truth for part, truth in zip(images.split(250), labels.split(250), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


def measure(path: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy of one released file, and after a round trip in each layout and normalisation."""
    model = load_released_cifar_resnet(path)
    state = model.state_dict()
    report: dict[str, Any] = {
        "file": path.name,
        "parameters": model.num_parameters(),
        "accuracy": accuracy(model, images, labels),
        "round_trips": {},
    }
    for token_layout, normalization in VARIANTS:
        extractor = SANEFeatureExtractor(token_dim=288, token_layout=token_layout, normalization=normalization)
        extractor.fit([state])
        sequence = extractor.encode(state)
        decoded = extractor.decode(sequence.tokens, sequence.layout)
        restored = build_model(model.config).eval()
        restored.load_state_dict(decoded)
        report["round_trips"][f"{token_layout}_{normalization}"] = {
            "accuracy": accuracy(restored, images, labels),
            "tokens": len(sequence),
            "bit_exact": all(torch.equal(decoded[name], tensor) for name, tensor in state.items()),
            "largest_difference": max((decoded[name] - tensor).abs().max().item() for name, tensor in state.items()),
        }
    return report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder with the .th files")
    parser.add_argument("--images", type=Path, required=True, help="npz of JPEG bytes")
    parser.add_argument("--limit", type=int, default=2000, help="test images to use")
    arguments, record = start(parser, argv)
    paths = sorted(arguments.checkpoints.glob("*.th"))
    if not paths:
        raise FileNotFoundError(f"expected .th files in {arguments.checkpoints}, found none")
    images, labels = load_test_images(arguments.images, arguments.limit)
    report = {
        "test_images": len(labels),
        "networks": [measure(path, images, labels) for path in paths],
    }
    return finish(record, report, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="released_resnets.py")
