"""Settings that several workflows share, said once."""

from dataclasses import dataclass

from hf_sane.records.settings import setting


@dataclass(kw_only=True)
class WeightsSettings:
    """Which weights of a file, folder or repository are meant."""

    subfolder: str | None = setting("Folder with the weights, in a folder or repository.", default=None)
    variant: str | None = setting("Which precision: fp16 reads model.fp16.safetensors.", default=None)
    key: str | None = setting("Which state dict of a training checkpoint, such as model_ema.", default=None)


@dataclass(kw_only=True)
class WindowSettings:
    """How networks longer than the training window go through a SANE."""

    halo_size: int = setting("Context tokens on each side of a window.", default=0)
    batch_size: int = setting("Networks, and windows, at a time.", default=64)
