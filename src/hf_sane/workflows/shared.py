"""Settings that several workflows share."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from hf_sane.merging._adapters import are_adapters
from hf_sane.records._settings import CheckedSettings, setting
from hf_sane.records._sources import find_source
from hf_sane.screening._plain import plain_tensors
from hf_sane.tokenization._adapter_changes import merge_adapter
from hf_sane.tokenization._checkpoints import CheckpointSource, Source
from hf_sane.tokenization._lazy_checkpoints import open_checkpoint

logger = logging.getLogger(__name__)
BUNDLE = Path(__file__).parents[1] / "pretrained" / "small_images"  # the SANE that ships with this package


@dataclass(kw_only=True)
class SourceSettings(CheckedSettings):
    """Settings that select the weights in a folder or repository."""

    subfolder: str | None = setting("Subfolder with the weights, in the folder or repository.", default=None)
    variant: str | None = setting("Variant of the weights, such as fp16 for model.fp16.safetensors.", default=None)

    @property
    def weights(self) -> dict[str, str]:
        """The selected weights, as keyword arguments."""
        chosen = {name: getattr(self, name, None) for name in ("subfolder", "variant", "key")}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(kw_only=True)
class WeightsSettings(SourceSettings):
    """Settings that select the weights in a file, folder or repository."""

    key: str | None = setting("Name of the state dict in a training checkpoint, such as model_ema.", default=None)

    def selected(self, source: Source) -> Source | CheckpointSource:
        """The selected weights of a file, folder or repository; modules and state dicts as they are."""
        if not isinstance(source, str | Path):
            return source
        find_source(source)  # says at once that there is no such thing
        return self.place(source)

    def place(self, source: str | Path) -> CheckpointSource:
        """The selected weights of a file, folder or repository."""
        return CheckpointSource(source, None, self.subfolder, self.variant, self.key)


def is_adapter(source: Source | CheckpointSource) -> bool:
    """Whether a source is a LoRA adapter."""
    return isinstance(source, CheckpointSource) and are_adapters([source])


def open_network(source: Source | CheckpointSource, base: str | None) -> Mapping[str, Tensor]:
    """Tensors of a network, read one at a time; of a LoRA adapter, those of its base with its product."""
    if isinstance(source, CheckpointSource) and is_adapter(source):
        return merge_adapter(source, base)
    return plain_tensors(open_checkpoint(source))


@dataclass(kw_only=True)
class CheckpointSettings(WeightsSettings):
    """Settings that select the weights in a file, folder or repository, and the version of the latter."""

    revision: str | None = setting("Branch, tag or commit of the checkpoint on the Hub.", default=None)

    def selected(self, source: Source) -> Source | CheckpointSource:
        """The selected weights of a file, folder or repository; modules and state dicts as they are."""
        return self.place(source) if isinstance(source, str | Path) else source

    def place(self, source: str | Path) -> CheckpointSource:
        """The selected weights of a file, folder or repository, of this version."""
        return replace(super().place(source), revision=self.revision)


@dataclass(kw_only=True)
class AlignmentSettings(CheckedSettings):
    """Setting that limits the memory for matching channels."""

    max_aligned: int = setting(
        "Match channels only in networks of at most this many weights, since both are then in memory in double "
        "precision.",
        default=2 * 10**8,
        least=0,
    )


@dataclass(kw_only=True)
class SaneSettings(CheckedSettings):
    """Settings that select the autoencoder in a folder or repository."""

    sane_revision: str | None = setting(
        "Branch, tag or commit of the SANE on the Hub.", default=None, formerly="--revision"
    )
    sane_subfolder: str | None = setting("Subfolder with the SANE, in its folder or repository.", default=None)

    @property
    def sane_place(self) -> dict[str, Any]:
        """Keyword arguments of functions that load autoencoders."""
        return {"revision": self.sane_revision, "subfolder": self.sane_subfolder}


@dataclass(kw_only=True)
class ZooAlignmentSettings(CheckedSettings):
    """Setting of workflows that read the networks of a zoo, aligned or as they are."""

    align: bool | None = setting(
        "Align networks to the zoo's reference first; by default only if the zoo is aligned.",
        default=None,
        formerly="--aligned",
    )


@dataclass(kw_only=True)
class RunSettings(CheckedSettings):
    """Settings of workflows that compare the runs of zoos, one network of each."""

    epoch: int | None = setting("Epoch to take from every run; by default the last.", default=None)
    align: bool = setting("Permute channels to match the first network.", default=True)


@dataclass(kw_only=True)
class CodecSettings(CheckedSettings):
    """Settings for networks that are encoded, in several windows if they have more tokens than one."""

    window_size: int | None = setting(
        "Tokens per window, including context; by default as in training.", default=None, least=1
    )
    halo_size: int = setting("Context tokens on each side of a window.", default=0)
    batch_size: int = setting("Number of networks, and of windows, to process at a time.", default=64, least=1)

    @property
    def windows(self) -> dict[str, Any]:
        """Keyword arguments of functions that encode networks."""
        return {"window_size": self.window_size, "halo_size": self.halo_size, "batch_size": self.batch_size}


@dataclass(kw_only=True)
class WorkerSettings(CheckedSettings):
    """Setting of workflows whose inputs are independent of each other."""

    workers: int = setting(
        "Number of processes among which the inputs are divided, with one thread each.",
        default=1,
        least=1,
    )


@dataclass(kw_only=True)
class PlotSettings(CheckedSettings):
    """Setting of workflows that draw plots into their output folder."""

    plots: bool = setting("Draw plots (without matplotlib, they are left out).", default=True)

    def check_matplotlib(self) -> None:
        """Leave plots out, with a warning, if matplotlib is not installed: results do not depend on it."""
        if self.plots and find_spec("matplotlib") is None:
            logger.warning(
                "plots are left out, since matplotlib is not installed: pip install 'hf_sane[analysis]', or pass "
                "--no-plots"
            )
            self.plots = False


def temporary_folder(job: str) -> Path:
    """Create a temporary output folder and log its path; it remains until the system clears it."""
    with TemporaryDirectory(prefix=f"hf_sane-{job}-") as name:
        folder = Path(name)  # removed at once, since the output writer creates it
    logger.warning("no output folder was given; the %s is written to %s", job, folder)
    return folder


__all__: list[str] = []  # building blocks of other workflows
