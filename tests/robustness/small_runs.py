"""A small run of every verb that writes, and how its result is compared."""

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hub_server import TOKEN, Hub
from huggingface_hub import constants

from hf_sane.cli.app import app
from hf_sane.records._manifests import CARD, MANIFEST
from hf_sane.records._outputs import check_finished
from hf_sane.records._run_files import ALIGNMENT_REPORT, REPORT, RUN_FILE
from hf_sane.zoo._writing import check_zoo

STRANGERS = {"notes.txt": "theirs", ".hidden": "theirs, too", "out.txt": "theirs as well", "other/file": "deep"}
TIMED_LINE = re.compile(r"\| (command|started at|seconds|stage seconds: [^|]+|peak rss bytes|resume) \|")  # of cards
PROCESS = re.compile(r"\d+(?=\.hf_sane-partial)")  # in names
OWNER = ".hf_sane-lock-owner"
MODEL = '{"hidden_size": 8, "latent_dim": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 8}'

VERBS = (  # what is cheap first
    *(
        "soup",
        "probe",
        "embed",
        "regions",
        "zoo align",
        "finetune",
        "zoo import",
        "scan",
        "diff",
        "analyze",
        "sample",
        "zoo mix",
    ),
    *("pretrain", "pull", "zoo build"),
)
SCRIPTS = ("finetune_lora.py", "pretrain.py", "build_zoo.py")
LONG = ("compare", "reconstruct", "start", "demo")  # by `make kill` alone


def nothing(place: Path) -> None:
    """Nothing has to be there."""


def run_app(arguments: list[str]) -> None:
    """Run a verb of the program."""
    sys.argv = ["hf-sane", *arguments]
    app(arguments, prog_name="hf-sane")


def talk_to(hub: Hub, home: Path) -> None:
    """Have the clients of this process, which is a child, know this Hub and no other."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    constants.HUGGINGFACE_CO_URL_TEMPLATE, constants.ENDPOINT = template, hub.address
    constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = True, str(home / "cache")
    os.environ["HF_TOKEN"] = TOKEN
    warnings.filterwarnings("default", "Not enough free disk space")  # of huggingface_hub, before the error
    warnings.filterwarnings(
        "default", "Use 'content=", DeprecationWarning
    )  # of httpx, as huggingface_hub 2.4 calls it


@dataclass(frozen=True)
class SmallRun:
    """A verb, script or function that writes, with inputs so small that it takes a second.

    Attributes:
        name: Of the verb.
        arguments: Of the command line, but for the output.
        prepare: Puts into the place what has to be there before, and somebody's files inside of it.
        check: Raises unless the output is finished and whole.
        continued_by: Flags that the program asks for after an interruption.
        timed: Further files that hold times, which are not compared.
        starts_finished: What the verb changes is finished before.
        start: Runs it, given the command line.
        program: What its messages begin with.
        most: Events that `make kill` tries at most, where all would take too long; all of them if `None`.
        share: Of the room that the verb needs, what a disk has that is too small.
        varies: The events are not the same every time: several threads make them.
    """

    name: str
    arguments: Sequence[object]
    prepare: Callable[[Path], None] = nothing
    check: Callable[[Path], object] = check_finished
    continued_by: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    output: str = "--output"
    share: float = 0.5
    varies: bool = False
    starts_finished: bool = False
    start: Callable[[list[str]], object] = run_app
    program: str = "hf-sane"
    most: int | None = None

    def command(self, place: Path) -> list[str]:
        """The whole command line."""
        where = [self.output, place / "out"] if self.output.startswith("-") else [place / "out"]
        return [str(part) for part in (*self.arguments, *where)]

    def fresh(self, place: Path) -> None:
        """Make the place anew, with files of somebody in it."""
        shutil.rmtree(place, ignore_errors=True)
        for name, text in STRANGERS.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        self.prepare(place)

    def content(self, place: Path) -> dict[str, Any]:
        """Every file below a place, but for times, logs, and Arrow copies that may be deleted at any time."""
        found: dict[str, Any] = {}
        for folder, folders, files in os.walk(place):
            folders[:] = [name for name in folders if name not in (".cache", "logs")]
            for name in files:
                path = Path(folder, name)
                relative = path.relative_to(place).as_posix()
                if name == MANIFEST:
                    manifest = json.loads(path.read_text())
                    # A manifest below this one holds digests of timed files; it is compared by itself.
                    files = {key: value for key, value in manifest["files"].items() if Path(key).name != MANIFEST}
                    listed = {key: value for key, value in files.items() if not self._is_timed(key)}
                    found[relative] = {**manifest, "files": listed, "timed": sorted(manifest["files"].keys() - listed)}
                elif name == CARD:
                    found[relative] = [line for line in path.read_text().splitlines() if not TIMED_LINE.match(line)]
                elif name == RUN_FILE:
                    found[relative] = path.read_text().replace(str(place), "")
                else:
                    found[relative] = None if self._is_timed(name) else path.read_bytes()
        return found

    def state(self, place: Path) -> str:
        """A digest of everything below a place, hidden or not, but for times and the numbers of processes."""
        digest = sha256()
        for path in sorted(place.rglob("*")):
            name = PROCESS.sub("", path.relative_to(place).as_posix())
            is_timed = self._is_timed(name) or name.endswith(OWNER)
            content = path.read_bytes() if path.is_file() else b"folder"
            digest.update(f"{name}\0{len(content) > 0 if is_timed else sha256(content).hexdigest()}\0".encode())
        return digest.hexdigest()

    def _is_timed(self, name: str) -> bool:
        last = name.rpartition("/")[2]
        return last in ("run.json", CARD, RUN_FILE, REPORT, ALIGNMENT_REPORT, *self.timed)


def program(run: SmallRun, place: Path, *flags: str) -> Callable[[], None]:
    """What a child does to run a verb."""
    command = [*run.command(place), *flags]

    return lambda: run.start(command)


def looks_finished(run: SmallRun, place: Path) -> bool:
    """Whether a loader would take the output."""
    try:
        run.check(place / "out")
    except (OSError, ValueError):
        return False
    return bool(visible(run.content(place)))  # nobody loads an empty folder


def visible(content: dict[str, Any]) -> dict[str, Any]:
    """What a loader sees of the output."""
    return {
        name: value
        for name, value in content.items()
        if name.partition("/")[0] == "out" and not any(part.startswith(".") for part in name.split("/"))
    }


def check_run(folder: Path) -> None:
    """A pre-training run is finished when its model is."""
    if not (folder / "model").is_dir():
        raise FileNotFoundError(folder / "model")
    check_finished(folder / "model")


def check_whole_zoo(folder: Path) -> None:
    """A zoo is finished when it can be loaded, with its alignment."""
    check_zoo(folder, "default")


def check_aligned_zoo(folder: Path) -> None:
    """A zoo that was built or aligned has its alignment."""
    check_zoo(folder, "default")
    if not (folder / "data" / "alignment.safetensors").is_file():
        raise FileNotFoundError("alignment.safetensors")


def holding(template: Path) -> Callable[[Path], None]:
    """The output folder is there before: a copy of another one, with a file of somebody inside of it."""

    def prepare(place: Path) -> None:
        shutil.copytree(template, place / "out")
        (place / "out" / "mine.txt").write_text("theirs inside")

    return prepare
