"""Time to align 1,000 CNN-s to a reference, against a plain loop of git re-basin matching; also a ResNet-18.

    OMP_NUM_THREADS=2 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 \
        python benchmarks/alignment.py --output alignment.json

Three implementations are compared in one process with one allocator, by medians over repeats: `match_many`;
`match_weights` for each network; and a plain implementation of algorithm 1 (arXiv:2209.04836) that permutes every
tensor again for each axis, as published code does, but in NumPy, which is faster than torch for tensors this small.
The loops run on the first `--loop-networks` networks and are compared by time per network. Half a minute on 2 CPU
cores.
"""

import statistics
import time
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_sane.architectures.presets import build_model, cnn_s, resnet
from hf_sane.records._failures import run_script
from hf_sane.symmetry._matching import match_many, match_weights, weight_similarity
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.symmetry._permutation import PermutationSpec
from hf_sane.symmetry.tracing._trace import trace_permutations


class PlainMatching:
    """Algorithm 1 as published, in NumPy: random order of axes, one tensor and one assignment at a time."""

    def __init__(self, spec: PermutationSpec, reference: dict[str, Tensor]) -> None:
        self.sizes = dict(spec.sizes)
        self.reference = {name: tensor.numpy() for name, tensor in reference.items()}
        self.places = {
            axis: [(place.tensor, place.dim, place.positions.numpy()) for place in places]
            for axis, places in spec.occurrences.items()
        }

    def __call__(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Permutation of each axis that aligns `state` to the reference."""
        permutation = {axis: np.arange(size) for axis, size in self.sizes.items()}
        generator = np.random.default_rng(0)
        improved = True
        while improved:
            improved = False
            for axis in generator.permutation(list(self.sizes)):
                costs = self.costs(state, permutation, axis)
                best = linear_sum_assignment(costs, maximize=True)[1]
                here = np.arange(len(best))
                if costs[here, best].sum() > costs[here, permutation[axis]].sum() + 1e-6:
                    permutation[axis], improved = best, True
        return permutation

    def costs(self, state: dict[str, np.ndarray], permutation: dict[str, np.ndarray], axis: str) -> np.ndarray:
        """Products of entries of the reference and the network, with the current permutations of the other axes."""
        costs = np.zeros((self.sizes[axis], self.sizes[axis]))
        for name, dim, positions in self.places[axis]:
            moved = state[name]
            for other, places in self.places.items():
                for tensor, other_dim, other_positions in places:
                    if tensor == name and other != axis:
                        moved = moved.take(other_positions[permutation[other]].ravel(), axis=other_dim)
            left, right = (
                np.moveaxis(t, dim, 0)[positions].reshape(len(positions), -1) for t in (self.reference[name], moved)
            )
            costs += left @ right.T
        return costs


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of `function` without garbage collection, after a warm-up call."""
    return statistics.median(timeit.repeat(function, number=1, repeat=repeats + 1)[1:])


def networks(count: int) -> dict[str, Tensor]:
    """Independent CNN-s, freshly initialised: `{name: [count, *shape]}`."""
    states = []
    for seed in range(count):
        torch.manual_seed(seed)
        states.append(build_model(cnn_s()).state_dict())
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def resnet_seconds(width: int, repeats: int) -> dict[str, Any]:
    """Trace a ResNet-18, and align one from another seed to it."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_model(resnet(18, width=width))
        states.append(model.state_dict())
    started = time.perf_counter()
    spec = trace_permutations(model, torch.randn(2, 3, 32, 32))
    traced = time.perf_counter() - started
    aligned = spec.apply(states[1], match_weights(spec, states[0], states[1]))
    return {
        "width": width,
        "parameters": sum(tensor.numel() for tensor in states[0].values()),
        "permutations": len(spec.generators),
        "trace_and_verify_seconds": traced,
        "match_seconds": median_seconds(lambda: match_weights(spec, states[0], states[1]), repeats),
        "similarity": {
            "before": weight_similarity(spec, states[0], states[1]).item(),
            "after": weight_similarity(spec, states[0], aligned).item(),
        },
    }


def measure(count: int, loop_count: int, repeats: int) -> dict[str, Any]:
    """Time the three implementations and compare the distances of aligned networks to the reference."""
    spec, stack = permutation_spec(cnn_s()), networks(count)
    loop_count = min(loop_count, count)
    reference = {name: tensor[0] for name, tensor in stack.items()}
    states = [{name: tensor[i] for name, tensor in stack.items()} for i in range(loop_count)]
    plain_matching = PlainMatching(spec, reference)
    arrays = [{name: tensor.numpy() for name, tensor in state.items()} for state in states]
    seconds = {
        "match_many": median_seconds(lambda: match_many(spec, reference, stack), repeats),
        "match_many_and_apply": median_seconds(
            lambda: spec.apply(stack, match_many(spec, reference, stack), batch_dims=1), repeats
        ),
        "match_weights_loop": median_seconds(lambda: [match_weights(spec, reference, s) for s in states], repeats),
        "plain_loop": median_seconds(lambda: [plain_matching(state) for state in arrays], repeats),
    }
    found = match_many(spec, reference, stack)
    same = all(
        torch.equal(found[axis][i], index)
        for i, state in enumerate(states)
        for axis, index in match_weights(spec, reference, state).items()
    )
    plain = {axis: [] for axis in spec.sizes}
    for state in arrays[1:]:
        for axis, index in plain_matching(state).items():
            plain[axis].append(torch.from_numpy(index))
    some = {name: tensor[1:loop_count] for name, tensor in stack.items()}
    theirs = spec.apply(some, {axis: torch.stack(indices) for axis, indices in plain.items()}, batch_dims=1)
    ours = weight_similarity(spec, reference, spec.apply(stack, found, batch_dims=1), batch_dims=1)[1:loop_count]
    before = weight_similarity(spec, reference, stack, batch_dims=1)[1:loop_count]
    return {
        "networks": count,
        "loop_networks": loop_count,
        "repeats": repeats,
        "seconds": seconds,
        "seconds_for_all": {
            "match_many": seconds["match_many"],
            "match_weights_loop": seconds["match_weights_loop"] * count / loop_count,
            "plain_loop": seconds["plain_loop"] * count / loop_count,
        },
        "ratios": {
            "plain_loop_over_match_many": seconds["plain_loop"] * count / loop_count / seconds["match_many"],
            "match_weights_loop_over_match_many": (
                seconds["match_weights_loop"] * count / loop_count / seconds["match_many"]
            ),
        },
        "same_permutations_as_match_weights": same,
        "mean_similarity": {
            "before": before.mean().item(),
            "match_many": ours.mean().item(),
            "plain_loop": weight_similarity(spec, reference, theirs, batch_dims=1).mean().item(),
        },
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--num-models", dest="networks", type=int, default=1000, help="networks to align")
    parser.add_argument("--loop-networks", type=int, default=200, help="number of these to align in the loops")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per way")
    parser.add_argument("--resnet-width", type=int, default=64, help="channels of the first stage of the ResNet-18")
    parser.add_argument("--resnet-repeats", type=int, default=3)
    arguments, record = start(parser, argv)
    report = measure(arguments.networks, arguments.loop_networks, arguments.repeats)
    report["resnet_18"] = resnet_seconds(arguments.resnet_width, arguments.resnet_repeats)
    return finish(record, report, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="alignment.py")
