"""Tokenize and detokenize a ResNet-18 (11.17 M parameters), as a share of the rate of `torch.clone` on the tokens.

    python benchmarks/tokenization.py --output runs/benchmarks/tokenization.json

Each round times clone, encode and decode one after the other, so that all see the same machine; the ratio is the
median over rounds. About half a minute on 2 cores.
"""

import statistics
import timeit
from collections.abc import Callable

import torch
from running import finish, new_parser, start

from hf_sane.architectures.presets import build_model, resnet
from hf_sane.records._failures import run_script
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Mean seconds of `repeats` calls."""
    return timeit.timeit(work, number=repeats) / repeats


def measure(token_layout: str, normalization: str, *, rounds: int, repeats: int) -> dict[str, float]:
    """Median rates of one setting, as shares of the rate of cloning the tokens."""
    state_dict = build_model(resnet(18, num_labels=10)).state_dict()
    extractor = SANEFeatureExtractor(288, token_layout, "tokens", normalization).fit([state_dict])
    sequence = extractor.encode(state_dict)
    found: dict[str, list[float]] = {"encode": [], "decode": []}
    clones = []
    for _ in range(rounds + 1):
        clone = seconds(sequence.tokens.clone, repeats)
        encode = seconds(lambda: extractor.encode(state_dict), repeats)
        decode = seconds(lambda: extractor.decode(sequence.tokens, sequence.layout), repeats)
        clones.append(clone)
        found["encode"].append(clone / encode)
        found["decode"].append(clone / decode)
    medians = {f"{name}_share_of_clone": statistics.median(values[1:]) for name, values in found.items()}
    return {**medians, "clone_milliseconds": 1e3 * statistics.median(clones[1:]), "num_tokens": len(sequence)}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=5)
    arguments, record = start(parser, argv)
    results = {
        f"{layout}, {normalization}": measure(
            layout, normalization, rounds=arguments.rounds, repeats=arguments.repeats
        )
        for layout in ("rowwise", "dense")
        for normalization in ("none", "standardize")
    }
    for name, row in results.items():
        print(
            f"{name:22} encode {row['encode_share_of_clone']:.0%}  decode {row['decode_share_of_clone']:.0%}  of "
            f"clone ({row['clone_milliseconds']:.1f} ms), {row['num_tokens']} tokens"
        )
    return finish(record, results, arguments.output)


if __name__ == "__main__":
    torch.manual_seed(0)
    run_script(main, name="tokenization.py")
