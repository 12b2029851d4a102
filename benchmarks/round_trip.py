"""Encode and decode every checkpoint of a folder in both token layouts, and compare all floating tensors bit by bit.

    python benchmarks/round_trip.py --checkpoints FOLDER --output runs/benchmarks/round_trip.json

Reads every safetensors file and weights-only pickle in `FOLDER`. Each is also read as a stream, which must yield the
same tokens, and its header must yield the same layout. A hundred small files take seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from running import finish, new_parser, start
from torch import Tensor

from hf_sane.core._layer_kinds import possible_kinds
from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import PICKLE_SUFFIXES
from hf_sane.tokenization._checkpoints import load_state_dict
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._headers import read_meta_state_dict
from hf_sane.tokenization._token_stream import TokenStream

TOKEN_DIM = 288


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit (-0.0 is not 0.0)."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected))
    return torch.equal(one, other)


def failures(path: Path, state_dict: dict[str, Tensor]) -> list[str]:
    """Differences after a round trip in each layout; empty if there are none."""
    wrong = []
    for token_layout in ("rowwise", "dense"):
        extractor = SANEFeatureExtractor(token_dim=TOKEN_DIM, token_layout=token_layout, normalization="none")
        sequence = extractor.encode(path)
        decoded = extractor.decode(sequence.tokens, sequence.layout)
        wrong += [
            f"{token_layout}: {name}"
            for name, t in state_dict.items()
            if name not in decoded or not same_bits(decoded[name], t)
        ]
        tokenized = {
            spec.name for layer in sequence.layout.layers for spec in layer.tensors
        } | sequence.layout.aliases.keys()
        wrong += [
            f"{token_layout}: {name} is no token"
            for name, t in state_dict.items()
            if t.is_floating_point() and t.numel() and name not in tokenized
        ]
        streamed = torch.cat([block.tokens.to(sequence.tokens.dtype) for block in TokenStream(path, extractor)])
        if not torch.equal(streamed, sequence.tokens):
            wrong.append(f"{token_layout}: the stream differs")
        if extractor.lay_out(read_meta_state_dict(path)) != sequence.layout:
            wrong.append(f"{token_layout}: the headers give another layout")
    return wrong


def measure(folder: Path) -> dict[str, Any]:
    """All checkpoints in `folder` and its subfolders, by folder."""
    groups: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.name.endswith((".safetensors", *PICKLE_SUFFIXES))):
        state_dict = load_state_dict(path)
        floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
        shapes = {name: tuple(tensor.shape) for name, tensor in floating.items()}
        group = groups.setdefault(
            str(path.parent.relative_to(folder)),
            {"files": 0, "tensors": 0, "floating_tensors": 0, "bytes": 0, "uncertain_kinds": 0, "failures": {}},
        )
        group["files"] += 1
        group["tensors"] += len(state_dict)
        group["floating_tensors"] += len(floating)
        group["bytes"] += sum(tensor.numel() * tensor.itemsize for tensor in state_dict.values())
        group["uncertain_kinds"] += sum(len(possible_kinds(name, shapes)) > 1 for name in shapes)
        if wrong := failures(path, state_dict):
            group["failures"][path.name] = wrong
    if not groups:
        raise FileNotFoundError(f"expected safetensors files or pickles below {folder}, found none")
    counts = ("files", "tensors", "floating_tensors", "bytes", "uncertain_kinds")
    total = {name: sum(group[name] for group in groups.values()) for name in counts}
    return {"total": {**total, "failures": sum(len(group["failures"]) for group in groups.values())}, "groups": groups}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder with checkpoints, at any depth")
    arguments, record = start(parser, argv)
    report = measure(arguments.checkpoints)
    return finish(record, report, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="round_trip.py")
