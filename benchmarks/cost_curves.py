"""Time of tokenizing, embedding, aligning, scanning and sampling against the number of weights of a network.

    python benchmarks/cost_curves.py --output runs/benchmarks/cost_curves.json --plot docs/results/cost_curves.png

The networks are MLPs with four hidden layers and random weights. Each verb gets the same file or state dict in one
process, as the median of several rounds; short work is repeated within a round. The slope is that of a line through
the upper half of the points on logarithmic axes: 1 means that time grows with the number of weights. An untrained SANE
takes the same time as a trained one. About a minute.
"""

import math
import statistics
import tempfile
import timeit
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from safetensors.torch import save_file
from torch import Tensor, nn

import hf_sane
from hf_sane.analysis._pictures import PALETTE, label_ends, make_figure, save_picture
from hf_sane.core._kde import sample_latents
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._streaming import embed_stream
from hf_sane.records._failures import run_script
from hf_sane.records._file_kinds import PICTURE
from hf_sane.records._outputs import check_may_replace
from hf_sane.symmetry._matching import match_weights
from hf_sane.symmetry.tracing._trace import trace_permutations
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream

TOKEN_DIM = 128
WINDOW_SIZE = 256
LATENT_DIM = 16
NUM_ANCHORS = 2
SHORTEST = 0.05  # seconds; shorter work is repeated within a round


def network(width: int) -> nn.Module:
    """An MLP with four hidden layers."""
    sizes = [16, *4 * [width], 10]
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def make_sane() -> SANEModel:
    """An autoencoder that nobody trained."""
    config = SANEConfig(
        token_dim=TOKEN_DIM,
        hidden_size=64,
        latent_dim=LATENT_DIM,
        num_hidden_layers=1,
        window_size=WINDOW_SIZE,
        position_embedding="sinusoidal",
    )
    return SANEModel(config).eval()


def decode_windows(model: SANEModel, latents: Tensor, positions: Tensor) -> None:
    """Decode one network, a batch of windows at a time."""
    with torch.inference_mode():
        for first in range(0, latents.shape[1], WINDOW_SIZE):
            part = slice(first, first + WINDOW_SIZE)
            model.decode(latents[:, part], positions[None, part])


def works(width: int, model: SANEModel, folder: Path) -> tuple[int, dict[str, Callable[[], object]]]:
    """Number of weights of a network, and what is timed, by verb."""
    torch.manual_seed(0)
    module, other = network(width), network(width)
    state_dict = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    rival = {name: tensor.detach() for name, tensor in other.state_dict().items()}
    path = folder / f"{width}.safetensors"
    save_file(state_dict, path)
    extractor = SANEFeatureExtractor(TOKEN_DIM).fit([state_dict])
    sequence = extractor.encode(state_dict)
    spec = trace_permutations(module, torch.randn(2, 16))
    anchors = torch.randn(NUM_ANCHORS, len(sequence), LATENT_DIM)
    generator = torch.Generator().manual_seed(0)

    def sample() -> None:
        drawn = sample_latents(anchors, 1, bandwidth=0.1, mode="token", generator=generator)
        decode_windows(model, drawn, sequence.positions)

    return sum(tensor.numel() for tensor in state_dict.values()), {
        "tokenize": lambda: extractor.encode(state_dict),
        "embed": lambda: embed_stream(model, TokenStream(path, extractor)),
        "align": lambda: match_weights(spec, state_dict, rival, generator=generator),
        "scan": lambda: hf_sane.scan(path),
        "sample": sample,
    }


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of one call, after a first one that determines the number of repeats."""
    first = timeit.timeit(work, number=1)
    repeats = max(1, math.ceil(SHORTEST / max(first, 1e-6)))
    return statistics.median(timeit.repeat(work, number=repeats, repeat=rounds)) / repeats


def slope(weights: Sequence[int], times: Sequence[float]) -> float:
    """Slope of the line through the upper half of the points on logarithmic axes."""
    half = len(weights) // 2
    return float(np.polyfit(np.log(weights[half:]), np.log(times[half:]), 1)[0])


def draw(results: Mapping[str, Any], path: Path) -> None:
    """One curve per verb, with its slope."""
    figure, (axes,) = make_figure(7, 4)
    ends = []
    for (verb, times), colour in zip(results["seconds"].items(), PALETTE, strict=False):
        axes.plot(results["weights"], times, marker="o", markersize=3, color=colour)
        ends.append((f"{verb}, slope {results['slopes'][verb]:.2f}", results["weights"][-1], times[-1], colour))
    axes.set(xscale="log", yscale="log", xlabel="weights of the network", ylabel="seconds")
    label_ends(axes, ends)
    save_picture(figure, path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all verbs at all widths."""
    parser = new_parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 16, 60, 210, 770])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="PNG file")
    options, record = start(parser, argv, hidden=("plot",))
    if options.plot is not None:
        check_may_replace(options.plot, PICTURE)
    model = make_sane()
    results: dict[str, Any] = {"weights": [], "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for width in sorted(options.widths):
            weights, timed = works(width, model, Path(folder))
            results["weights"].append(weights)
            for verb, work in timed.items():
                results["seconds"].setdefault(verb, []).append(seconds(work, options.rounds))
            print(weights, {verb: round(times[-1], 4) for verb, times in results["seconds"].items()})
    results["slopes"] = {verb: slope(results["weights"], times) for verb, times in results["seconds"].items()}
    results["sane"] = {"token_dim": TOKEN_DIM, "hidden_size": 64, "window_size": WINDOW_SIZE, "anchors": NUM_ANCHORS}
    if options.plot is not None:
        draw(results, options.plot)
    return finish(record, results, options.output)


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main, name="cost_curves.py")
