"""A run that is repeated from its run file, into another folder, gives the same output."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Fork
from hub_server import Hub
from small_runs import LONG, RUN_FILE, SmallRun, program, run_app, talk_to, visible

from hf_sane.records._manifests import MANIFEST
from hf_sane.records._run_files import run_file_text
from hf_sane.records._run_record import RECORD
from hf_sane.workflows.transfer import PushSettings

OPTIONS: dict[str, tuple[object, ...]] = {  # that small runs leave out
    "soup": ("--method", "greedy", "--images", "digits", "--align"),
    "embed": ("--poolings", "mean,layer_mean_std", "--batch-size", 3, "--color", "epoch", "--no-align"),
    "zoo import": ("--token-dim", 7, "--group-by", "network", "--seed", 3, "--files", "*.safetensors"),
    "scan": ("--fail-on", "error,std>0.5", "--seed", 5),
    "lineage": ("--claims",),
    "pull": ("--revision", "main"),
    "pretrain": ("--learning-rate", 2e-3, "--seed", 7, "--noise", 0.2),
}
SLOWER: dict[str, tuple[object, ...]] = {  # by `make kill` alone, to save time
    "zoo mix": ("--name", "mixed: a, b"),
    "zoo build": ("--seed", 3, "--learning-rate", "1e-3,2e-3", "--optimizers", "adam"),
    "zoo fit": ("--seed", 3, "--independent", "--frequency", 12),
    "analyze": ("--seed", 4),
    "probe": ("--spectra", "--properties", "test_accuracy,epoch"),
    "regions": ("--seed", 4, "--metric", "cosine", "--epoch", 0, "--splits", "train,test"),
    "zoo align": (),
    "finetune": ("--seed", 2, "--include-code", "--learning-rate", 0.002, "--images", "digits"),
    "diff": ("--no-plots",),
    "index": (),
    "linear": ("--grouping", "kind"),
    "zoo build --module": ("--text-column", "text", "--max-tokens", 3),
    "sample --anchors": ("--bandwidth", 0.2, "--unit", "latent_std"),
    "regions --adapter": ("--metric", "euclidean"),
    "sample": ("--bandwidth", 0.2, "--seed", 5, "--include-code"),
    **dict.fromkeys(LONG, ()),
}
RUNS = OPTIONS | (SLOWER if os.environ.get("KILL_POINTS") == "all" else {})

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def run_in_child(work: Callable[[], object]) -> None:
    """Run a verb; 1 is the code of a finding."""
    ended = Fork(work).wait()
    assert ended.code in (0, 1), ended.stderr


def without(place: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Content without the place where it is; manifests hold digests of files that name it."""

    def clean(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.replace(str(place).encode(), b"")
        return [line.replace(str(place), "") for line in value] if isinstance(value, list) else value

    return {name: clean(value) for name, value in content.items() if Path(name).name != MANIFEST}


def arguments(place: Path) -> dict[str, Any]:
    """Arguments in all run records."""
    found = {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob(RECORD)}
    return {name: json.loads(text.replace(str(place), "")).get("arguments") for name, text in found.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_file_repeats_its_run(name: str, small_run: Callable[[str], SmallRun], tmp_path: Path) -> None:
    run, places = small_run(name), [tmp_path / "first" / "place", tmp_path / "second" / "place"]
    for place in places:
        run.fresh(place)
    run_in_child(program(run, places[0], *map(str, RUNS[name])))
    (run_file,) = {path for folder in ("", "data") for path in (places[0] / "out" / folder).glob(RUN_FILE)}
    output = [run.output, places[1] / "out"] if run.output else [places[1] / "out"]
    verb = name.partition(" --")[0].split()
    command = [*verb, "--config", *map(str, (run_file, *output))]
    run_in_child(lambda: run.start(command))
    first, second = (without(place, visible(run.content(place))) for place in places)
    assert first.keys() == second.keys()
    assert [path for path, content in first.items() if content != second[path]] == []
    assert arguments(places[0]) == arguments(places[1])


def test_a_run_file_repeats_a_push(inputs: Path, hub: Hub, home: Path, tmp_path: Path) -> None:
    settings = PushSettings(kind="samples", folder=inputs / "sampled", repo_id="org/pushed@v1", include_code=False)
    (tmp_path / RUN_FILE).write_text(run_file_text("hf-sane push", settings))

    def push(*words: object) -> dict[str, bytes]:
        def start() -> None:
            talk_to(hub, home)
            run_app(["push", *map(str, words)])

        run_in_child(start)
        return hub.storage.repositories.pop(("models", "org/pushed")).at("v1").files

    first = push("samples", inputs / "sampled", "org/pushed", "--revision", "v1", "--no-include-code")
    assert {"model.safetensors", "network_1/model.safetensors"} < first.keys()
    assert push("--config", tmp_path / RUN_FILE) == first
