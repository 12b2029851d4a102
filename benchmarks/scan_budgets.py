"""Measure the errors of scans that read 0.1, 1, 10 or 100% of a checkpoint: statistics, embeddings, predictions.

    python benchmarks/scan_budgets.py --checkpoints crepe/full.pth checkpoints --images mnist.npz \
        --output runs/benchmarks/scan_budgets.json

1. `statistics`: for every tensor that was not read completely, the errors of mean, standard deviation and kurtosis,
   and how often the standard deviation is within twice its reported error.
2. `population`: a zoo of MLPs with wide layers is trained on a part of the images with several learning rates, and a
   SANE on this zoo. Measured are the distance of embeddings of a sample from those of whole networks, and the error of
   a ridge probe that was fitted on whole networks and predicts test accuracy from a sample. Its features (embeddings,
   or statistics of the layers) and its penalty are chosen on validation networks.

Every budget is measured with several random seeds, which determine the places that are read. About ten minutes on one
core.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from running import finish, new_parser, start
from safetensors.torch import save_file

import hf_sane
from hf_sane.core._metrics import r2_score
from hf_sane.records._failures import run_script
from hf_sane.screening._embedding import Encoder
from hf_sane.screening._scan import SamplingSettings, Scan, scan_checkpoint
from hf_sane.screening._statistics import TensorStatistics
from hf_sane.tokenization._checkpoints import CheckpointSource, load_state_dict
from hf_sane.tokenization._weight_files import is_pickle_name

BUDGETS = ("0.1%", "1%", "10%", "100%")
TOKEN_DIM = 98  # an eighth of the rows of the first layer
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # penalties of the ridge probe, for standardised features


def scan_of(path: Path, budget: str, seed: int, encoder: Encoder | None = None) -> Scan:
    """A scan without spectra."""
    settings = SamplingSettings(budget=budget, seed=seed, spectra=False)
    return scan_checkpoint(CheckpointSource(path), settings, encoder=encoder)


def checkpoints_in(places: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Every checkpoint as a safetensors file, of which parts can be read."""
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in (x for x in inside if x.suffix == ".safetensors" or is_pickle_name(x.name)):
            copy = folder / f"{path.stem}.safetensors"
            save_file({name: x.contiguous() for name, x in load_state_dict(path).items()}, copy)
            yield copy


def measure_statistics(path: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Errors by budget, over all tensors that were sampled and seeds."""
    whole = {x.name: x for x in scan_of(path, "100%", 0).tensors}
    found: dict[str, Any] = {}
    for budget in BUDGETS[:-1]:
        scans = [scan_of(path, budget, seed) for seed in seeds]
        sampled = [x for scan in scans for x in scan.tensors if not x.is_whole and whole[x.name].std > 0]
        found[budget] = {
            "bytes_read_share": sum(x.bytes_read for x in scans) / sum(x.num_bytes for x in scans),
            "tensors": len(sampled) // len(seeds),
            **(_errors([(x, whole[x.name]) for x in sampled]) if sampled else {}),
        }
    return found


def _errors(pairs: Sequence[tuple[TensorStatistics, TensorStatistics]]) -> dict[str, Any]:
    """Median and 95th percentile of the errors of sampled statistics."""
    errors = {
        "std": [abs(x.std / true.std - 1) for x, true in pairs],
        "mean": [abs(x.mean - true.mean) / true.std for x, true in pairs],
        "kurtosis": [abs(x.kurtosis / true.kurtosis - 1) for x, true in pairs],
    }
    within = [abs(x.std - true.std) <= 2 * x.std_error for x, true in pairs]
    return {
        **{name: {"median": float(np.median(x)), "p95": float(np.quantile(x, 0.95))} for name, x in errors.items()},
        "std_within_two_errors": float(np.mean(within)),
    }


def build_population(images: str, options: argparse.Namespace, folder: Path) -> tuple[hf_sane.SANE, Any]:
    """The zoo, and a SANE trained on it."""
    zoo = hf_sane.build_zoo(
        images,
        output=folder / "zoo",
        train_limit=options.train_limit,
        validation_limit=200,
        test_limit=options.test_limit,
        architecture="mlp",
        architecture_settings={"hidden_sizes": [options.width, options.width], "activation": "relu"},
        num_models=options.networks,
        epochs=options.epochs,
        keep_epochs=[1, options.epochs],
        learning_rate=[1e-5, 3e-3],
        split_shares=[0.5, 0.2, 0.3],
        token_dim=TOKEN_DIM,
        recipe="hyperparameter",
        progress_bar=False,
    )
    model = {"hidden_size": 64, "latent_dim": 32, "num_hidden_layers": 2, "window_size": 256}
    sane = hf_sane.pretrain(
        zoo,
        output=folder / "sane",
        model=model | {"num_attention_heads": 4, "position_embedding": "sinusoidal"},
        max_steps=options.steps,
        eval_every_epochs=0,
        log_with="none",
        progress_bar=False,
    )
    return sane, zoo


def measure_population(sane: hf_sane.SANE, zoo: Any, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Distance of sampled embeddings from whole ones, and predictions of a probe from sampled statistics."""
    encoder = Encoder("SANE", sane.extractor, lambda: sane.model)
    paths: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for name, found in paths.items():
        for index in range(len(zoo.splits[name])):
            found.append(folder / f"{name}_{index}.safetensors")
            save_file(zoo.splits[name].state_dict(index), found[-1])
    accuracies = {name: zoo.splits[name].column("test_accuracy") for name in paths}
    scans = {name: [scan_of(path, "100%", 0, encoder) for path in found] for name, found in paths.items()}
    choice, predict = _choose_probe(scans, accuracies)
    whole, true = scans["test"], accuracies["test"]
    vectors, predicted = np.stack([_vector(scan) for scan in whole]), predict(whole)
    apart = np.median([np.linalg.norm(a - b) for i, a in enumerate(vectors) for b in vectors[:i]])
    results: dict[str, Any] = {
        "networks": {name: len(x) for name, x in paths.items()},
        "weights": whole[0].num_weights,
        "accuracy_std": float(true.std()),
        "probe": choice,
        "distance_between_networks": float(apart),
        "budgets": {},
    }
    for budget in BUDGETS:
        rows = []
        for seed in seeds if budget != "100%" else seeds[:1]:
            parts = whole if budget == "100%" else [scan_of(path, budget, seed, encoder) for path in paths["test"]]
            distances = np.linalg.norm(np.stack([_vector(scan) for scan in parts]) - vectors, axis=1)
            said = predict(parts)
            embeddings = [scan.embedding for scan in parts if scan.embedding is not None]
            rows.append(
                {
                    "bytes_read_share": sum(x.bytes_read for x in parts) / sum(x.num_bytes for x in parts),
                    "tokens_read_share": float(np.mean([x.tokens_read / x.num_tokens for x in embeddings])),
                    "distance": float(np.sqrt(np.mean(distances**2))),
                    "told_error": float(np.sqrt(np.mean([x.error**2 for x in embeddings]))),
                    "prediction_error": float(np.abs(said - predicted).mean()),
                    "r2": r2_score(said, true),
                }
            )
        results["budgets"][budget] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return results


def _statistics(scan: Scan, *, of: Sequence[str]) -> NDArray[np.float64]:
    """Of every tensor: mean over standard deviation, the logarithm of the standard deviation, that of the kurtosis."""
    rows = []
    for x in sorted(scan.tensors, key=lambda tensor: tensor.name):
        known = {"mean": x.mean / x.std, "std": np.log(x.std), "kurtosis": np.log(x.kurtosis)}
        rows.append([known[name] for name in of])
    return np.array(rows).ravel()


def _vector(scan: Scan) -> NDArray[np.float64]:
    assert scan.embedding is not None
    assert scan.embedding.vector, scan.embedding.reason
    return np.array(scan.embedding.vector)


FEATURES: dict[str, Callable[[Scan], NDArray[np.float64]]] = {
    "the embedding": _vector,
    "standard deviations of the layers": partial(_statistics, of=("std",)),
    "standard deviations and kurtosis of the layers": partial(_statistics, of=("std", "kurtosis")),
    "means, standard deviations and kurtosis of the layers": partial(_statistics, of=("mean", "std", "kurtosis")),
}
Predict = Callable[[Sequence[Scan]], NDArray[np.float64]]


def _choose_probe(
    scans: dict[str, list[Scan]], accuracies: dict[str, NDArray[np.float64]]
) -> tuple[dict[str, Any], Predict]:
    """The best probe on validation networks, with its features, penalty and score."""
    probes = []
    for name, features in FEATURES.items():
        inputs = np.stack([features(scan) for scan in scans["train"]])
        for penalty in PENALTIES:
            predict = _fit_probe(features, inputs, accuracies["train"], penalty)
            score = r2_score(predict(scans["validation"]), accuracies["validation"])
            probes.append(({"features": name, "penalty": penalty, "validation_r2": score}, predict))
    return max(probes, key=lambda probe: probe[0]["validation_r2"])


def _fit_probe(
    features: Callable[[Scan], NDArray[np.float64]],
    inputs: NDArray[np.float64],
    targets: NDArray[np.float64],
    penalty: float,
) -> Predict:
    """Ridge regression on standardised features."""
    middle, scale = inputs.mean(0), inputs.std(0) + 1e-12
    standard = (inputs - middle) / scale
    gram = standard.T @ standard + penalty * np.eye(standard.shape[1])
    weights = np.linalg.solve(gram, standard.T @ (targets - targets.mean()))
    return lambda scans: (np.stack([features(x) for x in scans]) - middle) / scale @ weights + targets.mean()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="files, or folders of them")
    parser.add_argument("--images", default="digits", help="training images of the population")
    parser.add_argument("--num-models", dest="networks", type=int, default=40, help="networks of the population")
    parser.add_argument("--width", type=int, default=512, help="of their hidden layers")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train-limit", type=int, default=2000)
    parser.add_argument("--test-limit", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=80, help="of pre-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options, record = start(parser, argv, hidden=("checkpoints",))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "copies").mkdir()
        paths = list(checkpoints_in(options.checkpoints, folder / "copies"))
        results: dict[str, Any] = {
            "checkpoints": {path.stem: path.stat().st_size for path in paths},
            "statistics": {path.stem: measure_statistics(path, options.seeds) for path in paths},
        }
        sane, zoo = build_population(options.images, options, folder)
        results["population"] = measure_population(sane, zoo, folder, options.seeds)
    return finish(record, results, options.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="scan_budgets.py")
