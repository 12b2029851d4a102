"""The full pipeline on a small example: train two zoos, pre-train SANE on both, probe it, sample from it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hf_sane.hub._cards import DEMO_NETWORK, DEMO_SANE
from hf_sane.hub._publish import save_sane
from hf_sane.networks._images import ImageData, load_images
from hf_sane.records._files import write_atomically
from hf_sane.records._outputs import begin_folder, finish_folder, output_folder, resumable_folder
from hf_sane.records._progress import announce
from hf_sane.records._run_record import RunRecord
from hf_sane.workflows.build_zoo import build_zoo
from hf_sane.workflows.compare import compare_samplers
from hf_sane.workflows.demo.plots import plane
from hf_sane.workflows.demo.report import PROPERTY_TITLES, DemoResult, short_table
from hf_sane.workflows.demo.settings import DemoSettings
from hf_sane.workflows.pretrain import pretrain
from hf_sane.workflows.probe import probe
from hf_sane.workflows.reconstruct import reconstruct
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._dataset import Zoo

NUM_SAVED = 3  # sampled networks to save with a card
SETTINGS_FILE = "settings.json"


class Stages:
    """Announces each stage and measures how long it takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record the duration of the `with` block under `name`."""
        announce(f"--- {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run_demo(settings: DemoSettings) -> DemoResult:
    """Train two small zoos, pre-train SANE, probe it, sample from it, and write a report; offline, on the CPU.

    The folder receives `zoos/`, `sane/`, `sampled/`, `probe_table.md`, `sampling_table.md`, two plots, `report.md` and
    `report.json`. An interrupted demo in this folder is continued if its settings are the same.
    """
    with resumable_folder(settings.output, DemoResult.JOB) as folder:
        claim_folder(folder, settings)
        result = fill_folder(folder, settings)
        result.write_all(folder)
        finish_folder(folder, DemoResult.JOB)
    result.output = settings.output / "report.md"
    return result


def claim_folder(folder: Path, settings: DemoSettings) -> None:
    """Store the settings in the folder, or compare them with those of the demo that was interrupted there.

    Raises:
        FileExistsError: If they differ.
    """
    path, text = folder / SETTINGS_FILE, json.dumps(settings.sizes(), indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(
            f"{folder} holds an interrupted demo with other settings ({SETTINGS_FILE}); use the same settings or "
            "another folder"
        )
    begin_folder(folder, DemoResult.JOB)
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fill_folder(output: Path, settings: DemoSettings) -> DemoResult:
    """Run all stages; zoos and an autoencoder that an interrupted demo had finished are reused."""
    record = RunRecord.start(seed=settings.seed, arguments=settings.sizes())
    stages = Stages()
    data = load_images(settings.images)
    with stages("train two zoos"):
        zoos = build_zoos(output / "zoos", data, settings)
    with stages("pre-train SANE"):
        sane = pretrain_sane(output / "pretraining", zoos, settings)
    results: dict[str, Any] = {"zoos": {name: describe_zoo(zoo) for name, zoo in zoos.items()}}
    with stages("reconstruct test networks"):
        results |= reconstruct(zoos, sane, data).to_dict()
    with stages("probe embeddings"):
        details = probe(zoos["hyperparameter"], sane, profile=True, linear=True).to_dict()["probe"]
        results |= {"probe": short_table(details), "probe_details": details}
        tested = zoos["hyperparameter"].splits["test"]
        points = plane(sane.embed(tested, pooling="layer_mean_std").double().numpy(), seed=settings.seed)
        shown = {f"test networks by {PROPERTY_TITLES[name]}": tested.column(name) for name in details}
    with stages("sample networks"):
        compared = compare_samplers(zoos["seed"], sane, data, condition=False, **settings.comparison())
    with stages("fine-tune samples and baselines"):
        curves = compared.finetune(settings.finetune_epochs)
    results |= {"sampling": compared.record.results, "stage_seconds": stages.seconds}
    record.finish(results, data={"images": data.describe(), "split": "70/15/15 by training run"})
    config = zoos["seed"].splits["train"].known_config(0)
    save_sane(output / "sane", sane.model, sane.extractor, record, title=DEMO_SANE, network_config=config)
    names = {"sane": "sane", "zoo": "zoos (config seed)", "title": DEMO_NETWORK}
    with output_folder(output / "sampled", "sample", replace=True) as partial:
        compared.sampled(NUM_SAVED, record, **names).write(partial)
    return DemoResult(record=record, map=(points, shown), curves=curves)


def build_zoos(folder: Path, data: ImageData, settings: DemoSettings) -> dict[str, Zoo]:
    """Train the seed zoo (for sampling) and the hyper-parameter zoo (for probing) as two configurations."""
    common: dict[str, Any] = {"output": folder, "architecture_settings": {"activation": "gelu"}}
    seeds = build_zoo(
        data,
        recipe="seed",
        zoo_config="seed",
        name="digits CNN, seeds",
        num_models=settings.seed_zoo_networks,
        epochs=settings.seed_zoo_epochs[-1],
        keep_epochs=settings.seed_zoo_epochs,
        seed=settings.seed,
        **common,
    )
    mixed = build_zoo(
        data,
        recipe="hyperparameter",
        zoo_config="hyperparameter",
        name="digits CNN, hyper-parameters",
        num_models=settings.hyperparameter_zoo_networks,
        epochs=settings.hyperparameter_zoo_epochs[-1],
        keep_epochs=settings.hyperparameter_zoo_epochs,
        initializations=["uniform", "kaiming_uniform", "kaiming_normal"],
        seed=settings.seed + 1,
        **common,
    )
    return {"seed": seeds, "hyperparameter": mixed}


def pretrain_sane(folder: Path, zoos: dict[str, Zoo], settings: DemoSettings) -> SANE:
    """Pre-train one autoencoder on the training networks of both zoos, with whole networks as windows."""
    layout = zoos["seed"].splits["train"].layout(0)
    return pretrain(
        list(zoos.values()),
        output=folder,
        model={
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_layers,
            "latent_dim": settings.latent_dim,
            "latent_noise": settings.latent_noise,
            "window_size": layout.num_tokens,
            "max_positions": layout.max_positions,
        },
        epochs=settings.pretrain_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        behavior_weight=settings.behavior_weight,
        behavior_data=settings.images if settings.behavior_weight else None,
        eval_every_epochs=0,
        log_with="none",
        resume=True,
        seed=settings.seed,
    )


def describe_zoo(zoo: Zoo) -> dict[str, Any]:
    """Size and accuracy of a zoo, for the record."""
    finals = [split.final_epochs() for split in zoo.splits.values()]
    accuracy = np.concatenate([split.column("test_accuracy") for split in finals])
    return {
        "networks": len(accuracy),
        "excluded": len(zoo.facts.excluded),
        "checkpoints": len(np.unique(zoo.splits["train"].column("epoch"))),
        "accuracy": float(accuracy.mean()),
        "splits": {name: len(split) for name, split in zip(zoo.splits, finals, strict=True)},
    }


__all__: list[str] = []  # a command without a function
