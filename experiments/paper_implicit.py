"""Implicit networks of MNIST digits: which digit is it, from the weights alone?

    python experiments/paper_implicit.py --images ../shared/data/images/mnist.npz --work ../implicit \
        --records runs/paper/implicit
    python experiments/paper_implicit.py ... --starts independent --train-limit 2000 --test-limit 500   # quick

One SIREN 2-32-32-1 is fitted to each image (`hf-sane zoo fit`): training and validation networks to training images of
MNIST, test networks to its test images. `shared` networks all start from the same random weights, `independent` ones
from their own, and are then matched with one of them, up to the order and signs of units. A SANE is pre-trained on the
training networks, without labels. All probes are fitted on training networks; their settings and the epoch are chosen
on validation networks, and test networks are measured once. A record for each kind of start. With 24,500 networks, a
start takes about an hour of one CPU core.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from autoencoders import RECONSTRUCTION, RECONSTRUCTION_MODEL, train_sane
from datasets.table import InMemoryTable
from field_probes import Features, Found, boosted_trees, mlp, ridge, token_transformer
from field_symmetries import aligned, canonical
from script_options import ScriptParser
from torch import Tensor

from hf_sane.networks._fields import SIREN, field_images, pixel_positions, siren_architecture, starting_fields
from hf_sane.probing._baselines import flattened_weights, layer_statistics
from hf_sane.probing._spectra import weight_profile
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._records import ModelRecord, record_table
from hf_sane.zoo.building._fields import FIELD_FEATURES, FieldSettings, fit_zoo

STARTS = ("shared", "independent")
FIT: dict[str, Any] = {"steps": 100, "learning_rate": 5e-3, "batch_pixels": 392, "progress_bar": False}
GROUPINGS = ("kind", "position")  # of the linear code; chosen on validation networks by ridge
RESAMPLES = 2000
# Probes of each kind of features.
PROBES: dict[str, tuple[str, ...]] = {
    "sane": ("ridge", "mlp", "trees", "transformer"),
    "weights": ("ridge", "mlp", "trees"),
    "linear": ("ridge", "mlp", "trees"),
    "weights_as_trained": ("ridge", "mlp"),
    "weights_canonical": ("ridge", "mlp"),
    "statistics": ("ridge", "trees"),
    "profile": ("ridge", "trees"),
    "image": ("ridge",),
}


def open_fields(options: argparse.Namespace, start: str) -> Zoo:
    """The zoo of one kind of start; fitted if it is not there."""
    limits = {f"{split}_limit": getattr(options, split) for split in ("train", "validation", "test")}
    settings = FieldSettings(
        **FIT, **limits, images=str(options.images), independent=start == "independent", seed=options.zoo_seed
    )
    return fit_zoo(settings, None, options.work / "zoos", config=start)


def comparable(zoo: Zoo, start: str) -> dict[str, dict[str, Tensor]]:
    """Tokens of each split in the forms that are probed: as trained, in canonical order, and without the start."""
    layout = zoo.splits["train"].layout(0)
    raw = {name: split.stacked_tokens() for name, split in zoo.splits.items()}
    if start == "shared":
        arguments = next(iter(zoo.facts.architectures.values()))["config"]["module_args"]
        seed = zoo.facts.arguments["seed"]
        common = layout.tokens(starting_fields(siren_architecture(arguments).make, [seed]), batch_dims=1)
        return {"weights": {name: tokens - common for name, tokens in raw.items()}}
    fields = {name: layout.tensors(tokens) for name, tokens in raw.items()}
    reference = {name: tensor[:1] for name, tensor in fields["train"].items()}

    def arranged(change: Any) -> dict[str, Tensor]:
        return {name: layout.tokens(change(found), batch_dims=1) for name, found in fields.items()}

    return {
        "weights": arranged(lambda found: aligned(found, reference)),
        "weights_as_trained": raw,
        "weights_canonical": arranged(canonical),
    }


def zoo_of_tokens(zoo: Zoo, tokens: Mapping[str, Tensor]) -> Zoo:
    """The zoo with other tokens, for training a SANE on them."""
    facts, splits = replace(zoo.facts, name=f"{zoo.facts.name}, comparable"), {}
    for name, split in zoo.splits.items():
        columns = {key: split.column(key) for key in ("run_id", "layout", "architecture", "epoch", "label")}
        records = [
            ModelRecord(own, {}, {key: _plain(column[i]) for key, column in columns.items()})
            for i, own in enumerate(tokens[name])
        ]
        table = datasets.Dataset(InMemoryTable(record_table(records, FIELD_FEATURES)))
        splits[name] = ZooSplit(table, facts)
    return Zoo(splits, facts)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def features_of(
    zoo: Zoo, forms: Mapping[str, Mapping[str, Tensor]], sane: SANE, sides: tuple[int, int]
) -> tuple[dict[str, Features], dict[str, Any]]:
    """All features, `{split: [M, F] or [M, N, Z]}`, and what was chosen for them."""
    train = zoo.splits["train"]
    layout, config = train.layout_and_config()
    assert isinstance(config, SIREN)
    labels = {name: torch.from_numpy(split.column("label").astype(np.int64)) for name, split in zoo.splits.items()}
    codec = NetworkCodec(sane.model, sane.extractor, layout, config)
    tokens = forms["weights"]

    def features(make: Any, of: Mapping[str, Tensor] = tokens) -> Features:
        return Features({name: make(found).float() for name, found in of.items()}, labels)

    found = {
        name: Features({split: part * layout.weight_mask for split, part in form.items()}, labels)
        for name, form in forms.items()
    }
    found = {
        name: replace(form, flat={split: flattened_weights(part, layout) for split, part in form.values.items()})
        for name, form in found.items()
    }
    normalized = {name: sane.extractor.normalize(part, layout) for name, part in tokens.items()}
    found["statistics"] = features(lambda part: layer_statistics(part, layout), normalized)
    found["profile"] = features(lambda part: weight_profile(part, layout), normalized)
    linear = {name: features(codec.linear(tokens["train"], name).encode) for name in GROUPINGS}
    scores = {name: ridge(part).validation for name, part in linear.items()}
    chosen = max(scores, key=lambda name: scores[name])
    found["linear"] = linear[chosen]
    found["sane"] = features(codec.encode)
    raw = {name: split.stacked_tensors() for name, split in zoo.splits.items()}
    positions, frequency = pixel_positions(*sides), config.frequency
    images = {name: field_images(part, positions, frequency=frequency).flatten(1) for name, part in raw.items()}
    found["image"] = Features(images, labels)
    return found, {"grouping": chosen, "grouping_validation": scores}


RUNNERS: dict[str, Any] = {"ridge": ridge, "trees": boosted_trees, "mlp": mlp, "transformer": token_transformer}
LEARNED = ("mlp", "transformer")  # probes that depend on a seed


def measure(features: Mapping[str, Features], options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Accuracy of each probe on each kind of features, and which test networks the first seed got right."""
    results: dict[str, Any] = {}
    correct: dict[str, Tensor] = {}
    for name, probes in PROBES.items():
        if name not in features:
            continue
        results[name] = {"size": features[name].rows["train"].shape[1]}
        for probe in probes:
            seeds = range(options.probe_seeds if probe == "mlp" else 1)
            settings = {"epochs": options.probe_epochs} if probe in LEARNED else {}
            found: list[Found] = [RUNNERS[probe](features[name], seed=seed, **settings) for seed in seeds]
            correct[f"{name}/{probe}"] = found[0].correct
            results[name][probe] = {
                "test": [one.test for one in found],
                "validation": [one.validation for one in found],
                "settings": [dict(one.settings) for one in found],
            }
            print(f"  {name} {probe}: {results[name][probe]['test']}", flush=True)
    return results, correct


def compare(results: Mapping[str, Any], correct: Mapping[str, Tensor]) -> dict[str, Any]:
    """The probe of each kind of features that is best on validation networks, and SANE's difference to it."""
    chosen = {
        name: max((probe for probe in found if probe != "size"), key=lambda probe: found[probe]["validation"][0])
        for name, found in results.items()
    }
    own = correct[f"sane/{chosen['sane']}"].double()
    generator, differences = np.random.default_rng(0), {}
    for name, probe in chosen.items():
        gap = (own - correct[f"{name}/{probe}"].double()).numpy()
        means = gap[generator.integers(len(gap), size=(RESAMPLES, len(gap)))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975)).tolist()
        accuracy = float(correct[f"{name}/{probe}"].double().mean())
        differences[name] = {"probe": probe, "accuracy": accuracy, "gap": float(gap.mean()), "interval": [low, high]}
    return differences


def run_start(start: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one kind of start; read from its record if that exists."""
    path = options.records / f"{start}_{options.seed}.json"
    if path.exists():
        return RunRecord.load(path).results
    names = ("latents", "hidden_size", "epochs", "probe_epochs", "probe_seeds", "zoo_seed")
    record = RunRecord.start(seed=options.seed, arguments={"start": start, **{n: getattr(options, n) for n in names}})
    zoo = open_fields(options, start)
    layout = zoo.splits["train"].layout(0)
    forms = comparable(zoo, start)
    folder = options.work / f"sane_{start}_{options.latents}_{options.epochs}_{options.seed}"
    model = {"num_attention_heads": 4, **RECONSTRUCTION_MODEL}
    networks = zoo_of_tokens(zoo, forms["weights"])
    sane = train_sane(networks, layout, options.latents, folder, options, batch_size=64, model=model, **RECONSTRUCTION)
    features, facts = features_of(zoo, forms, sane, tuple(options.sides))
    results, correct = measure(features, options)
    psnr = {name: split.column("psnr") for name, split in zoo.splits.items()}
    facts |= {
        "probes": results,
        "best": compare(results, correct),
        "psnr": {name: [float(v) for v in np.quantile(found, (0.05, 0.5, 0.95))] for name, found in psnr.items()},
        "sane_r2": sane.record.results.get("reconstruction_r2") if sane.record is not None else None,
    }
    data = {name: len(split) for name, split in zoo.splits.items()}
    data |= {"images": zoo.facts.data["name"], "weights": layout.num_weights, "tokens": layout.num_tokens, **FIT}
    record.finish(facts, data=data).save(path)
    return facts


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, then one kind of start after the other."""
    parser = ScriptParser(
        __doc__,
        former={
            "--train": "--train-limit",
            "--validation": "--validation-limit",
            "--test": "--test-limit",
            "--latents": "--latent-dim",
            "--probe-seeds": "--num-probe-seeds",
        },
    )
    parser.add_argument("--images", required=True, help="MNIST as .npz file")
    parser.add_argument("--work", type=Path, required=True, help="folder of zoos and autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder of the run records")
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=STARTS)
    parser.add_argument("--train-limit", dest="train", type=int, default=20_000, help="training networks")
    parser.add_argument("--validation-limit", dest="validation", type=int, default=1500)
    parser.add_argument("--test-limit", dest="test", type=int, default=3000)
    parser.add_argument("--sides", type=int, nargs=2, default=(28, 28), help="height and width of the images")
    parser.add_argument("--latent-dim", dest="latents", type=int, default=16, help="latents per token of 33 weights")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5, help="passes of each SANE over the training networks")
    parser.add_argument("--probe-epochs", type=int, default=12)
    parser.add_argument("--num-probe-seeds", dest="probe_seeds", type=int, default=2, help="of the perceptron")
    parser.add_argument("--zoo-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    tune_allocator()
    for start in options.starts:
        print(start, flush=True)
        run_start(start, options)


if __name__ == "__main__":
    run_script(main, name="paper_implicit.py")
