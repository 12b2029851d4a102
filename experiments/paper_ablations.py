"""Measure the effect of design choices on small zoos of scikit-learn digits, offline (docs/results/ablations.md).

    python experiments/paper_ablations.py --folder ../ablations --records runs/paper/ablations --seeds 0 1
    python experiments/paper_ablations.py ... --studies base windows --seeds 0        # selected studies

Three zoos are built first: networks that differ in their seed (for sampling), in their hyper-parameters (for probing),
and small ResNets. A study is a table of variants (ablation_variants.py), each of which changes one setting of `base`
and is trained for the same number of optimizer steps. Finished zoos, autoencoders and variants are reused. Budgets
are small on purpose (a variant takes less than a minute on one thread): they rank choices, but do not show the best
results of SANE.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_variants import BASE_MODEL, BASE_TRAINING, STUDIES, Variant
from script_options import ScriptParser

from hf_sane.networks._images import ImageData, load_images
from hf_sane.probing._zoo_features import read_zoo_features
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._selection import Judge
from hf_sane.training._pretraining import pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.compare import ComparisonResult, compare_samplers
from hf_sane.workflows.reconstruct import reconstruct
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo, ZooSplit
from hf_sane.zoo._facts import read_facts
from hf_sane.zoo._mixing import mix_zoos
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import RECIPES, ZooSettings

REPORTED = ("anchors", "reconstructed_anchors", "sane_subsampled", "sane_bootstrapped", "anchor_noise_selected")
PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")
BANDWIDTHS = [0.1, 0.2, 0.3, 0.45]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiments, each with an option. All results of a record have the same sizes.

    Attributes:
        seed_runs: Runs of the zoo of seeds.
        hyper_runs: Runs of the zoo of hyper-parameters: 1,000 for training, 60 for validation, 100 for testing, and
            spare ones for those that diverge.
        resnet_runs: Runs of the zoo of ResNets.
        zoo_epochs: Epochs of every run.
        train_limit: Number of training images.
        base_runs: Training runs of the hyper-parameter zoo for autoencoders, except in the study of scale.
        probe_runs: Training runs for probes, in every study.
        steps: Optimizer steps of every autoencoder.
        batch_size: Windows per step, of whole networks.
        hidden_size: Width of the autoencoders.
        num_layers: Blocks of encoder and decoder each.
        num_candidates: Number of networks to draw for subsampling.
        num_kept: Number of networks to keep of each method.
        conditioning_batches: Batches of batch-norm conditioning.
    """

    seed_runs: int = 100
    hyper_runs: int = 1200
    resnet_runs: int = 60
    zoo_epochs: int = 8
    train_limit: int = 600
    base_runs: int = 200
    probe_runs: int = 100
    steps: int = 100
    batch_size: int = 16
    hidden_size: int = 64
    num_layers: int = 2
    num_candidates: int = 60
    num_kept: int = 10
    conditioning_batches: int = 30


def recipes(sizes: Sizes) -> dict[str, tuple[str, dict[str, Any]]]:
    """Recipe and settings of each zoo. Few updates need larger learning rates than those of the recipes."""
    last = sizes.zoo_epochs
    common = {
        "epochs": last,
        "keep_epochs": sorted({1, last // 4, last // 2, last} - {0}),
        "train_limit": sizes.train_limit,
        "batch_size": 16,
        "group_size": 200,
    }
    cnn = {**common, "architecture_settings": {"activation": "gelu"}}
    hyper = {
        "num_models": sizes.hyper_runs,
        "initializations": ["uniform", "kaiming_uniform", "kaiming_normal"],
        "learning_rate": [2e-3, 2e-2],
        "data_fraction": [0.5, 1.0],
        "split_shares": [0.86, 0.052, 0.088],
    }
    resnet = {
        "num_models": sizes.resnet_runs,
        "architecture": "cifar_resnet",
        "architecture_settings": {"width": 4, "depths": [1, 1, 1]},  # ResNet-8
        "learning_rate": [1e-2],
        "max_abs_weight": 50.0,  # running variances count as weights
    }
    return {
        "seed": ("seed", {**cnn, "num_models": sizes.seed_runs, "learning_rate": [6e-3]}),
        "hyper": ("hyperparameter", {**cnn, **hyper}),
        "resnet": ("seed", {**common, **resnet}),
    }


def build_zoos(folder: Path, data: ImageData, sizes: Sizes, studies: Sequence[str]) -> dict[str, Zoo]:
    """The zoos of some studies, which are built if they are missing."""
    zoos = {}
    for name, (recipe, settings) in recipes(sizes).items():
        is_needed = "batchnorm" in studies if name == "resnet" else set(studies) != {"batchnorm"}
        if is_needed:
            arguments = ZooSettings(**{**RECIPES[recipe], **settings, "name": f"digits, {name}"})
            zoos[name] = build_zoo(arguments, data, folder, config=name)
    return zoos


def first_runs(split: ZooSplit, count: int) -> ZooSplit:
    """Networks of the first `count` runs, which are in random order.

    Raises:
        ValueError: If there are fewer.
    """
    runs = sorted(set(split.run_ids))
    if len(runs) < count:
        raise ValueError(f"expected at least {count} training runs, got {len(runs)}; build more (--hyper-runs)")
    return split.select(np.isin(split.column("run_id"), runs[:count]))


def without_alignment(zoo: Zoo) -> Zoo:
    """The zoo with identity permutations, so that its aligned view has the networks as they were trained."""
    assert zoo.alignment is not None
    identity = {
        key: {axis: torch.arange(index.shape[1]).expand_as(index).clone() for axis, index in axes.items()}
        for key, axes in zoo.alignment.permutations.items()
    }
    return zoo.with_alignment(dataclasses.replace(zoo.alignment, permutations=identity))


def with_training_runs(zoo: Zoo, count: int) -> Zoo:
    """The zoo with only its first training runs."""
    return dataclasses.replace(zoo, splits={**zoo.splits, "train": first_runs(zoo.splits["train"], count)})


def shown_zoos(variant: Variant, zoos: Mapping[str, Zoo], folder: Path, sizes: Sizes) -> dict[str, Zoo]:
    """The zoos of a variant, in its tokens, aligned or not."""
    found = {name: zoo for name, zoo in zoos.items() if (name == "resnet") == ("resnet" in variant.zoos)}
    if variant.tokens is not None:
        kind, size = variant.tokens
        found = {
            name: with_training_runs(zoo, sizes.base_runs) if name == "hyper" else zoo for name, zoo in found.items()
        }
        for name, zoo in found.items():
            config = f"{name}_{kind}_{size}"
            exists = (folder / "zoo.json").exists() and config in read_facts(folder)
            settings = {"config": config, "token_layout": kind, "token_dim": size}
            found[name] = align_zoo(Zoo.load(folder, config) if exists else mix_zoos({name: zoo}, folder, **settings))
    return found if variant.aligned else {name: without_alignment(zoo) for name, zoo in found.items()}


def tokens_of(share: float, num_tokens: int) -> int:
    """Number of tokens of a window that is given as a share of the network or in tokens."""
    return round(share * num_tokens) if share <= 1 else int(share)


def autoencoder(variant: Variant, zoos: Mapping[str, Zoo], folder: Path, sizes: Sizes, seed: int) -> SANE:
    """The autoencoder of a variant and seed, which is trained if it is missing."""
    if not (folder / "model").is_dir():
        chosen = {name: zoos[name] for name in variant.zoos}
        if "hyper" in chosen:
            chosen["hyper"] = with_training_runs(chosen["hyper"], variant.runs or sizes.base_runs)
        layout = next(iter(chosen.values())).splits["train"].layout(0)
        channels = int(layout.positions[:, 2].max()) + 1
        model = {
            **BASE_MODEL,
            "hidden_size": sizes.hidden_size,
            "num_hidden_layers": sizes.num_layers,
            "window_size": tokens_of(variant.window, layout.num_tokens),
            "max_positions": [layout.num_tokens, len(layout.layers), channels],
            **variant.model,
        }
        settings = {
            "batch_size": sizes.batch_size * variant.batch_factor,
            "max_steps": sizes.steps * variant.step_factor,
            "resume": True,  # interrupted runs start again
            **BASE_TRAINING,
            **variant.training,
        }
        arguments = PretrainSettings(zoo=list(chosen), output=str(folder), model=model, seed=seed, **settings)
        pretrain(arguments, zoos=list(chosen.values()))
    return SANE.from_pretrained(folder / "model", dtype=torch.float32)


def sample(compared: ComparisonResult) -> dict[str, Any]:
    """Test accuracy without fine-tuning and distance to the nearest training network of each method."""
    found = compared.to_dict()
    distances = {name: found[name] for name in ("nearest_training_distance", "pairwise_distance")}
    return {"accuracy": compared.test_accuracy(), **distances, "bandwidth": found["bandwidth"]}


def measure(
    variant: Variant,
    zoos: Mapping[str, Zoo],
    data: ImageData,
    sane: SANE,
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    """Reconstruction, probes and samples of one autoencoder."""
    split = zoos[variant.zoos[-1]].splits["train"]
    layout = split.layout(0)
    inference = tokens_of(variant.inference or variant.window, layout.num_tokens)
    windows: dict[str, Any] = {"window_size": inference, "halo_size": variant.halo}
    tested = zoos[variant.zoos[0]]
    config = sane.model.config
    found = reconstruct({variant.zoos[0]: tested}, sane, data, **windows).to_dict()
    results: dict[str, Any] = {
        **found["reconstruction"][variant.zoos[0]],
        "window_size": config.window_size,
        "latents_per_weight": layout.num_tokens * config.latent_dim / int(layout.weight_mask.sum()),
    }
    if "hyper" in variant.zoos:
        probed = with_training_runs(tested, sizes.probe_runs)
        features = read_zoo_features(probed, PROPERTIES, sane.model, sane.extractor, profile=True, **windows)
        results["probe"] = {
            name: {kind: {"r2": row.r2, "kendall_tau": row.kendall_tau} for kind, row in rows.items()}
            | {"sane_best_pooling": rows["sane_best"].features}
            for name, rows in features.probe().items()
        }
    source = zoos["resnet" if "resnet" in variant.zoos else "seed"]
    judge = Judge.of_images(
        *data.split("validation"),
        conditioning_images=data.train_images if variant.condition else None,
        num_batches=sizes.conditioning_batches,
        reset=variant.condition != "keep",
    )
    counts = {"num_candidates": sizes.num_candidates, "num_samples": sizes.num_kept}
    options: dict[str, Any] = {"seed": seed, "bandwidth": BANDWIDTHS, **counts, **windows}
    compared = compare_samplers(source, sane, data, judge=judge, methods=REPORTED, **options)
    return {**results, "sampling": sample(compared)}


def run_study(name: str, seed: int, zoos: Mapping[str, Zoo], data: ImageData, options: argparse.Namespace) -> None:
    """All variants of a study with one seed; the record is written after each.

    Raises:
        ValueError: If the record holds results of other sizes.
    """
    sizes, path = options.sizes, options.records / f"{name}.json"
    record = RunRecord.start(seed=seed, arguments={"sizes": asdict(sizes), **BASE_MODEL, **BASE_TRAINING})
    if path.exists():
        known = RunRecord.load(path)
        if known.arguments != record.arguments:
            raise ValueError(
                f"{path} holds results of {known.arguments}, got {record.arguments}; use the same, or another "
                "--records"
            )
        record.results = known.results
    for key, variant in STUDIES[name].items():
        if options.variants and key not in options.variants:
            continue
        if str(seed) in record.results.get(key, {}).get("seeds", {}):
            continue
        shown = shown_zoos(variant, zoos, options.folder / "zoos", sizes)
        folder = options.folder / "sane" / f"{variant.trained_as or key}_{seed}"
        clock = RunRecord(command="")
        measured = measure(variant, shown, data, autoencoder(variant, shown, folder, sizes, seed), sizes, seed)
        measured["seconds"] = clock.finish({}).seconds
        row = record.results.setdefault(key, {"title": variant.title, "seeds": {}})
        row["seeds"][str(seed)] = measured
        networks = {part: {split: len(rows) for split, rows in zoo.splits.items()} for part, zoo in zoos.items()}
        record.finish({}, data={"images": data.name, "networks": networks, "split": "by training run"}).save(path)
        accuracy = measured["sampling"]["accuracy"]["sane_subsampled"]
        print(
            f"{name:10} {key:22} seed {seed}: R2 {measured['r2']:.3f}, accuracy kept {measured['accuracy_kept']:.3f}, "
            f"sampled {accuracy:.3f}, {measured['seconds']:.0f} s",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, build the zoos, and run the studies for each seed."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for zoos and autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder for the run records")
    parser.add_argument("--studies", nargs="+", choices=sorted(STUDIES), default=list(STUDIES), metavar="NAME")
    variants = [key for study in STUDIES.values() for key in study]
    parser.add_argument("--variants", nargs="+", choices=variants, metavar="NAME", help="names; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for entry in dataclasses.fields(Sizes):
        option = "--num-samples" if entry.name == "num_kept" else f"--{entry.name.replace('_', '-')}"
        parser.add_argument(option, dest=entry.name, type=int, default=entry.default)
    options = parser.parse_args(argv)
    options.sizes = Sizes(**{entry.name: getattr(options, entry.name) for entry in dataclasses.fields(Sizes)})
    tune_allocator()
    data = load_images("digits", train_limit=options.sizes.train_limit)
    zoos = build_zoos(options.folder / "zoos", data, options.sizes, options.studies)
    for seed in options.seeds:
        for name in options.studies:
            run_study(name, seed, zoos, data, options)


if __name__ == "__main__":
    run_script(main, name="paper_ablations.py")
