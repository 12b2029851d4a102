"""Ridge, gradient boosting and set transformers on the weights and latents of networks, and the choice between them.

    python experiments/paper_probes.py --zoo ../zoos --work ../probes --records runs/paper/probes
    python experiments/paper_probes.py ... --names usps_seed                      # one zoo

For each zoo of `paper_zoos.py`, a SANE and a linear code with the same latent_dim are fitted to the training
networks. Properties are predicted from features without a code (layer statistics, spectra, the profile of W,
statistics of tokens), with SANE and with the linear code. Of all probes, the best is chosen by leaving out training
runs, where the settings of each are chosen without these runs. Test networks are used once. About eight minutes per
zoo on one CPU core.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from autoencoders import train_sane
from script_options import ScriptParser
from torch import Tensor

from hf_sane.probing._choice import choice_table, make_candidates
from hf_sane.probing._evaluation import ProbeTable, table_to_dict
from hf_sane.probing._set_transformer import SetTransformerSettings
from hf_sane.probing._zoo_features import ZooFeatures, read_zoo_features
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.training._preparation import fit_code
from hf_sane.zoo._dataset import Zoo

PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")
POOLINGS = ("layer_mean_std", "decoded_profile")
LATENTS_PER_TOKEN = 51  # of tokens of 201: about one latent per weight, most tokens being shorter
FOLDS = 3
TREES: dict[str, Any] = {"grid": [(15, 0.1)]}
LEFT_OUT = ("weight_distribution", "weights")  # features, to save time
REFERENCE = ("layer_statistics", "spectral_features", "weight_profile")  # by ridge regression: what there was before
DRAWS = 2000


def read_features(name: str, options: argparse.Namespace) -> ZooFeatures:
    """Features and tokens of a zoo, with a SANE and a linear code of its training networks."""
    zoo = Zoo.load(options.zoos, name)
    layout = zoo.splits["train"].layout(0)
    sane = train_sane(zoo, layout, LATENTS_PER_TOKEN, options.work / f"{name}_{options.seed}", options)
    model, extractor = sane.model, sane.extractor
    linear, _ = fit_code([zoo.splits["train"]], extractor, latent_dim=LATENTS_PER_TOKEN, grouping="kind")
    found = read_zoo_features(
        zoo,
        PROPERTIES,
        model,
        extractor,
        poolings=POOLINGS,
        profile=True,
        spectral=True,
        linear=linear,
        tokens=True,
    )
    return replace(found, features={name: parts for name, parts in found.features.items() if name not in LEFT_OUT})


def compare(
    found: ZooFeatures, settings: SetTransformerSettings, folds: int, trees: Mapping[str, Any]
) -> tuple[ProbeTable, dict[str, Tensor]]:
    """The table of all probes, and their predictions for test networks."""
    predicted: dict[str, Tensor] = {}
    candidates = make_candidates(found.features, found.tokens, settings=settings, trees=trees)
    table = choice_table(candidates, found.targets, runs=found.runs, folds=folds, on_test=predicted.__setitem__)
    return table, predicted


def differences(
    table: ProbeTable, predicted: Mapping[str, Tensor], found: ZooFeatures
) -> dict[str, dict[str, dict[str, Any]]]:
    """R2 of the choices less R2 of others, with 95% bootstrap intervals over test runs: `{property: {pair: ...}}`."""
    names, members = np.unique(np.asarray(found.runs["test"]), return_inverse=True)
    draws = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    weights = np.stack([np.bincount(draw, minlength=len(names))[members] for draw in draws])  # [draws, M]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for column, (name, row) in enumerate(table.items()):
        wanted = found.targets[name]["test"]
        before = max((row[f"{kind}, ridge"] for kind in REFERENCE), key=lambda result: result.validation_r2)
        pairs = {
            "best less ridge without a code": (row["best"], before),
            "best less best without a code": (row["best"], row["weights_best"]),
            "SANE less best without a code": (row["sane_best"], row["weights_best"]),
            "SANE less linear code": (row["sane_best"], row["linear_best"]),
        }
        rows[name] = {}
        for pair, results in pairs.items():
            chosen = [f"{result.features}, {result.regressor}" for result in results]
            scores = [weighted_r2(predicted[key][:, column].numpy(), wanted, weights) for key in chosen]
            low, high = np.quantile(scores[0] - scores[1], [0.025, 0.975])
            rows[name][pair] = {
                "rows": chosen,
                "difference": results[0].r2 - results[1].r2,
                "interval": [float(low), float(high)],
            }
    return rows


def weighted_r2(predicted: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R2 `[draws]` of predictions `[M]`, with a weight `[draws, M]` for each network."""
    total = weights.sum(axis=1)
    errors = weights @ np.square(predicted - wanted)
    return np.asarray(1 - errors / (weights @ np.square(wanted) - np.square(weights @ wanted) / total))


def run_zoo(name: str, options: argparse.Namespace) -> None:
    """Measure one zoo, unless there is a record."""
    path = options.records / f"{name}_{options.seed}.json"
    if path.exists():
        return
    record = RunRecord.start(seed=options.seed, arguments={"zoo": name, "folds": options.folds, "trees": TREES})
    settings = SetTransformerSettings(epochs=options.probe_epochs, seed=options.seed)
    start = time.monotonic()
    found = read_features(name, options)
    seconds = {"features": time.monotonic() - start}
    table, predicted = compare(found, settings, options.folds, TREES)
    results = {
        "table": table_to_dict(table),
        "differences": differences(table, predicted, found),
        "set_transformer": asdict(settings),
        "seconds": {**seconds, "probes": time.monotonic() - start - seconds["features"]},
    }
    record.finish(results, data={"networks": found.counts, "split": "by training run"}).save(path)
    for prop, row in table.items():
        best = row["best"]
        print(f"{name}, {prop}: {best.features}, {best.regressor}, R2 {best.r2:.3f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and measure each zoo."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--zoo", dest="zoos", type=Path, required=True, help="folder that paper_zoos.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder of the autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder of the run records")
    parser.add_argument("--names", nargs="+", default=["usps_seed", "usps_hyper", "fashion_seed"], metavar="NAME")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each SANE")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of each SANE")
    parser.add_argument("--probe-epochs", type=int, default=16, help="epochs of set transformers")
    parser.add_argument("--folds", type=int, default=FOLDS, help="parts of the runs that are left out in turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    tune_allocator()
    for name in options.names:
        run_zoo(name, options)


if __name__ == "__main__":
    run_script(main, name="paper_probes.py")
