"""Embed networks larger than memory: peak anonymous memory, and throughput relative to the encoder alone.

    python benchmarks/lazy_embedding.py --output runs/benchmarks/lazy_embedding.json

1. `throughput` compares `embed_stream` on a part of a checkpoint with the encoder on the same windows of tokens in
   memory, by medians over several rounds, for the SANE of the other parts and for one of twice its width and depth.
2. `halo` encodes and decodes a ResNet-18 with halo in batches of several sizes, and reports the largest difference
   between the results.
3. `networks` embeds CIFAR ResNet-20 to ResNet-152, ViT-B, BERT-base and GPT-2-medium.
4. `large` embeds a sharded checkpoint of `--gigabytes`.

Networks have the shapes of their configurations and random weights, and are written shard by shard to a temporary
folder, which is deleted afterwards. Anonymous memory is `RssAnon` of the whole process (Linux), sampled while it
embeds; mapped files do not count. About seven minutes and 5 GB of disk; `--parts` selects some parts.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from running import finish, new_parser, start, watched_memory
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel, ViTConfig, ViTModel

from hf_sane.architectures.presets import build_model, cifar_resnet, resnet
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._streaming import embed_stream
from hf_sane.records._failures import run_script
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream

SHARD_BYTES = 2**27
POOLINGS = ("mean", "layer_mean_std")
BATCH_SIZES = (1, 7, 64)
TOKEN_DIM = 288
PARTS = ("throughput", "halo", "networks", "large")


def networks(width: int) -> dict[str, Callable[[], nn.Module]]:
    """Functions that create the networks; ResNets have `width` instead of 64 channels (CIFAR: 16)."""
    found: dict[str, Callable[[], nn.Module]] = {
        f"CIFAR ResNet-{depth}": lambda depth=depth: build_model(cifar_resnet(depth, width=max(1, width // 4)))
        for depth in (20, 56, 110)
    }
    found |= {
        f"ResNet-{depth}": lambda depth=depth: build_model(resnet(depth, width=width))
        for depth in (18, 34, 50, 101, 152)
    }
    if width == 64:
        gpt2 = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
        found |= {
            "ViT-B/16": lambda: ViTModel(ViTConfig()),
            "BERT-base": lambda: BertModel(BertConfig()),
            "GPT-2-medium": lambda: GPT2Model(gpt2),
        }
    return found


def large_network(gigabytes: float) -> nn.Module:
    """A Llama-like network with a number of gigabytes of float32 weights."""
    hidden = 2048 if gigabytes > 0.3 else 64
    config = LlamaConfig(
        vocab_size=8 * hidden, hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=16
    )
    per_layer = 16 * hidden * hidden  # four projections, three matrices of the gated MLP
    config.num_hidden_layers = max(1, round((gigabytes * 1e9 / 4 - 8 * hidden * hidden) / per_layer))
    config.num_key_value_heads = 16
    return LlamaModel(config)


def write_checkpoint(make: Callable[[], nn.Module], folder: Path) -> int:
    """Write a network of random weights shard by shard, with one shard in memory at a time; returns its bytes."""
    folder.mkdir()
    with torch.device("meta"):
        outlines = make().state_dict()
    generator = torch.Generator().manual_seed(0)
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in outlines.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    weight_map = {}
    for number, names in enumerate(shards):
        tensors = {name: _values(outlines[name], generator) for name in names}
        save_file(tensors, folder / f"model-{number:05}.safetensors")
        weight_map |= dict.fromkeys(names, f"model-{number:05}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def _values(outline: Tensor, generator: torch.Generator) -> Tensor:
    tensor = torch.zeros(outline.shape, dtype=outline.dtype)
    return tensor.uniform_(-0.05, 0.05, generator=generator) if tensor.is_floating_point() else tensor


def measure_network(
    model: SANEModel, extractor: SANEFeatureExtractor, make: Callable[[], nn.Module], folder: Path, batch_size: int
) -> dict[str, Any]:
    """Write, embed and delete one network."""
    weight_bytes = write_checkpoint(make, folder)
    try:
        with watched_memory() as memory:
            start = time.perf_counter()
            stream = TokenStream(folder, extractor)
            found = embed_stream(model, stream, poolings=POOLINGS, batch_size=batch_size)
            seconds = time.perf_counter() - start
        assert all(vector.isfinite().all() for vector in found.values())
        return {
            "weight_bytes": weight_bytes,
            "weights": stream.layout.num_weights,
            "tokens": len(stream),
            "seconds": seconds,
            "tokens_per_second": len(stream) / seconds,
            "anonymous_bytes_before": memory["before"],
            "peak_anonymous_bytes": memory["peak"],
            "shards": len(list(folder.glob("*.safetensors"))),
        }
    finally:
        shutil.rmtree(folder)


def make_sane(hidden_size: int, layers: int, window_size: int) -> SANEModel:
    """An autoencoder with random weights, which take the same time as trained ones."""
    config = SANEConfig(
        token_dim=TOKEN_DIM,
        hidden_size=hidden_size,
        latent_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 32),
        window_size=window_size,
        position_embedding="sinusoidal",
    )
    return SANEModel(config).eval()


def describe(model: SANEModel) -> dict[str, int]:
    """Size of an autoencoder."""
    names = ("hidden_size", "num_hidden_layers", "token_dim", "window_size")
    return {"parameters": model.num_parameters(), **{name: getattr(model.config, name) for name in names}}


def measure_throughput(
    model: SANEModel, extractor: SANEFeatureExtractor, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time `embed_stream` of a file, and the encoder on the same windows in memory."""
    tokens, rounds, batch_size = arguments.slice_tokens, arguments.rounds, arguments.batch_size
    dim, window = model.config.token_dim, model.config.window_size
    rows = max(1, tokens * dim // (4 * 2048))
    write_checkpoint(lambda: nn.Sequential(*(nn.Linear(2048, rows, bias=False) for _ in range(4))), folder)
    stream = TokenStream(folder, extractor)
    blocks = list(stream)
    whole = len(stream) // window * window
    features = torch.cat([block.tokens for block in blocks])[:whole].view(-1, window, dim)
    positions = torch.cat([block.positions for block in blocks])[:whole].view(-1, window, 3)

    def encoder_alone() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for part, where in zip(features.split(batch_size), positions.split(batch_size), strict=True):
                model.encode(part, where)
        return whole / (time.perf_counter() - start)

    def streamed() -> float:
        start = time.perf_counter()
        embed_stream(model, TokenStream(folder, extractor), batch_size=batch_size)
        return len(stream) / (time.perf_counter() - start)

    encoder_alone(), streamed()  # warm up
    rates = [(encoder_alone(), streamed()) for _ in range(rounds)]
    ratios = [of_stream / alone for alone, of_stream in rates]
    shutil.rmtree(folder)
    return {
        "tokens": len(stream),
        "rounds": rounds,
        "encoder_tokens_per_second": median(alone for alone, _ in rates),
        "stream_tokens_per_second": median(of_stream for _, of_stream in rates),
        "stream_over_encoder": median(ratios),
        "stream_over_encoder_spread": [min(ratios), max(ratios)],
    }


def measure_halo(model: SANEModel, extractor: SANEFeatureExtractor, width: int) -> dict[str, Any]:
    """Decoded tokens of a ResNet-18 in batches of several sizes."""
    network = build_model(resnet(18, width=width))
    sequence = extractor.encode(network)
    halo = model.config.window_size // 8
    results = []
    for size in BATCH_SIZES:
        latents = model.encode_sequences(sequence.tokens[None], sequence.positions, halo_size=halo, batch_size=size)
        results.append(model.decode_sequences(latents, sequence.positions, halo_size=halo, batch_size=size))
    differences = [(other - results[0]).abs().max().item() for other in results[1:]]
    return {
        "tokens": len(sequence),
        "halo_size": halo,
        "batch_sizes": list(BATCH_SIZES),
        "largest_difference": max(differences),
        "largest_value": results[0].abs().max().item(),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--layers": "--num-layers"})
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the large checkpoint")
    parser.add_argument("--width", type=int, default=64, help="channels of ResNets; other networks at 64 only")
    parser.add_argument("--hidden-size", type=int, default=128, help="of SANE")
    parser.add_argument(
        "--num-layers", dest="layers", type=int, default=2, help="layers of SANE's encoder, and of its decoder"
    )
    parser.add_argument("--window-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64, help="windows at a time")
    parser.add_argument("--slice-tokens", type=int, default=40_000, help="tokens of the slice for the throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scratch", type=Path, help="where to write checkpoints; the system's temporary folder by default"
    )
    arguments, record = start(parser, argv)
    torch.manual_seed(0)
    model = make_sane(arguments.hidden_size, arguments.layers, arguments.window_size)
    moderate = make_sane(2 * arguments.hidden_size, 2 * arguments.layers, arguments.window_size)
    extractor = SANEFeatureExtractor(token_dim=TOKEN_DIM, normalization="none")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "network"
        report: dict[str, Any] = {"sane": describe(model)}
        if "throughput" in arguments.parts:
            report["throughput"] = {
                size: {"sane": describe(sane), **measure_throughput(sane, extractor, folder, arguments)}
                for size, sane in (("small", model), ("moderate", moderate))
            }
        if "halo" in arguments.parts:
            report["halo"] = measure_halo(model, extractor, arguments.width)
        makers = networks(arguments.width) if "networks" in arguments.parts else {}
        if "large" in arguments.parts:
            makers["large"] = lambda: large_network(arguments.gigabytes)
        report["networks"] = {
            name: measure_network(model, extractor, make, folder, arguments.batch_size)
            for name, make in makers.items()
        }
    return finish(record, report, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="lazy_embedding.py")
