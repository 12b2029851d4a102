"""Import checkpoints of another library: seconds, memory, and the ratio to a loop that only opens them.

    python benchmarks/zoo_import.py --output runs/benchmarks/zoo_import.json

Files of `torch.save`, each a network of about 10,000 weights; the same files are opened by `torch.load` before and
after. Importing, embedding and aligning 1,000 of these are compared with as many networks of this library of the same
shapes. Tracing loads the exporter of PyTorch once per process; these one or two seconds are reported separately. About
three minutes on 2 cores.
"""

import importlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from running import finish, new_parser, start
from torch import nn

from hf_sane.architectures.presets import build_model, mlp
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._modules import register_architecture
from hf_sane.records._failures import run_script
from hf_sane.training._preparation import fit_extractor
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._alignment import align_zoo
from hf_sane.zoo._dataset import Zoo
from hf_sane.zoo.importing._importing import import_zoo
from hf_sane.zoo.importing._settings import ImportSettings

INPUTS, HIDDEN, LABELS = 64, 128, 10
TOKEN_DIM = 128
EVERY_SECONDS = 0.05


class Foreign(nn.Module):
    """A perceptron of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images `[B, 1, 8, 8]`."""
        return self.last(self.first(x.flatten(1)).relu())


def save_foreign(folder: Path, count: int) -> None:
    """Files of `torch.save`, in one folder."""
    folder.mkdir()
    for index in range(count):
        torch.manual_seed(index)
        torch.save(Foreign().state_dict(), folder / f"{index:05}.pt")


def save_own(folder: Path, count: int) -> None:
    """Folders of `save_pretrained`."""
    config = mlp(image_size=8, hidden_sizes=[HIDDEN])
    for index in range(count):
        torch.manual_seed(index)
        build_model(config).save_pretrained(folder / f"{index:05}")


@contextmanager
def watching_memory() -> Iterator[dict[str, int]]:
    """Maximum during the block, in bytes: resident memory of this process, and increase of its anonymous memory."""
    found, ended = {"resident": 0, "anonymous": 0}, threading.Event()
    before = _status_bytes("RssAnon")

    def watch() -> None:
        while not ended.wait(EVERY_SECONDS):
            found["resident"] = max(found["resident"], _status_bytes("VmRSS"))
            found["anonymous"] = max(found["anonymous"], _status_bytes("RssAnon") - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def _status_bytes(entry: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{entry}:"))


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def open_all(folder: Path) -> None:
    """The minimal work of an import."""
    for path in sorted(folder.iterdir()):
        torch.load(path, weights_only=True)


def import_all(folder: Path, output: Path) -> Zoo:
    """One zoo, without splits."""
    settings = ImportSettings(
        folder=folder, allow_pickle=True, token_dim=TOKEN_DIM, group_by="network", split_shares=[1, 0, 0]
    )
    return import_zoo(settings, output).zoo


def rates_of(folder: Path, output: Path) -> dict[str, float]:
    """Networks per second that are imported, embedded and aligned."""
    importing, zoo = seconds_of(lambda: import_all(folder, output))
    split = zoo.splits["train"]
    config = SANEConfig(token_dim=TOKEN_DIM, hidden_size=32, latent_dim=8, num_hidden_layers=1, num_attention_heads=2)
    sane = SANE(SANEModel(config).eval(), fit_extractor([split], "standardize"))
    embedding, _ = seconds_of(lambda: sane.embed(split))
    aligning, _ = seconds_of(lambda: align_zoo(zoo))
    seconds = {"import": importing, "embed": embedding, "align": aligning}
    return {name: len(split) / value for name, value in seconds.items()}


def measure(count: int, compared: int, folder: Path) -> dict[str, Any]:
    """Import many networks, then compare two kinds."""
    save_foreign(folder / "many", count)
    before, _ = seconds_of(lambda: open_all(folder / "many"))
    with watching_memory() as memory:
        seconds, zoo = seconds_of(lambda: import_all(folder / "many", folder / "zoo of many"))
    after, _ = seconds_of(lambda: open_all(folder / "many"))
    opening = (before + after) / 2
    exporter, _ = seconds_of(lambda: importlib.import_module("torch.export._trace"))
    register_architecture(Foreign, torch.zeros(1, 1, 8, 8))
    save_foreign(folder / "foreign", compared)
    save_own(folder / "own", compared)
    rates = {name: rates_of(folder / name, folder / f"zoo of {name}") for name in ("foreign", "own")}
    return {
        "seconds": seconds,
        "networks": len(zoo.splits["train"]),
        "weights_per_network": sum(parameter.numel() for parameter in Foreign().parameters()),
        "peak_resident_bytes": memory["resident"],
        "peak_anonymous_bytes": memory["anonymous"],
        "seconds_to_open": opening,
        "ratio_to_opening": seconds / opening,
        "seconds_to_load_exporter": exporter,
        "networks_per_second": rates,
        "own_over_foreign": {name: rates["own"][name] / rate for name, rate in rates["foreign"].items()},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write a run record if requested."""
    parser = new_parser(__doc__)
    parser.add_argument("--num-models", dest="networks", type=int, default=10_000, help="files to import")
    parser.add_argument("--compared", type=int, default=1_000, help="networks of each kind to compare")
    arguments, record = start(parser, argv)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.networks, arguments.compared, Path(folder))
    return finish(record, results, arguments.output, shows=True)


if __name__ == "__main__":
    run_script(main, name="zoo_import.py")
