"""Pre-train, probe and sample on the zoos of `paper_zoos.py`; one run record per family of zoos and seed.

    python experiments/paper_tables.py --zoo ../zoos --images ../shared/data/images --work ../sane \
        --records runs/paper
    python experiments/paper_tables.py ... --families usps --seeds 0          # one family and seed

A family is the seed zoo (for sampling) and the hyper-parameter zoo (for probing) of one dataset and architecture; one
SANE is trained on both. Finished autoencoders and finished parts of the record are reused. With five epochs of
fine-tuning, a CNN-s family takes about ten minutes per seed on two CPU cores; CNN-l and ResNet-20 take twice as long.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from script_options import ScriptParser
from torch import Tensor

from hf_sane.merging._greedy import greedy_soup
from hf_sane.merging._ingredients import align_ingredients, open_ingredients
from hf_sane.merging._scoring import ImageScore
from hf_sane.merging._soups import CheckpointMixer
from hf_sane.networks._images import ImageData, load_zoo_images
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.probing._evaluation import table_to_dict
from hf_sane.probing._zoo_features import read_zoo_features
from hf_sane.records._allocator import tune_allocator
from hf_sane.records._failures import run_script
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling import agreement
from hf_sane.sampling._selection import Judge
from hf_sane.symmetry._networks import permutation_spec
from hf_sane.training._pretraining import pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.compare import compare_samplers
from hf_sane.workflows.reconstruct import reconstruct
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo._facts import FILE_NAME, read_facts
from hf_sane.zoo._mixing import mix_zoos

REPORTED_EPOCHS = (0, 1, 5, 25)
PROBED = ("probe", "spectra", "ranks")  # parts of a record
PROPERTIES = ("test_accuracy", "epoch", "generalization_gap")
# 1,600 images. With the 200 batches of the released code, conditioning hundreds of candidates would take most of the
# time for ResNets.
CONDITIONING_BATCHES = 50
SMALL_MODEL = {"hidden_size": 96, "num_hidden_layers": 3, "latent_dim": 64, "latent_noise": 0.1}


@dataclass(frozen=True)
class Family:
    """Zoos and settings of one autoencoder.

    Attributes:
        sampled: Zoo of the anchors.
        probed: Zoos whose properties are predicted.
        images: File of the images.
        token_dim: Scalars per token: a divisor of the longest row, which causes little padding and is small enough for
            the latents of a token.
        model: Fields of `SANEConfig`.
        behavior_weight: Share of the behavioural loss; its windows hold whole networks.
        condition: Whether batch norm is conditioned.
        num_epochs: Number of windows per training network.
    """

    sampled: str
    probed: tuple[str, ...]
    images: str
    token_dim: int = 67
    model: dict[str, Any] = field(default_factory=lambda: dict(SMALL_MODEL))
    behavior_weight: float = 0.3
    condition: bool = False
    num_epochs: int = 12


FAMILIES = {
    "mnist": Family("mnist_seed", ("mnist_seed", "mnist_hyper"), "mnist.npz", num_epochs=5),
    "fashion": Family("fashion_seed", ("fashion_seed", "fashion_hyper"), "fashion_mnist_20k.npz"),
    "usps": Family("usps_seed", ("usps_seed", "usps_hyper"), "usps16.npz"),
    "cifar10": Family("cifar10_seed", ("cifar10_seed", "cifar10_hyper"), "cifar10_jpeg.npz", 73, num_epochs=8),
    "resnet20": Family(
        "resnet20",
        ("resnet20",),
        "cifar10_jpeg.npz",
        73,
        {**SMALL_MODEL, "window_size": 256, "position_embedding": "sinusoidal"},
        behavior_weight=0.0,
        condition=True,
        num_epochs=40,
    ),
}


def open_zoo(part: str, token_dim: int, zoos: Path, work: Path) -> Zoo:
    """An aligned zoo in tokens of a size, which is created once in the working folder."""
    folder, config = work / "zoos", f"{part}_{token_dim}"
    if not (folder / FILE_NAME).exists() or config not in read_facts(folder):
        mix_zoos({part: Zoo.load(zoos, part)}, folder, config=config, token_dim=token_dim)
    return align_zoo(Zoo.load(folder, config))


def open_sane(folder: Path) -> SANE:
    """Load the autoencoder of a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected an autoencoder in {folder}; run paper_tables.py for its family and seed with the same --work "
            "first"
        )
    return SANE.from_pretrained(folder, dtype=torch.float32)


def pretrain_family(family: Family, zoos: dict[str, Zoo], images: Path, folder: Path, seed: int, epochs: int) -> Path:
    """Folder of the autoencoder of one family and seed, which is trained if it is missing."""
    layout = zoos[family.sampled].splits["train"].layout(0)
    model = dict(family.model)
    if "window_size" not in model:  # whole networks
        model |= {"window_size": layout.num_tokens, "max_positions": layout.max_positions}
    if (folder / "model").is_dir():
        return folder / "model"
    arguments = PretrainSettings(
        zoo=list(zoos),
        output=str(folder),
        model=model,
        epochs=epochs,
        batch_size=64,
        behavior_weight=family.behavior_weight,
        behavior_data=str(images / family.images) if family.behavior_weight else None,
        behavior_models=16,  # with more images, running the networks would take as long as the rest of the step
        behavior_images=32,
        eval_every_epochs=0,
        checkpoint_every_steps=500,
        resume=True,
        log_with="none",
        seed=seed,
    )
    return pretrain(arguments, zoos=list(zoos.values())).folder


def probe_family(sane: SANE, zoos: Mapping[str, Zoo], parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Requested parts of a record that are results of probes: `{part: {zoo: table}}`.

    Spectra of the weights are a separate part, since they need no autoencoder; rank probes use all features.
    """
    tables: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, zoo in zoos.items():
        found = read_zoo_features(zoo, PROPERTIES, sane.model, sane.extractor, profile=True, spectral=True)
        spectra = {"spectral_features": found.features.pop("spectral_features")}
        inputs = {"probe": found.features, "spectra": spectra, "ranks": {**found.features, **spectra}}
        for part in parts:
            table = replace(found, features=inputs[part]).probe(ranks=part == "ranks")
            tables[part][name] = table_to_dict(table)
    return tables


def short_table(details: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """R2 on test networks, of the rows on cards."""
    rows = ("weights", "layer_statistics", "sane_mean", "sane_best")
    return {name: {row: found[row]["r2"] for row in rows} for name, found in details.items()}


def judge_of(data: ImageData, *, condition: bool) -> Judge:
    """Judge on validation images, with batch-norm conditioning if the family has batch norm."""
    images = data.train_images if condition else None
    return Judge.of_images(*data.split("validation"), conditioning_images=images, num_batches=CONDITIONING_BATCHES)


def soup_of(anchors: StackedNetworks, data: ImageData) -> StackedNetworks:
    """Greedy soup of the aligned anchors, selected on validation images."""
    states = open_ingredients([anchors.state_dict(index) for index in range(anchors.num_models)])
    mixer = CheckpointMixer(anchors.model(0), align_ingredients(states, permutation_spec(anchors.config)))
    greedy_soup(mixer, ImageScore(*data.split("validation")))
    return StackedNetworks(anchors.config, {name: value[None] for name, value in mixer.model.state_dict().items()})


def mean_agreement(networks: StackedNetworks, images: Tensor) -> float | None:
    """Share of images on which two networks predict the same class, averaged over all pairs."""
    count = networks.num_models
    with torch.no_grad():
        predicted = torch.cat([networks.logits(part).argmax(-1) for part in images.split(250)], dim=1)
    found = agreement(predicted, predicted)
    return ((found.sum() - count) / (count * (count - 1))).item() if count > 1 else None


def sample_family(
    sane: SANE,
    zoo: Zoo,
    data: ImageData,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    condition: bool,
    epochs: int,
) -> dict[str, Any]:
    """Accuracy of every method before and after fine-tuning, and novelty and diversity of its networks."""
    judge = judge_of(data, condition=condition)
    compared = compare_samplers(zoo, sane, data, judge=judge, **settings)
    methods, distances = compared.methods, compared.to_dict()
    if len(compared.anchors) > 1:
        methods["soup"] = judge.condition(soup_of(methods["anchors"], data))
    curves = compared.finetune(epochs, recipe)
    test_images, _ = data.split("test")
    return {
        "methods": {
            name: {
                "accuracy": {str(e): rows[e] for e in REPORTED_EPOCHS if e <= epochs},
                "nearest_training_distance": distances["nearest_training_distance"].get(name),
                "pairwise_distance": distances["pairwise_distance"].get(name),
                "agreement": mean_agreement(methods[name], test_images),
            }
            for name, rows in curves.items()
        },
        "anchors": list(compared.anchors),
        **compared.facts,
    }


def run_family(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts for one family and seed; the record is written after each part."""
    family, path = FAMILIES[name], options.records / f"{name}_{seed}.json"
    record = RunRecord.start(seed=seed, arguments={"family": name, "images": family.images})
    results: dict[str, Any] = RunRecord.load(path).results if path.exists() else {}
    parts = dict.fromkeys((family.sampled, *family.probed))
    zoos = {part: open_zoo(part, family.token_dim, options.zoos, options.work) for part in parts}
    facts = read_facts(options.zoos)[family.sampled]
    data = load_zoo_images(facts, path=options.images / family.images)
    epochs = options.epochs or family.num_epochs
    folder = pretrain_family(family, zoos, options.images, options.work / f"{name}_{seed}", seed, epochs)
    sane = open_sane(folder)

    def keep(part: str, value: Any) -> None:
        results[part] = value
        # Parts of a record may come from several calls.
        results.setdefault("parts", {})[part] = {"commit": record.commit, "finished_at": datetime.now(UTC).isoformat()}
        counts = {key: {split: len(part) for split, part in zoo.splits.items()} for key, zoo in zoos.items()}
        record.finish(results, data={"networks": counts, "split": "by training run"}).save(path)

    if "reconstruction" not in results:
        found = reconstruct(zoos, sane, data).to_dict()
        keep("reconstruction", found["reconstruction"])
    if missing := [part for part in PROBED if part not in results]:
        found = probe_family(sane, {part: zoos[part] for part in family.probed}, missing)
        for part in missing:
            keep(part, found[part])
    if "sampling" not in results:
        settings = {"seed": seed, "num_candidates": options.num_candidates, "num_samples": options.num_kept}
        found = sample_family(
            sane,
            zoos[family.sampled],
            data,
            settings,
            facts.training_recipe,
            condition=family.condition,
            epochs=options.finetune_epochs,
        )
        keep("sampling", found)
    return results


def parser_of_places(description: str | None) -> argparse.ArgumentParser:
    """Parser of the folders, shared by several scripts."""
    parser = ScriptParser(description)
    parser.add_argument("--zoo", dest="zoos", type=Path, required=True, help="folder that paper_zoos.py wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the autoencoders")
    parser.add_argument("--records", type=Path, required=True, help="folder of the run records")
    return parser


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add options for seeds and the amounts of sampling and fine-tuning."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--finetune-epochs", type=int, default=25)
    parser.add_argument("--num-candidates", type=int, default=200)
    parser.add_argument("--num-samples", dest="num_kept", type=int, default=5)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and run each family and seed."""
    parser = parser_of_places(__doc__)
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--epochs", type=int, help="epochs of pre-training; by default those of the family")
    add_sampling_arguments(parser)
    options = parser.parse_args(argv)
    tune_allocator()
    for seed in options.seeds:
        for name in options.families:
            results = run_family(name, seed, options)
            best = {prop: row["sane_best"]["r2"] for prop, row in next(iter(results["probe"].values())).items()}
            print(f"{name} seed {seed}: {best}", flush=True)


if __name__ == "__main__":
    run_script(main, name="paper_tables.py")
