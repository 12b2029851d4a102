"""Scan a checkpoint of 6.7 billion weights: seconds, bytes read and peak anonymous memory.

    python benchmarks/scan_large.py --output runs/benchmarks/scan_large.json

The checkpoint has the tensors of a configuration of Llama, in float16 and in shards; their values are noise with a
different scale for each tensor. It is written to a temporary folder and deleted afterwards. Anonymous memory is
`RssAnon` of the whole process (Linux), sampled during the scan: mapped files do not count. About ten minutes and 14 GB
of disk.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start, watched_memory
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import hf_sane
from hf_sane.records._failures import run_script

SHARD_BYTES = 2 * 10**9
NOISE = 2**22  # values that are drawn once; each tensor repeats them from a different offset


def write_checkpoint(config: LlamaConfig, folder: Path) -> int:
    """Write a checkpoint of a configuration shard by shard; returns its bytes."""
    with torch.device("meta"):
        outlines = LlamaForCausalLM(config).half().state_dict()
    shards: list[dict[str, Tensor]] = [{}]
    for name, outline in outlines.items():
        if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + outline.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = outline
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(NOISE, np.float32)
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file_name, tensors, noise, generator)
        weight_map |= dict.fromkeys(tensors, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(x.nbytes for x in outlines.values())


def _write_shard(path: Path, tensors: Mapping[str, Tensor], noise: np.ndarray, generator: np.random.Generator) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, outline in tensors.items():
        place = [end, end := end + outline.nbytes]
        header[name] = {"dtype": "F16", "shape": list(outline.shape), "data_offsets": place}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for outline in tensors.values():
            values = np.roll(noise * generator.uniform(0.01, 0.03), generator.integers(NOISE)).astype(np.float16)
            for part in _repeated(values, outline.numel()):
                file.write(part.tobytes())


def _repeated(values: np.ndarray, count: int) -> Iterable[np.ndarray]:
    for first in range(0, count, len(values)):
        yield values[: count - first]


def measure(folder: Path, budget: str) -> dict[str, Any]:
    """Scan it once."""
    with watched_memory() as memory:
        result = hf_sane.scan(folder, budget=budget)
    (scan,) = result.scans
    return {
        "seconds": scan.seconds,
        "bytes_read": scan.bytes_read,
        "weights": scan.num_weights,
        "tensors": len(scan.tensors),
        "findings": [x.rule for x in scan.findings],
        "anonymous_bytes_before": memory["before"],
        "peak_anonymous_bytes": memory["peak"],
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--layers": "--num-layers"})
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--intermediate-size", type=int, default=11008)
    parser.add_argument("--num-layers", dest="layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--budgets", nargs="+", default=["0.1%", "1%", "10%", "100%"])
    parser.add_argument("--scratch", type=Path, help="place of the checkpoint; by default a temporary folder")
    options, record = start(parser, argv)
    config = LlamaConfig(
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden_size // 128),
        vocab_size=options.vocabulary,
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        num_bytes = write_checkpoint(config, Path(scratch))
        shards = len(list(Path(scratch).glob("*.safetensors")))
        found = {budget: measure(Path(scratch), budget) for budget in options.budgets}
    results = {"weight_bytes": num_bytes, "shards": shards, "budgets": found}
    return finish(record, results, options.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="scan_large.py")
