"""Check this machine: versions, PyTorch, memory, disk, the Hub, optional packages, and a self-test."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, TypedDict

import torch
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from packaging.requirements import Requirement

from hf_sane.networks._images import ImageData
from hf_sane.records._allocator import allocator_state
from hf_sane.records._failures import describe_error, expected_errors
from hf_sane.records._run_record import RunRecord, read_hardware
from hf_sane.records._settings import CheckedSettings, as_arguments, setting
from hf_sane.records._sources import within
from hf_sane.workflows.build_zoo import build_zoo
from hf_sane.workflows.pretrain import pretrain
from hf_sane.workflows.results import Result
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._dataset import Zoo

# What each optional extra of the package provides.
EXTRAS = {
    "train": "TensorBoard logs of pre-training, and LoRA",
    "analysis": "plots, maps, digits as images, and gradient boosting",
    "scan": "scans of pickles",
    "refine": "CMA-ES (sample --refine-method cma)",
    "explore": "the explorer, a page in the browser",
    "onnx": "export to ONNX (start --onnx)",
}
MIN_FREE_BYTES = 2**30
HUB_SECONDS = 5.0
BLOCK = 2**22  # numbers in a temporary tensor: 16 MiB
ROUNDS = 10
SLOW_ALLOCATION = 2.0  # a new temporary tensor may take this many times as long as a reused one
MODEL = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 8}
Verdict = Literal["ok", "note", "fault"]


@dataclass(kw_only=True)
class DoctorSettings(CheckedSettings):
    """Settings of [`run_doctor`]."""

    hub: bool = setting("Check that the Hub can be reached, and whose token is used.", default=True)
    self_test: bool = setting(
        "Build a tiny zoo, pre-train for one step, sample, save and load; takes less than a minute.", default=True
    )


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: What was checked.
        verdict: `"fault"` if something does not work; `"note"` if something could be better, or is optional and
            missing.
        found: What was found.
        remedy: What the user can do.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


class DoctorJson(TypedDict):
    """The JSON object that `--json` prints.

    Attributes:
        healthy: Whether no fault was found.
        checks: Results of all checks.
    """

    healthy: bool
    checks: list[Check]


@dataclass(kw_only=True)
class DoctorResult(Result):
    """All checks."""

    JSON: ClassVar[Any] = DoctorJson

    checks: list[Check] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 if there is a fault."""
        return int(any(check.verdict == "fault" for check in self.checks))

    def to_dict(self) -> dict[str, Any]:
        """The checks, and whether all passed."""
        return {"healthy": self.exit_code == 0, "checks": [asdict(check) for check in self.checks]}

    def summary(self) -> list[str]:
        """A line for each check, and a line for each remedy."""
        lines = []
        for check in self.checks:
            lines.append(f"{check.verdict}: {check.name}: {check.found}")
            lines += [f"    {check.remedy}"] if check.remedy else []
        return lines


def run_doctor(settings: DoctorSettings) -> DoctorResult:
    """Check that this machine has what the library needs; the exit code is 1 if something does not work.

    Access tokens are never printed; they are only sent to the Hub, to determine their owner.
    """
    record = RunRecord.start(arguments=as_arguments(settings))
    checks = [check_versions(), *check_extras(), check_torch(), check_threads(), check_allocator(), *check_disks()]
    if settings.hub:
        checks.append(check_hub())
    if settings.self_test:
        checks.append(check_itself())
    return DoctorResult(record=record.finish({}), checks=checks)


def check_versions() -> Check:
    """Check the versions of the required packages."""
    needed = [Requirement(text) for text in requires("hf_sane") or () if "extra ==" not in text]
    found = {one.name: installed(one.name) for one in needed}
    wrong = [str(one) for one in needed if not one.specifier.contains(found[one.name] or "0", prereleases=True)]
    names = ("torch", "transformers", "datasets", "huggingface-hub")
    shown = ", ".join(f"{name} {found.get(name)}" for name in names)
    if wrong:
        given = ", ".join(f"{Requirement(text).name} {found[Requirement(text).name]}" for text in wrong)
        return Check("versions", "fault", f"got {given}", f"pip install {' '.join(map(repr, wrong))}")
    return Check("versions", "ok", f"hf_sane {version('hf_sane')}, {shown}")


def check_extras() -> Iterator[Check]:
    """Check the optional packages."""
    listed = [Requirement(text) for text in requires("hf_sane") or ()]
    for extra, purpose in EXTRAS.items():
        names = [one.name for one in listed if one.marker is not None and one.marker.evaluate({"extra": extra})]
        missing = [name for name in names if installed(name) is None]
        if missing:
            yield Check(f"extra {extra}", "note", f"no {', '.join(missing)}", f"for {purpose}: {install(extra)}")
        elif names:
            yield Check(f"extra {extra}", "ok", f"{', '.join(names)} ({purpose})")


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'hf_sane[{extra}]'"


def installed(name: str) -> str | None:
    """The version of a package, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_torch() -> Check:
    """Check the build of PyTorch."""
    hardware = read_hardware()
    gpus = hardware.get("gpus") or ["no GPU"]
    parts = [torch.__version__, hardware["vector_instructions"], *gpus]
    if not torch.backends.mkldnn.is_available():
        return Check("PyTorch", "note", ", ".join([*parts, "without oneDNN"]), "a build with oneDNN is faster on CPUs")
    return Check("PyTorch", "ok", ", ".join(parts))


def check_threads() -> Check:
    """Compare PyTorch's number of threads with the cores that this process may use."""
    threads, cores = torch.get_num_threads(), read_hardware().get("usable_cores") or os.cpu_count() or 1
    found = f"{threads} on {cores} usable cores"
    if threads > cores:
        return Check("threads", "note", f"{found}: threads wait for each other", f"set OMP_NUM_THREADS={cores}")
    return Check("threads", "ok", found)


def check_allocator() -> Check:
    """Measure what the memory allocator costs: the time for new temporary tensors, relative to a reused one."""
    kept = torch.empty(BLOCK)
    kept.fill_(0.0)
    fresh_seconds = _seconds(lambda: torch.empty(BLOCK).fill_(1.0))
    kept_seconds = _seconds(lambda: kept.fill_(1.0))
    ratio = fresh_seconds / max(kept_seconds, 1e-9)
    state = allocator_state()
    tuned = ", ".join([*state["environment"], *state["tuned"]]) or "default settings"
    found = f"{state['name']} ({tuned}): a new 16 MiB tensor takes {fresh_seconds * 1e3:.2g} ms, {ratio:.2g} times"
    found += " as long as a reused one"
    if ratio > SLOW_ALLOCATION:
        remedy = "export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456"
        return Check("allocator", "note", found, remedy)
    return Check("allocator", "ok", found)


def _seconds(work: Callable[[], object]) -> float:
    """Median duration of a call."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[ROUNDS // 2]


def check_disks() -> Iterator[Check]:
    """Check free space and permissions of the folders for outputs and downloads."""
    places = {"this folder": Path.cwd(), "Hub cache": Path(constants.HF_HUB_CACHE)}
    for name, place in places.items():
        home = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(home).free
        found = f"{place}: {free / 2**30:.1f} GiB free"
        if not os.access(home, os.W_OK):
            yield Check(name, "fault", f"{place} is not writable", "make it writable, or set HF_HOME for the cache")
        elif free < MIN_FREE_BYTES:
            yield Check(name, "fault", found, "free some space, or set HF_HOME for the cache")
        else:
            yield Check(name, "ok", found)


def check_hub() -> Check:
    """Check that the Hub can be reached and accepts the token."""
    if constants.is_offline_mode():
        return Check("Hub", "note", "offline mode (HF_HUB_OFFLINE): only cached repositories can be used", "unset it")
    api, has_token, answers = HfApi(), get_token() is not None, []

    def ask() -> None:
        answers.append(api.whoami()["name"] if has_token else api.repo_exists("hf_sane/doctor"))

    try:
        within(HUB_SECONDS, ask)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if has_token and status in (401, 403):
            return Check("Hub", "fault", f"{api.endpoint} does not accept the token", "log in again: hf auth login")
        return Check("Hub", "note", f"{api.endpoint} answered {status}", "try again later")
    except (HTTPError, OSError) as error:
        return Check(
            "Hub",
            "note",
            f"{api.endpoint} cannot be reached ({describe_error(error)})",
            "local files work without the Hub",
        )
    if not has_token:
        return Check(
            "Hub", "note", f"{api.endpoint} can be reached; no token is set", "for private repositories: hf auth login"
        )
    return Check("Hub", "ok", f"{api.endpoint} can be reached, logged in as {answers[0]}")


def check_itself() -> Check:
    """Build a tiny zoo, pre-train for one step, sample a network, save it and load it again."""
    start = time.perf_counter()
    try:
        with TemporaryDirectory(prefix="hf_sane-doctor-") as name:
            _run_through(Path(name))
    except expected_errors() as error:
        return Check(
            "self-test",
            "fault",
            describe_error(error),
            "please report this with the output of `hf-sane doctor --json`",
        )
    seconds = time.perf_counter() - start
    return Check("self-test", "ok", f"zoo, pre-training, sampling, saving and loading in {seconds:.0f} s")


def make_tiny_zoo(folder: Path) -> tuple[ImageData, Zoo, SANE]:
    """Random images, a zoo of six networks that were trained on them, and a SANE that was trained for one step."""
    pixels, labels = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
    train, validation, test = slice(40), slice(40, 50), slice(50, 60)
    data = ImageData(
        "random",
        train_images=pixels[train],
        train_labels=labels[train],
        validation_images=pixels[validation],
        validation_labels=labels[validation],
        test_images=pixels[test],
        test_labels=labels[test],
        num_classes=10,
    )
    zoo = build_zoo(data, num_models=6, epochs=1, keep_epochs=[0, 1], progress_bar=False, output=folder / "zoo")
    sane = pretrain(
        zoo, max_steps=1, model=MODEL, log_with="none", progress_bar=False, output=folder / "run", batch_size=4
    )
    return data, zoo, sane


def _run_through(folder: Path) -> None:
    from transformers import AutoModelForImageClassification

    data, zoo, sane = make_tiny_zoo(folder)
    sampled = sane.sample(zoo, images=data, num_samples=1, num_candidates=2, top_fraction=1.0, bandwidth=[0.1])
    sampled.save_pretrained(folder / "networks")
    network = folder / "networks" / "network_0"
    loaded = AutoModelForImageClassification.from_pretrained(network, trust_remote_code=False)
    logits = loaded(data.test_images[:2]).logits
    if logits.shape != (2, 10) or not logits.isfinite().all():
        raise ValueError(f"expected finite logits of 2 images and 10 classes, got {tuple(logits.shape)}")


__all__: list[str] = []  # a command without a function
