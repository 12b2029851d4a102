"""Count collisions of fingerprints, and search for reordered copies among 10,000 networks.

    python benchmarks/fingerprints.py --checkpoints acasxu sb3_policies cifar_resnets lora \
        --output runs/benchmarks/fingerprints.json

1. `collisions`: zoos of all small architectures are trained on scikit-learn's digits; all their states and the
   networks in `--checkpoints` are indexed. The benchmark counts states with equal digests but different weights, and
   states of different runs whose features classify them as `same` or `related`.
2. `search`: copies of some networks, reordered or in half precision, are searched for.
3. `distances`: of copies of networks to them, of other epochs of their runs, and of other runs, with the shares below
   the thresholds of `same` and `related`.

About five minutes on one core.
"""

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from torch import Tensor

import hf_sane
from hf_sane.records._failures import run_script
from hf_sane.screening._fingerprints import fingerprint
from hf_sane.screening._index import RELATED, SAME, NetworkIndex
from hf_sane.symmetry import permutation_spec
from hf_sane.tokenization import load_state_dict
from hf_sane.zoo._dataset import Zoo

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cnn_digits": {},
    "mlp": {"hidden_sizes": [24], "activation": "relu"},
    "cnn_s": {"image_size": 28},
    "cnn_l": {"image_size": 32},
    "cifar_resnet": {"depth": 20, "width": 4},
}
CHUNK = 500  # number of states to compare with all others at a time


def build_zoos(options: argparse.Namespace, folder: Path) -> dict[str, Zoo]:
    """One large zoo, and a small one of each other architecture."""
    zoos = {}
    for number, name in enumerate(options.architectures):
        settings = {key: value for key, value in ARCHITECTURES[name].items() if key != "image_size"}
        zoos[name] = hf_sane.build_zoo(
            "digits",
            output=folder / name,
            architecture=name,
            architecture_settings=settings,
            image_size=ARCHITECTURES[name].get("image_size"),
            num_models=options.networks if number == 0 else options.others,
            epochs=options.epochs if number == 0 or options.only_distances else 3,
            keep_epochs=list(range(1, options.epochs + 1)) if number == 0 or options.only_distances else None,
            train_limit=options.train_limit,
            validation_limit=50,
            test_limit=50,
            progress_bar=False,
        )
    return zoos


def states_of(zoos: Mapping[str, Zoo]) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Run and weights of each network of zoos, by its name in the index."""
    found = {}
    for zoo in zoos.values():
        for split in zoo.splits.values():
            names = zip(split.run_ids, split.column("epoch").tolist(), strict=True)
            for row, (run, epoch) in enumerate(names):
                place = f"{zoo.source or zoo.facts.name}: {run}, epoch {epoch}"
                found[place] = f"{zoo.source}: {run}", split.state_dict(row)
    return found


def count_collisions(index: NetworkIndex, runs: Mapping[str, str], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Digests that different weights share, and features of different runs that are too near."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    pairs = {"all": 0, "same": 0, "related": 0}
    nearest = np.inf
    for group in index.groups:
        for name, digest in zip(group.sources, group.digests, strict=True):
            by_digest[digest].append(name)
        features, owners = group.stacked().flatten(1), np.array([runs.get(name, name) for name in group.sources])
        for start_of in range(0, len(features), CHUNK):
            part = features[start_of : start_of + CHUNK]
            distances = (torch.cdist(part, features) / max(1, features.shape[1]) ** 0.5).numpy()
            others = np.triu(owners[start_of : start_of + CHUNK, None] != owners[None, :], k=start_of + 1)
            pairs["all"] += int(others.sum())
            pairs["same"] += int((others & (distances < SAME)).sum())
            pairs["related"] += int((others & (distances < RELATED)).sum())
            nearest = min(nearest, float(distances[others].min(initial=np.inf)))
    shared = [names for names in by_digest.values() if len(names) > 1]
    loaded = {name: weights.get(name) or load_state_dict(name) for names in shared for name in names}
    collisions = sum(
        not _are_equal(loaded[a], loaded[b]) for names in shared for a, b in itertools.combinations(names, 2)
    )
    count = sum(map(len, by_digest.values()))
    return {
        "states": count,
        "pairs": count * (count - 1) // 2,
        "pairs_with_equal_digests": sum(len(names) * (len(names) - 1) // 2 for names in shared),
        "collisions": collisions,
        "pairs_of_different_runs": pairs["all"],
        "told_to_be_the_same": pairs["same"],
        "told_to_be_related": pairs["related"],
        "nearest_of_different_runs": nearest,
    }


def _are_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether the values of two networks are equal, in whatever order."""

    def values(state: Mapping[str, Tensor]) -> list[Tensor]:
        return sorted((x.flatten().double().sort().values for x in state.values()), key=lambda x: (len(x), x.tolist()))

    mine, theirs = values(a), values(b)
    return len(mine) == len(theirs) and all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def measure_search(zoo: Zoo, index: Path, queries: int) -> dict[str, Any]:
    """Share of copies whose original is ranked first, and seconds per query."""
    generator, rows = torch.Generator().manual_seed(0), np.random.default_rng(0)
    split = zoo.splits["train"]
    found: dict[str, list[bool]] = {"reordered": [], "reordered, half precision": []}
    seconds = []
    known = NetworkIndex.load(index)
    for row in rows.choice(len(split), queries, replace=False):
        state, spec = split.state_dict(int(row)), permutation_spec(split.model(int(row)).config)
        copy = spec.apply(state, spec.random(generator=generator))
        expected = f"{split.run_ids[row]}, epoch {split.column('epoch')[row]}"
        for kind in found:
            query = {name: x.half() for name, x in copy.items()} if "half" in kind else copy
            started = time.perf_counter()
            result = hf_sane.search(query, known, count=1)
            seconds.append(time.perf_counter() - started)
            found[kind].append(result.neighbours[0].source.endswith(expected))
    return {
        "networks": len(known),
        "queries": queries,
        "seconds_per_query": float(np.median(seconds)),
        "recall": {kind: float(np.mean(hits)) for kind, hits in found.items()},
    }


def measure_distances(zoos: Mapping[str, Zoo], queries: int) -> dict[str, Any]:
    """Quantiles of the distances of copies, relatives and strangers, and shares below the thresholds, by zoo."""
    found = {}
    for name, zoo in zoos.items():
        generator, rows = torch.Generator().manual_seed(0), np.random.default_rng(0)
        split = zoo.splits["train"]
        features = torch.stack([fingerprint(split.state_dict(row)).features for row in range(len(split))])
        runs = np.array(split.run_ids)
        kinds: dict[str, list[float]] = {kind: [] for kind in ("copies", "copies in half precision")}
        kinds |= {"other epochs of the run": [], "other runs": []}
        for row in rows.choice(len(split), min(queries, len(split)), replace=False):
            state, spec = split.state_dict(int(row)), permutation_spec(split.model(int(row)).config)
            copy = spec.apply(state, spec.random(generator=generator))
            halved = {key: x.half() for key, x in copy.items()}
            for kind, other in (("copies", copy), ("copies in half precision", halved)):
                kinds[kind].append(_apart(fingerprint(other).features, features[row]))
            for other in range(len(split)):
                if other != row:
                    kind = "other epochs of the run" if runs[other] == runs[row] else "other runs"
                    kinds[kind].append(_apart(features[other], features[row]))
        found[name] = {kind: _summary(values) for kind, values in kinds.items() if values}
    return found


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def _summary(values: Sequence[float]) -> dict[str, float]:
    found = np.array(values)
    quantiles = {f"quantile_{level:g}": float(np.quantile(found, level)) for level in (0, 0.01, 0.5, 0.99, 1)}
    shares = {"same": float((found < SAME).mean()), "related": float((found < RELATED).mean())}
    return {"pairs": len(found), **quantiles, **shares}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="folders of checkpoints")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument(
        "--num-models", dest="networks", type=int, default=1000, help="networks of the first architecture"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of which all states are kept")
    parser.add_argument("--others", type=int, default=60, help="networks of each other architecture")
    parser.add_argument("--train-limit", type=int, default=200)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--only-distances", action="store_true", help="measure nothing else")
    options, record = start(parser, argv, hidden=("checkpoints",))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        zoos = build_zoos(options, folder)
        distances = measure_distances(zoos, options.queries)
        if options.only_distances:
            return finish(record, {"distances": distances}, options.output, shows=True)
        started = time.perf_counter()
        first = next(iter(zoos))
        hf_sane.index_networks([zoos[first]], folder / "first")
        seconds = time.perf_counter() - started
        search = measure_search(zoos[first], folder / "first", options.queries) | {"seconds_to_index": seconds}
        whole = hf_sane.index_networks([*zoos.values(), *options.checkpoints], folder / "known")
        states = states_of(zoos)
        runs = {name: run for name, (run, _) in states.items()}
        weights = {name: state for name, (_, state) in states.items()}
        results = {
            "collisions": count_collisions(whole.index, runs, weights)
            | {"zoos": {name: len(zoo) for name, zoo in zoos.items()}, "checkpoints": len(whole.index) - len(states)},
            "search": search,
            "distances": distances,
        }
    return finish(record, results, options.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="fingerprints.py")
