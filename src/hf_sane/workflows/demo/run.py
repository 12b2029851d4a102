"""The main job end to end: train two zoos, pre-train SANE on both, probe it, sample from it, write it all down."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hf_sane.hub._publish import load_sane, save_network, save_sane
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._images import ImageData, load_images
from hf_sane.records._files import write_atomically
from hf_sane.records._outputs import (
    begin_folder,
    finish_folder,
    output_folder,
    resumable_folder,
)
from hf_sane.records._run_record import RunRecord
from hf_sane.sampling._comparison import Samples, draw_samples, finetune_all, measure_distances
from hf_sane.sampling._export import Provenance
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.sampling._selection import Judge
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.training._evaluation import r2_from_sums, reconstruction_sums
from hf_sane.training._pretraining import pretrain
from hf_sane.training._settings import PretrainSettings
from hf_sane.workflows.demo.plots import plane, plot_embedding_map, plot_finetuning
from hf_sane.workflows.demo.probing import PROPERTIES, probe_zoo, short_table
from hf_sane.workflows.demo.report import probe_markdown, render_report, sampling_markdown
from hf_sane.workflows.demo.settings import DemoSettings
from hf_sane.workflows.results import Result
from hf_sane.zoo._alignment import aligned_tokens
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import hyperparameter_zoo, seed_zoo

NETWORK = {"activation": "gelu"}
REPORTED_EPOCHS = (0, 1, 5)
NUM_SAVED = 3  # sampled networks that are saved with a card
SETTINGS_FILE = "settings.json"
SANE_TITLE = "SANE of the demo"


class Stages:
    """Announces each stage and notes how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body of the `with` statement under `name`."""
        tqdm.write(f"--- {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(kw_only=True)
class DemoResult(Result):
    """What the demo measured.

    Attributes:
        report: As in `report.json`.
    """

    JOB: ClassVar[str] = "demo"

    report: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report."""
        return dict(self.report)


def demo(output: str | Path = "demo_output", **options: Any) -> DemoResult:
    """Run the full pipeline on a small example, offline and on the CPU.

    Args:
        output: New or empty folder, or one that an interrupted demo with the same settings left.
        **options: Further fields of [`DemoSettings`].
    """
    return run_demo(DemoSettings(output=Path(output), **options))


def run_demo(settings: DemoSettings) -> DemoResult:
    """Train two small zoos, pre-train SANE, probe it, sample from it, and write a report; offline, on the CPU.

    The folder receives `zoos/`, `sane/`, `sampled/`, `probe_table.md`, `sampling_table.md`, two plots, `report.md` and
    `report.json`. A demo that was interrupted there with the same settings is continued.
    """
    with resumable_folder(settings.output, DemoResult.JOB) as folder:
        claim_folder(folder, settings)
        record, report = fill_folder(folder, settings)
        finish_folder(folder, DemoResult.JOB)
    return DemoResult(record=record, output=settings.output / "report.md", report=report)


def claim_folder(folder: Path, settings: DemoSettings) -> None:
    """Note the settings, or compare them with those of the demo that was interrupted here.

    Raises:
        FileExistsError: If they differ.
    """
    path, text = folder / SETTINGS_FILE, json.dumps(settings.sizes(), indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(
            f"{folder} holds an interrupted demo with other settings ({SETTINGS_FILE}); give the same, or choose "
            "another folder"
        )
    begin_folder(folder, DemoResult.JOB)
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fill_folder(output: Path, settings: DemoSettings) -> tuple[RunRecord, dict[str, Any]]:
    """All stages; zoos and the autoencoder that an interrupted demo had finished are taken as they are."""
    record = RunRecord.start(seed=settings.seed, arguments=settings.sizes())
    stages = Stages()
    data = load_images(settings.images)
    with stages("train two zoos"):
        zoos = build_zoos(output / "zoos", data, settings)
    with stages("pre-train SANE"):
        model, extractor = pretrain_sane(output, zoos, settings)
    results: dict[str, Any] = {"zoos": {name: describe_zoo(zoo) for name, zoo in zoos.items()}}
    with stages("reconstruct test networks"):
        results |= reconstruct(model, extractor, zoos, data)
    with stages("probe embeddings"):
        details, embeddings = probe_zoo(model, extractor, zoos["hyperparameter"])
        results |= {"probe": short_table(details), "probe_details": details}
        draw_map(output, zoos["hyperparameter"], embeddings, settings)
    with stages("sample networks"):
        split = zoos["seed"].splits["train"]
        codec = NetworkCodec(model, extractor, *split.layout_and_config())
        samples = draw_samples(codec, zoos["seed"], Judge(*data.split("validation")), settings.comparison())
        nearest, pairwise = measure_distances(codec, zoos["seed"], samples.methods)
    with stages("fine-tune samples and baselines"):
        recipe = zoos["seed"].facts.training_recipe
        curves = finetune_all(samples.methods, data, recipe, epochs=settings.finetune_epochs, seed=settings.seed)
        facts = {**samples.facts, "pairwise_distance": pairwise, "finetuning_curves": curves}
        results["sampling"] = sampling_results(curves, nearest, facts)
        plot_finetuning(curves, output / "finetuning.png")
    results["stage_seconds"] = stages.seconds
    record.finish(results, data={"images": data.name, "split": "70/15/15 by training run"})
    save_sane(output / "sane", model, extractor, record, title=SANE_TITLE, network_config=split.config(0))
    save_samples(output / "sampled", samples, record, settings)
    return record, write_report(output, record)


def build_zoos(folder: Path, data: ImageData, settings: DemoSettings) -> dict[str, Zoo]:
    """Train the seed zoo (for sampling) and the hyper-parameter zoo (for probing), as two configurations."""
    seeds = seed_zoo(
        name="digits CNN, seeds",
        num_models=settings.seed_zoo_networks,
        epochs=settings.seed_zoo_epochs[-1],
        keep_epochs=settings.seed_zoo_epochs,
        architecture_settings=NETWORK,
        seed=settings.seed,
    )
    mixed = hyperparameter_zoo(
        name="digits CNN, hyper-parameters",
        num_models=settings.hyperparameter_zoo_networks,
        epochs=settings.hyperparameter_zoo_epochs[-1],
        keep_epochs=settings.hyperparameter_zoo_epochs,
        architecture_settings=NETWORK,
        initializations=["uniform", "kaiming_uniform", "kaiming_normal"],
        seed=settings.seed + 1,
    )
    return {
        "seed": build_zoo(seeds, data, folder, config="seed"),
        "hyperparameter": build_zoo(mixed, data, folder, config="hyperparameter"),
    }


def pretrain_sane(
    output: Path, zoos: dict[str, Zoo], settings: DemoSettings
) -> tuple[SANEModel, SANEFeatureExtractor]:
    """Pre-train one autoencoder on the training networks of both zoos; windows hold whole networks."""
    folder = output / "pretraining" / "model"  # comes into being as a whole, at the end of the run
    if folder.is_dir():
        return load_sane(folder, dtype=torch.float32)
    layout = zoos["seed"].splits["train"].layout(0)
    arguments = PretrainSettings(
        zoo=[f"{output / 'zoos'}:{name}" for name in zoos],
        output=str(output / "pretraining"),
        model={
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_layers,
            "latent_dim": settings.latent_dim,
            "latent_noise": settings.latent_noise,
            "window_size": layout.num_tokens,
            "max_positions": layout.max_positions,
        },
        num_epochs=settings.pretrain_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        behavior_weight=settings.behavior_weight,
        behavior_data=settings.images if settings.behavior_weight else None,
        eval_every_epochs=0,
        log_with="none",
        resume=True,
        seed=settings.seed,
    )
    return load_sane(pretrain(arguments, zoos=list(zoos.values())).folder, dtype=torch.float32)


def sampling_results(
    curves: Mapping[str, list[list[float]]], distances: Mapping[str, float], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The sampling part of the record: mean test accuracy at epochs 0, 1 and 5, and distances."""
    rows: dict[str, Any] = {
        f"epoch_{epoch}": {name: sum(found[epoch]) / len(found[epoch]) for name, found in curves.items()}
        for epoch in REPORTED_EPOCHS
    }
    return {**rows, "nearest_training_distance": dict(distances), **facts}


def describe_zoo(zoo: Zoo) -> dict[str, Any]:
    """Size and quality of a zoo, for the record."""
    finals = [split.final_epochs() for split in zoo.splits.values()]
    accuracy = np.concatenate([split.column("test_accuracy") for split in finals])
    return {
        "networks": len(accuracy),
        "excluded": len(zoo.facts.excluded),
        "checkpoints": len(np.unique(zoo.splits["train"].column("epoch"))),
        "accuracy": float(accuracy.mean()),
        "splits": {name: len(split) for name, split in zip(zoo.splits, finals, strict=True)},
    }


def reconstruct(
    model: SANEModel,
    extractor: SANEFeatureExtractor,
    zoos: dict[str, Zoo],
    data: ImageData,
    *,
    window_size: int | None = None,
    halo_size: int = 0,
) -> dict[str, Any]:
    """Encode and decode the test networks of each zoo: R2 of all their checkpoints, accuracy of the final ones.

    Args:
        model: Pre-trained autoencoder.
        extractor: Its weight tokenizer.
        zoos: Aligned zoos of one architecture each.
        data: Images that the networks are tested on.
        window_size: Tokens per window; the training window when `None`.
        halo_size: Context tokens on each side of a window.
    """
    windows: dict[str, Any] = {"window_size": window_size, "halo_size": halo_size}
    total = torch.zeros(4, dtype=torch.float64)
    parts = {}
    for name, zoo in zoos.items():
        split = zoo.splits["test"]
        sums = reconstruction_sums(*_round_trip(model, extractor, aligned_tokens(split), split.layout(0), windows))
        total += sums
        final = split.final_epochs()
        codec = NetworkCodec(model, extractor, *final.layout_and_config(), **windows)
        raw = aligned_tokens(final)
        before = codec.networks(raw).evaluate(*data.split("test"))[1].mean().item()
        after = codec.decode(codec.encode(raw)).evaluate(*data.split("test"))[1].mean().item()
        parts[name] = {
            "r2": r2_from_sums(sums),
            "accuracy_original": before,
            "accuracy_reconstructed": after,
            "accuracy_kept": after / before if before else math.nan,
            "networks": len(final),
        }
    return {"reconstruction_r2": r2_from_sums(total), "reconstruction": parts}


def _round_trip(
    model: SANEModel, extractor: SANEFeatureExtractor, raw: Tensor, layout: Any, windows: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens, their reconstruction, and the weight mask."""
    tokens = extractor.normalize(raw, layout)
    latents = model.encode_sequences(tokens, layout.positions, **windows)
    return tokens, model.decode_sequences(latents, layout.positions, **windows), layout.weight_mask


def draw_map(output: Path, zoo: Zoo, embeddings: dict[str, Tensor], settings: DemoSettings) -> None:
    """Plot the test networks in the plane."""
    points = plane(embeddings["sane_layer_mean_std"].double().numpy(), seed=settings.seed)
    split = zoo.splits["test"]
    plot_embedding_map(points, {p: split.column(p) for p in PROPERTIES}, output / "embedding_map.png")


def save_samples(folder: Path, samples: Samples, record: RunRecord, settings: DemoSettings) -> None:
    """Save the first subsampled networks as model folders with provenance and card."""
    networks = samples.methods["sane_subsampled"]
    with output_folder(folder, "sample", replace=True) as partial:
        for index in range(min(NUM_SAVED, networks.num_models)):
            own = network_record(record, index)
            provenance = Provenance(
                method="subsampled",
                sane_model="sane",
                zoo="zoos (config seed)",
                anchors=samples.anchor_ids,
                seed=settings.seed,
                index=index,
                bandwidth=samples.bandwidth,
                bandwidth_unit="anchor_std",
                mode="joint",
                num_candidates=settings.num_candidates,
                test_accuracy=own.results["test_accuracy"],
            )
            save_network(
                partial / f"network_{index}",
                networks.model(index),
                own,
                title=network_title(index),
                provenance=provenance,
            )


def network_title(index: int) -> str:
    """Headline of a sampled network."""
    return f"Sampled digits CNN {index}"


def network_record(record: RunRecord, index: int) -> RunRecord:
    """The demo's record with the results of one of its subsampled networks: test accuracy over fine-tuning epochs."""
    curves: list[list[float]] = record.results["sampling"]["finetuning_curves"]["sane_subsampled"]
    accuracy = {f"after {epoch} epochs": networks[index] for epoch, networks in enumerate(curves) if epoch}
    return replace(record, results={"test_accuracy": curves[0][index], "test_accuracy_fine_tuned": accuracy})


def write_report(output: Path, record: RunRecord) -> dict[str, Any]:
    """Write report.json, report.md and the tables; results stand at the top level of the record."""
    content = record.to_dict()
    content |= content.pop("results")
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    pages = {
        "report.json": text,
        "probe_table.md": probe_markdown(content["probe_details"]) + "\n",
        "sampling_table.md": sampling_markdown(content["sampling"]) + "\n",
        "report.md": render_report(content),
    }
    for name, page in pages.items():
        with write_atomically(output / name) as partial:
            partial.write_text(page, encoding="utf-8")
    return content


__all__ = [
    "DemoResult",
    "demo",
    "run_demo",
]
