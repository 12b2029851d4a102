"""Speed of kernel density sampling in latent space, against drawing the normal numbers alone and against scikit-learn.

    OMP_NUM_THREADS=2 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 \
        python benchmarks/kde_sampling.py --output kde_sampling.json

The task is to draw the latents of a ResNet-18 (39,124 tokens of size 128), 50 samples from 100 anchors: 1 GB of
results, 2 GB of anchors. Each round measures all variants one after the other in one process with one allocator; times
are medians over rounds. The variant with scikit-learn does what the released code of SANE does in its mode `token`: it
fits one `KernelDensity` per token and samples from it. It runs on an evenly spread subset of the tokens, and its time
is scaled up. About one minute and 3.5 GB on 2 CPU cores.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from sklearn.neighbors import KernelDensity
from torch import Tensor

from hf_sane.core._kde import SamplingMode, sample_latents
from hf_sane.records._failures import run_script

MODES: tuple[SamplingMode, ...] = ("joint", "token", "scalar")
BANDWIDTH = 0.2


def one_estimator_per_token(anchors: Tensor, num_samples: int, tokens: Sequence[int]) -> np.ndarray:
    """Fit and sample scikit-learn's estimator at some tokens: `[S, len(tokens), Z]`."""
    parts = [
        KernelDensity(kernel="gaussian", bandwidth=BANDWIDTH)
        .fit(anchors[:, token].numpy())
        .sample(num_samples, random_state=token)
        for token in tokens
    ]
    return np.stack(parts, axis=1)


def seconds_of(function: Callable[[], Any]) -> float:
    """Wall time of one call; its result is freed outside the measurement."""
    started = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def measure(
    num_tokens: int, latent_dim: int, num_anchors: int, num_samples: int, subset: int, rounds: int
) -> dict[str, Any]:
    """Run all variants in turn; the first round is discarded."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(num_anchors, num_tokens, latent_dim, generator=generator)
    chosen = np.linspace(0, num_tokens - 1, min(subset, num_tokens)).round().astype(int).tolist()
    variants: dict[str, Callable[[], Any]] = {
        "normals_alone": lambda: torch.randn(num_samples, num_tokens, latent_dim, generator=generator)
    }
    for mode in MODES:
        variants[mode] = lambda mode=mode: sample_latents(
            anchors, num_samples, bandwidth=BANDWIDTH, mode=mode, generator=generator
        )
    variants["scikit_learn_subset"] = lambda: one_estimator_per_token(anchors, num_samples, chosen)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, function in variants.items():
            seconds[name].append(seconds_of(function))
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    medians["scikit_learn_scaled_up"] = medians["scikit_learn_subset"] * num_tokens / len(chosen)
    ratios = {f"{mode}_over_normals_alone": medians[mode] / medians["normals_alone"] for mode in MODES}
    ratios |= {f"scikit_learn_over_{mode}": medians["scikit_learn_scaled_up"] / medians[mode] for mode in MODES}
    ratios["scikit_learn_over_normals_alone"] = medians["scikit_learn_scaled_up"] / medians["normals_alone"]
    return {
        "ratios": ratios,
        "median_seconds": medians,
        "all_seconds": seconds,
        "work": {
            "tokens": num_tokens,
            "latent_dim": latent_dim,
            "anchors": num_anchors,
            "samples": num_samples,
            "scikit_learn_tokens": len(chosen),
            "rounds": rounds,
        },
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__, former={"--anchors": "--num-anchors", "--samples": "--num-samples"})
    parser.add_argument("--tokens", type=int, default=39_124)
    parser.add_argument("--latent-dim", type=int, default=128)
    parser.add_argument("--num-anchors", dest="anchors", type=int, default=100)
    parser.add_argument("--num-samples", dest="samples", type=int, default=50)
    parser.add_argument("--subset", type=int, default=500, help="tokens that scikit-learn fits")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    arguments, record = start(parser, argv)
    results = measure(
        arguments.tokens,
        arguments.latent_dim,
        arguments.anchors,
        arguments.samples,
        arguments.subset,
        arguments.rounds,
    )
    for name, seconds in results["median_seconds"].items():
        print(f"{name}: {seconds:.2f} s")
    for name, ratio in results["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    run_script(main, name="kde_sampling.py")
