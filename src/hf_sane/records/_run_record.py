"""Run records: results with the command, code, machine and versions that produced them."""

import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_sane.records._allocator import allocator_state, peak_rss_bytes
from hf_sane.records._command import command_line
from hf_sane.records._documents import read_document
from hf_sane.records._file_kinds import FileKind
from hf_sane.records._outputs import output_file
from hf_sane.records._redaction import hide_folders_in, redact_tokens

PACKAGE = Path(__file__).parents[1]
RECORD = "run.json"  # file name in an output folder
RUN_RECORD = FileKind.json_with("a run record", "command")
PACKAGES = (
    "hf_sane",
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "accelerate",
    "safetensors",
    "evaluate",
    "numpy",
    "scipy",
    "peft",
    "scikit-learn",
)


@dataclass(kw_only=True)
class RunRecord:
    """A run and its results, which is saved with every output and used by cards and reports.

    Create it with [`RunRecord.start`] before the work, complete it with [`finish`], and [`save`] it. Unknown fields
    are `None` and are not saved.

    Attributes:
        command: The command line in shell syntax.
        seed: Seed of the run.
        commit: Git commit of the library's code; `None` if it was not installed from a repository.
        has_uncommitted_changes: Whether tracked files, or new files of the package, differ from `commit`.
        hardware: Processor, cores, memory, threads, GPUs.
        versions: Versions of Python and of packages that affect the result.
        allocator: See [`allocator_state`].
        started_at: UTC, ISO 8601.
        seconds: Wall time of the work.
        peak_rss_bytes: Largest resident memory of the process.
        data: Data that were used: zoo, images, splits and their sizes.
        arguments: The resolved settings.
        results: Measurements. Non-finite numbers are saved as null, since JSON cannot represent them.
    """

    command: str
    seed: int | None = None
    commit: str | None = None
    has_uncommitted_changes: bool | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    allocator: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()

    @classmethod
    def start(
        cls,
        *,
        seed: int | None = None,
        command: Sequence[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> "RunRecord":
        """Record all facts that are known before the work, and start the clock.

        Args:
            seed: Seed of the run.
            command: Program and its arguments; by default those of this process.
            arguments: Resolved settings.
            data: Data that will be used.
        """
        commit, has_uncommitted_changes = read_commit(PACKAGE)
        return cls(
            command=command_line() if command is None else redact_tokens(shlex.join(command)),
            seed=seed,
            commit=commit,
            has_uncommitted_changes=has_uncommitted_changes,
            hardware=read_hardware(),
            versions=read_versions(),
            allocator=allocator_state(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            arguments=dict(arguments or {}),
            data=dict(data or {}),
        )

    def finish(self, results: Mapping[str, Any], *, data: Mapping[str, Any] | None = None) -> "RunRecord":
        """Stop the clock and add the results.

        Args:
            results: Measurements to add to `results`.
            data: Facts to add to `data`.

        Returns:
            `self`.
        """
        self.seconds = time.perf_counter() - self._clock
        self.peak_rss_bytes = peak_rss_bytes()
        self.allocator = allocator_state()
        self.results |= results
        self.data |= data or {}
        return self

    def to_dict(self) -> dict[str, Any]:
        """Content of the file, without unknown facts and with numbers of NumPy and PyTorch converted to Python's.

        Raises:
            TypeError: If a value cannot be converted to JSON; the message has its location.
        """
        known = {name: value for name, value in asdict(self).items() if value is not None and value != {}}
        return {name: _plain(value, name) for name, value in known.items()}

    def without_folders(self) -> "RunRecord":
        """The record for publication, without local folders."""
        return RunRecord(**hide_folders_in(self.to_dict()))

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON; an interrupted write does not change an existing file.

        Returns:
            `path`.

        Raises:
            FileExistsError: If there is a file that is not a run record.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        with output_file(path, RUN_RECORD) as partial:
            partial.write_text(text, encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "RunRecord":
        """Read a record.

        Raises:
            FileNotFoundError: If the file does not exist.
            InvalidFileError: If it is not a run record.
        """
        document = read_document(path, expected="a run record (a JSON object)", remedy="run the command again")
        return cls(**document.fields_of(cls))


def read_commit(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the code in `folder`, and whether the code has been changed since.

    Returns:
        `(None, None)` without git, outside a repository, and if the repository does not track `folder` (a package in
        an environment inside another project).
    """
    if shutil.which("git") is None or not _git(folder, "ls-files", "--", "."):
        return None, None
    prefix = (_git(folder, "rev-parse", "--show-prefix") or "").strip()
    changes = (_git(folder, "status", "--porcelain", "--", ":/") or "").splitlines()
    # A new file inside the package is code, anywhere else it is output.
    relevant = [line for line in changes if not line.startswith("??") or line[3:].strip('"').startswith(prefix)]
    return (_git(folder, "rev-parse", "HEAD") or "").strip() or None, bool(relevant)


def read_hardware() -> dict[str, Any]:
    """Processor, vector instructions, cores, memory, PyTorch threads and GPUs, as far as known."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or None,
    }
    if hasattr(os, "sched_getaffinity"):
        found["usable_cores"] = len(os.sched_getaffinity(0))
    return {name: value for name, value in found.items() if value}


def read_versions() -> dict[str, str]:
    """Versions of Python, the system, and installed packages among `PACKAGES`."""
    system = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    return system | installed_versions(PACKAGES)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; `None` if it fails."""
    ran = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return ran.stdout if ran.returncode == 0 else None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _plain(value: Any, where: str) -> Any:
    """Convert a value to JSON types; `where` is its location for errors."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{where}: expected numbers, text, lists or mappings, got {type(value).__name__}; convert it first"
    )
