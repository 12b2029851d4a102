"""Small inputs, and the small run of every verb that writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_runs import MODEL, SmallRun, check_aligned_zoo, check_run, check_whole_zoo, holding
from typer.testing import CliRunner

from hf_sane.cli.app import app
from hf_sane.networks.images import ImageData
from hf_sane.zoo.building.arguments import ZooArguments
from hf_sane.zoo.building.build import build_zoo
from hf_sane.zoo.dataset import Zoo


def call(*arguments: object) -> None:
    """Run a verb in this process; it has to succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """A zoo, one without alignment, a SANE, sampled networks, loose checkpoints: `zoo`, `plain`, `sane`, `sampled`, `loose`."""
    folder = tmp_path_factory.mktemp("inputs")
    arguments = ZooArguments(
        architecture_settings={"conv_channels": [2], "kernel_sizes": [3], "pool_sizes": [2], "hidden_sizes": [4]},
        num_models=8,
        epochs=1,
        keep_epochs=[0, 1],
        learning_rate=[1e-3, 1e-2],
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
    for index in range(3):
        tensors = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(index))}
        save_file(tensors, folder / "loose" / f"{index}.safetensors")
    (folder / "images.json").write_text(json.dumps({}))
    return folder


@pytest.fixture(scope="session")
def small_run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SmallRun]:
    """The small run of a verb, by its name; it has run once, so that nothing is left to import."""
    zoo, sane, sampled = inputs / "zoo", inputs / "sane", inputs / "sampled"
    tiny = '{"conv_channels": [2], "kernel_sizes": [3], "pool_sizes": [4], "hidden_sizes": [2]}'
    limits = ("--train-limit", 32, "--validation-limit", 20, "--test-limit", 20)
    build = ("zoo", "build", "--images", "digits", *limits, "--num-models", 4, "--group-size", 2, "--epochs", 1)
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
        SmallRun("embed", ("embed", "--sane", sane, "--zoo", zoo)),
        SmallRun("probe", ("probe", "--sane", sane, "--zoo", zoo, "--poolings", "mean"), share=0),
        SmallRun("finetune", ("finetune", sampled, "--epochs", 1, "--train-limit", 32)),
        SmallRun("analyze", ("analyze", sampled / "network_0", "--num-bootstrap", 0)),
    ]
    known = {run.name: run for run in runs}
    ran: set[str] = set()

    def find(name: str) -> SmallRun:
        run = known[name]
        if name not in ran:
            ran.add(name)
            place = tmp_path_factory.mktemp("once") / "place"
            run.fresh(place)
            call(*run.command(place))
        return run

    return find
