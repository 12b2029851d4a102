"""Small inputs, and the small run of every verb that writes."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.figure
import pytest
import torch
from artefact_writers import RECORD, WRITERS
from hub_server import Hub, run_hub
from kill_record import KillRecord
from safetensors.torch import save_file
from small_runs import (
    MODEL,
    SmallRun,
    check_aligned_zoo,
    check_run,
    check_whole_zoo,
    holding,
    looks_finished,
    run_app,
    talk_to,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_sane.analysis._pictures import save_picture
from hf_sane.analysis._report import SpectrumReport
from hf_sane.cli.app import app
from hf_sane.networks._images import ImageData
from hf_sane.records._failures import run_script
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.building._build import build_zoo
from hf_sane.zoo.building._settings import ZooSettings

ROOT = Path(__file__).parents[2]
WORDS = """
from torch import nn


class Words(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.embed = nn.Embedding(8, width)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))
"""
DEMO = {
    "seed_zoo_networks": 14,
    "hyperparameter_zoo_networks": 20,
    "seed_zoo_epochs": [1],
    "hyperparameter_zoo_epochs": [0, 1],
    "hidden_size": 8,
    "num_layers": 1,
    "latent_dim": 8,
    "pretrain_epochs": 1,
    "num_candidates": 4,
    "num_samples": 2,
    "bandwidth": [0.1],
}


def pytest_configure(config: pytest.Config) -> None:
    """`make kill` leaves a run record; of several processes, the one that gathers the results writes it."""
    if (path := os.environ.get("KILL_RECORD")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(KillRecord(Path(path), os.environ["KILL_POINTS"]))


def call(*arguments: object) -> None:
    """Run a verb in this process; it has to succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """Folders `zoo`, `plain` (a zoo without alignment), `sane`, `sampled` and `loose` (single checkpoints)."""
    folder = tmp_path_factory.mktemp("inputs")
    arguments = ZooSettings(
        architecture_settings={"conv_channels": [2], "kernel_sizes": [3], "pool_sizes": [2], "hidden_sizes": [4]},
        num_models=8,
        epochs=1,
        keep_epochs=[0, 1],
        learning_rate=[1e-3, 1e-2],
        optimizers=["sgd", "adam"],
        progress_bar=False,
    )
    zoo = build_zoo(arguments, digits, folder / "zoo")
    plain = Zoo({name: type(split)(split.table, split.facts) for name, split in zoo.splits.items()}, zoo.facts)
    plain.save(folder / "plain")
    plain.save(folder / "other", "other")
    call(
        *("pretrain", "--zoo", folder / "zoo", "--output", folder / "run", "--model", MODEL, "--max-steps", 2),
        *("--batch-size", 4, "--num-permutations", 2, "--log-with", "none", "--no-progress-bar"),
    )
    (folder / "run" / "model").rename(folder / "sane")
    call(
        *("sample", "--sane", folder / "sane", "--zoo", folder / "zoo", "--output", folder / "sampled"),
        *("--num-samples", 2, "--num-candidates", 3, "--images", "digits"),
    )
    (folder / "loose").mkdir()
    (folder / "adapters").mkdir()
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        if index < 3:
            save_file({"w": torch.randn(3, 4, generator=generator)}, folder / "loose" / f"{index}.safetensors")
        factors = {"unet:0:down": torch.randn(2, 6, generator=generator), "unet:0:up": torch.randn(5, 2)}
        save_file(factors, folder / "adapters" / f"{index}.safetensors")
    save_texts(folder / "texts")
    (folder / "images.json").write_text(json.dumps({}))
    return folder


def save_texts(folder: Path) -> None:
    """Texts with labels, their tokenizer, and a module that classifies them."""
    folder.mkdir()
    known = {word: index for index, word in enumerate(("[PAD]", "a", "good", "bad", "film"))}
    words = Tokenizer(models.WordLevel(known, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="a")
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = ["text,label", *["a good film,yes", "a bad film,no"] * 30]
    (folder / "reviews.csv").write_text("\n".join(rows))
    (folder / "words.py").write_text(WORDS)


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """A Hub with a model in it; clients talk to it after [`talk_to`]."""
    files = {
        "model.safetensors": os.urandom(3000),
        "config.json": b"{}",
        "sub/notes.txt": b"x",
        ".gitattributes": b"y",
    }
    with run_hub() as hub:
        hub.storage.add_files("models", "org/model", files)
        yield hub


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clients of the Hub keep what they know."""
    return tmp_path_factory.mktemp("home")


def flags(settings: dict[str, Any]) -> Iterator[object]:
    """Settings as options of a command line."""
    for name, value in settings.items():
        yield f"--{name.replace('_', '-')}"
        yield from value if isinstance(value, list) else [value]


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / "scripts" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script_run(name: str, arguments: tuple[object, ...], **settings: Any) -> SmallRun:
    """The small run of a script."""
    module = script(name)

    def start(command: list[str]) -> None:
        run_script(lambda: module.main(command), name=name)

    return SmallRun(name, arguments, start=start, program=name, **settings)


def writer_run(name: str, write: Callable[[Path], object], **settings: Any) -> SmallRun:
    """The small run of a function that saves an artefact, as a program would call it."""

    def start(command: list[str]) -> None:
        run_script(lambda: write(Path(command[0])), name="writer")

    return SmallRun(name, (), start=start, program="writer", output="", **settings)


def writer_runs() -> list[SmallRun]:
    """Of every function that saves an artefact: a folder, a folder in place of another one, a single file."""

    def prepare(place: Path) -> None:
        WRITERS["save_network"](place / "out")

    def finished_json(path: Path) -> None:
        json.loads(path.read_text())

    figure = matplotlib.figure.Figure(figsize=(1, 1))
    report = SpectrumReport("x", (), {}, {})
    return [
        *(writer_run(name, write) for name, write in WRITERS.items()),
        writer_run("save_network in place of another", WRITERS["save_network"], prepare=prepare, starts_finished=True),
        writer_run("RunRecord.save", RECORD.save, check=finished_json),
        writer_run("SpectrumReport.save_json", report.save_json, check=finished_json),
        writer_run("save_picture", lambda path: save_picture(figure, path), check=Path.read_bytes),
    ]


@pytest.fixture(scope="session")
def small_run(
    inputs: Path, hub: Hub, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], SmallRun]:
    """The small run of a verb, by its name; it has run once, so that nothing is left to import."""
    zoo, sane, sampled = inputs / "zoo", inputs / "sane", inputs / "sampled"
    tiny = '{"conv_channels": [2], "kernel_sizes": [3], "pool_sizes": [4], "hidden_sizes": [2]}'
    limits = ("--train-limit", 32, "--validation-limit", 20, "--test-limit", 20)
    build = ("zoo", "build", "--images", "digits", *limits, "--num-models", 4, "--group-size", 2, "--epochs", 1)
    fields = ("--validation-limit", 3, "--test-limit", 3)
    train = ("--num-models", 4, "--train-limit", 32, "--validation-limit", 20, "--test-limit", 20)

    def pull(command: list[str]) -> None:
        talk_to(hub, home)
        run_app(command)

    runs = [
        SmallRun(
            "zoo build",
            (*build, "--architecture-settings", tiny, "--no-progress-bar"),
            holding(inputs / "other"),
            check_aligned_zoo,
        ),
        SmallRun(
            "zoo import",
            ("zoo", "import", "--folder", inputs / "loose", "--split-shares", "1,0,0"),
            check=check_whole_zoo,
        ),
        SmallRun(
            "zoo build --module",
            (
                *("zoo", "build", "--module", f"{inputs / 'texts/words.py'}:Words", "--module-args", '{"width": 3}'),
                *("--texts", inputs / "texts/reviews.csv", "--tokenizer", inputs / "texts/tokenizer"),
                *("--num-models", 4, "--epochs", 1, "--token-dim", 4, "--no-progress-bar"),
            ),
            check=check_whole_zoo,
        ),
        SmallRun(
            "sample --anchors",
            (
                *("sample", "--sane", sane, "--anchors", sampled / "network_0", "--anchors", sampled / "network_1"),
                *("--num-samples", 2, "--num-candidates", 3, "--images", "digits"),
            ),
        ),
        SmallRun(
            "regions --adapter",
            (
                "regions",
                *(f"--adapter={'ab'[x % 2]}={inputs / 'adapters' / f'{x}.safetensors'}" for x in range(4)),
                *("--method", "pca"),
            ),
        ),
        SmallRun("zoo mix", ("zoo", "mix", f"a={zoo}", f"b={zoo}"), check=check_whole_zoo),
        SmallRun(
            *("zoo align", ("zoo", "align"), holding(inputs / "plain"), check_whole_zoo),
            output="",
            starts_finished=True,
            share=0,
        ),
        SmallRun(
            "pretrain",
            (
                *("pretrain", "--zoo", zoo, "--model", MODEL, "--max-steps", 4, "--batch-size", 4),
                *("--num-permutations", 2, "--checkpoint-every-steps", 2, "--no-progress-bar"),
            ),
            check=check_run,
            continued_by=("--resume",),
            timed=("arguments.json",),  # say whether it was resumed
        ),
        SmallRun(
            "sample",
            (
                *("sample", "--sane", sane, "--zoo", zoo, "--num-samples", 2, "--num-candidates", 3),
                *("--images", "digits"),
            ),
        ),
        SmallRun("soup", ("soup", sampled)),
        SmallRun(
            "compare",
            (
                *("compare", "--sane", sane, "--zoo", zoo, "--num-candidates", 4, "--num-samples", 2),
                *("--num-anchors", 2, "--finetune-epochs", 0, "--methods", "sane_subsampled", "--bandwidth", 0.1),
            ),
        ),
        SmallRun("reconstruct", ("reconstruct", "--sane", sane, "--zoo", zoo, "--images", "digits")),
        SmallRun(
            "start",
            (
                *("start", "--images", "digits", "--num-candidates", 4, "--num-starts", 1, "--epochs", 1),
                *("--learning-rate", 1e-3, "--bandwidth", 0.1, "--train-limit", 40, "--no-progress-bar"),
            ),
        ),
        SmallRun("embed", ("embed", "--sane", sane, "--zoo", zoo)),
        SmallRun("probe", ("probe", "--sane", sane, "--zoo", zoo, "--poolings", "mean"), share=0),
        SmallRun("finetune", ("finetune", sampled, "--epochs", 1, "--train-limit", 32)),
        SmallRun("scan", ("scan", sampled, "--no-spectra"), timed=("report.json",)),
        SmallRun("diff", ("diff", sampled / "network_0", sampled / "network_1")),
        SmallRun("analyze", ("analyze", sampled / "network_0", "--num-bootstrap", 0)),
        SmallRun(
            "regions",
            ("regions", "--zoo", zoo, "--label", "optimizer", "--num-points", 0, "--method", "pca"),
            share=0,
        ),
        SmallRun(
            "zoo fit",
            ("zoo", "fit", "--train-limit", 4, *fields, "--hidden-sizes", "4,3", "--steps", 3, "--no-progress-bar"),
            check=check_whole_zoo,
        ),
        SmallRun("linear", ("linear", "--zoo", zoo, "--latent-dim", 4)),
        SmallRun("index", ("index", zoo, inputs / "loose")),
        SmallRun("lineage", ("lineage", sampled, inputs / "loose")),
        SmallRun("pull", ("pull", "org/model"), varies=True, start=pull),
        SmallRun("demo", ("demo", *flags(DEMO)), most=8, timed=("report.json", "report.md")),
        script_run(
            "build_zoo.py",
            (*train, "--epochs", 1, "--architecture-settings", tiny),
            check=check_aligned_zoo,
        ),
        script_run(
            "pretrain.py",
            ("--zoo", zoo, "--model", MODEL, "--max-steps", 2, "--batch-size", 4, "--num-permutations", 2),
            check=check_run,
            continued_by=("--resume",),
            timed=("arguments.json",),
        ),
        script_run("finetune_lora.py", (sampled / "network_0", "--train-limit", 32, "--steps", 2)),
        *writer_runs(),
    ]
    known = {run.name: run for run in runs}
    ran: set[str] = {"pull"}  # which changes the process that it runs in

    def find(name: str) -> SmallRun:
        run = known[name]
        if name not in ran:
            ran.add(name)
            place = tmp_path_factory.mktemp("once") / "place"
            run.fresh(place)
            with suppress(SystemExit):
                run.start(run.command(place))
            assert looks_finished(run, place)
        return run

    return find
