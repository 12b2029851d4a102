"""Costs of scanning, importing, embedding and pre-training, per network and per byte.

    python benchmarks/collection_costs.py --output runs/benchmarks/collection_costs.json

Each verb runs as a process of its own on collections of networks of many sizes, no two of the same shape: one small
network, many small ones, a few large ones, and a mixture whose sizes are log-normal. Costs are fitted to the first
three and checked on the mixture. The system's cache of the files is dropped before each run, so that bytes are those
that were read from the disk (Linux). Finally, an import and a pre-training run are killed half-way and started again.
About ten minutes on 2 cores.
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import finish, new_parser, start
from safetensors.torch import save_file
from scipy.optimize import nnls

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.records._failures import run_script
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.sane import SANE

TOKEN_DIM = 289  # the default of `zoo import`
WATCH_SECONDS = 0.02
MILLION = 1e6
BATCH = 4
BUFFER = 8  # rows
EPOCHS = 4  # of the runs that are killed
FITTED = ("one", "small", "large")
PROGRAM = (sys.executable, "-m", "hf_sane")
MODEL = {
    "hidden_size": 64,
    "latent_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "window_size": 64,
    "position_embedding": "sinusoidal",
}
KINDS = ("seconds", "read", "written")


@dataclass(frozen=True)
class Usage:
    """Resources that a process used.

    Attributes:
        seconds: Processor time, without waiting for the disk or for other processes.
        read: Bytes read from the disk.
        written: Bytes written to files.
        memory: Largest anonymous memory, in bytes.
    """

    seconds: float
    read: int
    written: int
    memory: int


def run_watched(command: Sequence[str], *, stop: Callable[[], bool] = lambda: False) -> Usage:
    """Run a process and watch it; it is killed as soon as `stop` holds.

    Raises:
        CalledProcessError: If it fails.
    """
    memory, killed = 0, False
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            memory = max(memory, _number(process.pid, "status", "RssAnon") * 1024)
            if not killed and stop():
                process.kill()
                killed = True
            time.sleep(WATCH_SECONDS)
        read, written = (_number(process.pid, "io", name) for name in ("read_bytes", "write_bytes"))
        process.wait()
        if process.returncode and not killed:
            errors.seek(0)
            raise subprocess.CalledProcessError(process.returncode, list(command), stderr=errors.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(seconds, read, written, memory)


def _number(pid: int, file: str, field: str) -> int:
    """A number that Linux reports about a process; 0 if the process does not exist any more."""
    lines = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def save_networks(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """One file per network: three matrices and a vector of random weights; no two have the same shapes."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    paths = []
    for number, size in enumerate(sizes):
        width = max(2, round(math.sqrt(size / 3)))
        shapes = {"first.weight": (width, width), "middle.weight": (width, width), "last.weight": (width, width)}
        shapes["last.bias"] = (number + 1,)
        path = folder / f"{number:05}.safetensors"
        save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
        paths.append(path)
    return paths


def drop_cache(folder: Path) -> None:
    """Drop the system's cache of all files of a folder, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def commands(networks: Path, paths: Sequence[Path], sane: Path, work: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Each step with its command, and the folder that it reads."""
    scanned = ["scan", *map(str, paths), "--budget", "1%", "--fail-on", "never", "--output", str(work / "scan")]
    embedded = ["embed", *map(str, paths), "--sane", str(sane), "--poolings", "mean", "--no-plots"]
    yield "scan", [*PROGRAM, *scanned], networks
    yield "import", [*PROGRAM, *importing(networks, work / "zoo")], networks
    yield "embed", [*PROGRAM, *embedded, "--output", str(work / "embeddings")], networks
    yield "pretrain", [*PROGRAM, *pretraining(work / "zoo", work / "run", len(paths) // BATCH)], work / "zoo"


def importing(networks: Path, zoo: Path) -> list[str]:
    """The command that imports a folder."""
    shares = ["--group-by", "network", "--split-shares", "1,0,0"]
    return ["zoo", "import", "--folder", str(networks), *shares, "--output", str(zoo)]


def pretraining(zoo: Path, output: Path, steps: int) -> list[str]:
    """The command that pre-trains on a stream; with one step for each batch of networks it is one epoch."""
    options = {"--batch-size": BATCH, "--max-steps": max(1, steps), "--checkpoint-every-steps": 2}
    options |= {"--stream-buffer": BUFFER, "--stream-sample": BUFFER, "--normalization": "none"}
    options |= {"--views": "original,original"}
    words = [str(word) for option in options.items() for word in option]
    model = ["--model", json.dumps(MODEL)]
    return ["pretrain", "--zoo", str(zoo), "--streaming", "--output", str(output), *model, *words]


def fit_costs(collections: Sequence[dict[str, Any]], step: str) -> dict[str, dict[str, float]]:
    """Non-negative costs of a step: a fixed part, one per network, and one per byte of weights.

    Memory does not add up over networks: its last part is that per byte of the largest network.
    """
    fits = {}
    for kind in (*KINDS, "memory"):
        scale = "largest" if kind == "memory" else "bytes"
        known = np.array([[1.0, found["networks"], found[scale] / MILLION] for found in collections])
        solution, _ = nnls(known, np.array([found["steps"][step][kind] for found in collections], dtype=float))
        fits[kind] = {"fixed": solution[0], "per_network": solution[1], "per_byte": solution[2] / MILLION}
    return fits


def predict(costs: dict[str, dict[str, float]], collection: dict[str, Any]) -> dict[str, float]:
    """Resources of a collection, predicted from costs."""
    scales = {kind: "largest" if kind == "memory" else "bytes" for kind in costs}
    return {
        kind: cost["fixed"]
        + cost["per_network"] * collection["networks"]
        + cost["per_byte"] * collection[scales[kind]]
        for kind, cost in costs.items()
    }


def measure_collection(sizes: Sequence[int], sane: Path, work: Path) -> dict[str, Any]:
    """Usage of every step."""
    work.mkdir()
    paths = save_networks(work / "networks", sizes)
    used = {}
    for step, command, reads in commands(work / "networks", paths, sane, work):
        drop_cache(reads)
        used[step] = asdict(run_watched(command))
        print(f"{len(paths)} networks, {step}: {used[step]}")
    nbytes = [path.stat().st_size for path in paths]
    facts = (work / "zoo" / "zoo.json").stat().st_size
    return {"networks": len(paths), "bytes": sum(nbytes), "largest": max(nbytes), "facts_bytes": facts, "steps": used}


def measure_restarts(collection: Path, networks: int) -> dict[str, dict[str, Any]]:
    """Kill an import and a pre-training run in the middle; what the second start uses, beside an undisturbed run."""
    zoo, run = collection / "second_zoo", collection / "second_run"
    steps = EPOCHS * networks // BATCH

    def has_read_half() -> bool:
        return sum(1 for _ in zoo.rglob("*.safetensors")) >= networks // 2

    def has_trained_half() -> bool:
        return any(int(path.name.removeprefix("step-")) >= steps // 2 for path in (run / "checkpoints").glob("step-*"))

    found: dict[str, dict[str, Any]] = {}
    jobs: dict[str, tuple[Path, list[str], Callable[[], bool]]] = {
        "import": (collection / "networks", importing(collection / "networks", zoo), has_read_half),
        "pretrain": (collection / "zoo", pretraining(collection / "zoo", run, steps), has_trained_half),
    }
    for step, (reads, command, stop) in jobs.items():
        again = [*PROGRAM, *command, *(["--resume"] if step == "pretrain" else [])]
        found[step] = {}
        for name, words, stops in (("killed", [*PROGRAM, *command], stop), ("again", again, lambda: False)):
            drop_cache(reads)
            found[step][name] = asdict(run_watched(words, stop=stops))
    undisturbed = pretraining(collection / "zoo", collection / "third_run", steps)
    drop_cache(collection / "zoo")
    found["pretrain"]["undisturbed"] = asdict(run_watched([*PROGRAM, *undisturbed]))
    return found


def measure(sizes: dict[str, Sequence[int]], folder: Path) -> dict[str, Any]:
    """Fit costs to three collections, check them on the mixture, and measure restarts there."""
    torch.manual_seed(0)
    extractor = SANEFeatureExtractor(TOKEN_DIM, normalization="none")
    sane = SANE(SANEModel(SANEConfig(token_dim=TOKEN_DIM, **MODEL)), extractor)
    sane.save_pretrained(folder / "sane")
    found = {name: measure_collection(numbers, folder / "sane", folder / name) for name, numbers in sizes.items()}
    mixture = found["mixture"]
    costs = {step: fit_costs([found[name] for name in FITTED], step) for step in mixture["steps"]}
    return {
        "collections": found,
        "costs": costs,
        "predicted": {step: predict(cost, mixture) for step, cost in costs.items()},
        "restarts": measure_restarts(folder / "mixture", mixture["networks"]),
        "batch": BATCH,
        "buffer": BUFFER,
        "epochs": EPOCHS,
        "model": MODEL,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--small", type=int, default=200, help="number of small networks, of 10,000 weights")
    parser.add_argument("--large", type=int, default=8, help="number of large networks, of 4 million weights")
    parser.add_argument("--mixture", type=int, default=60, help="number of networks in the mixture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sizes in the mixture")
    arguments, record = start(parser, argv)
    mixed = np.random.default_rng(arguments.seed).lognormal(math.log(200_000), 1.5, arguments.mixture)
    sizes: dict[str, Sequence[int]] = {
        "one": [10_000],
        "small": [10_000 + 100 * number for number in range(arguments.small)],
        "large": [4_000_000 + 10_000 * number for number in range(arguments.large)],
        "mixture": [int(size) for size in mixed.clip(100, 10_000_000)],
    }
    with tempfile.TemporaryDirectory() as folder:
        results = measure(sizes, Path(folder).resolve())
    return finish(record, results, arguments.output, data={"networks": "random weights", "log_normal_sigma": 1.5})


if __name__ == "__main__":
    run_script(main, name="collection_costs.py")
