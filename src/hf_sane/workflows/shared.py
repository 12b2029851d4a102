"""Settings that several workflows share, said once."""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_sane.records._settings import CheckedSettings, setting

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SourceSettings(CheckedSettings):
    """Which network of a folder or repository is meant."""

    subfolder: str | None = setting("Folder with the weights, in a folder or repository.", default=None)
    variant: str | None = setting("Which precision: fp16 reads model.fp16.safetensors.", default=None)

    @property
    def weights(self) -> dict[str, str]:
        """Which weights of the sources are meant, where that is said."""
        chosen = {name: getattr(self, name, None) for name in ("subfolder", "variant", "key")}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(kw_only=True)
class WeightsSettings(SourceSettings):
    """Which weights of a file, folder or repository are meant."""

    key: str | None = setting("Which state dict of a training checkpoint, such as model_ema.", default=None)


@dataclass(kw_only=True)
class SaneSettings(CheckedSettings):
    """Where in a folder or repository the autoencoder is."""

    sane_subfolder: str | None = setting("Folder with the SANE, in its folder or repository.", default=None)


@dataclass(kw_only=True)
class HaloSettings(CheckedSettings):
    """How networks longer than the training window go through a SANE."""

    halo_size: int = setting("Context tokens on each side of a window.", default=0)
    batch_size: int = setting("Networks, and windows, at a time.", default=64, least=1)


def temporary_folder(job: str) -> Path:
    """A new folder for the output of somebody who named none; it is logged, and stays until the system clears it."""
    with TemporaryDirectory(prefix=f"hf_sane-{job}-") as name:
        folder = Path(name)  # given back at once: the one writer makes it
    logger.warning("no output folder was given: the %s goes to %s", job, folder)
    return folder


__all__ = [
    "HaloSettings",
    "SaneSettings",
    "SourceSettings",
    "WeightsSettings",
]
