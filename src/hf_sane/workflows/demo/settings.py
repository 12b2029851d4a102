"""What the demo builds and how much of it; every number that shapes the result is here."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.records._settings import setting
from hf_sane.sampling._comparison import SelectionSettings

SANE_TITLE, NETWORK_TITLE = "SANE of the demo", "Sampled digits CNN"  # headlines of cards


@strict
@dataclass(kw_only=True)
class DemoSettings(SelectionSettings):
    """Sizes of the demo. The defaults fill about eight minutes on two CPU cores; tests use far smaller ones."""

    output: Path = setting("New or empty folder.", default=Path("demo_output"), short="-o")
    images: str = setting(f"Images that the zoos are trained on: {IMAGE_KINDS}.", default="digits")
    seed_zoo_networks: int = setting("Number of networks that differ only in their seed, to sample from.", default=128)
    hyperparameter_zoo_networks: int = setting(
        "Number of networks that differ in hyper-parameters, too, to probe.", default=384
    )
    seed_zoo_epochs: list[int] = setting(
        "Epochs kept of the seed zoo; training ends at the last.", factory=lambda: [2, 5, 10, 15]
    )
    hyperparameter_zoo_epochs: list[int] = setting(
        "Epochs kept of the hyper-parameter zoo.", factory=lambda: [0, 1, 2, 4, 7, 10, 15, 20]
    )
    hidden_size: int = setting("Hidden size of the autoencoder.", default=128)
    num_layers: int = setting("Number of layers of its encoder and of its decoder.", default=3)
    latent_dim: int = setting("Scalars per latent.", default=64)
    latent_noise: float = setting("Noise on latents in training, as a share of their root mean square.", default=0.1)
    behavior_weight: float = setting("Share of the behavioural loss.", default=0.3)
    pretrain_epochs: int = setting("Number of windows per training network.", default=6)
    batch_size: int = setting("Number of windows per optimizer step.", default=64)
    learning_rate: float = setting("Peak of the one-cycle schedule.", default=1e-3)
    finetune_epochs: int = setting("Epochs of fine-tuning; sampling is reported at epochs 0, 1 and 5.", default=5)

    def sizes(self) -> dict[str, Any]:
        """Everything that shapes the result: all but the place of the output."""
        return {name: value for name, value in asdict(self).items() if name != "output"}

    def validate_epochs(self) -> None:
        """Sampling is reported at epochs 0, 1 and 5."""
        if self.finetune_epochs < 5:
            raise ValueError(
                f"finetune_epochs must be at least 5, the last epoch reported, got {self.finetune_epochs}"
            )

    def comparison(self) -> dict[str, Any]:
        """The part about sampling, as options of [`compare_samplers`]."""
        return {field.name: getattr(self, field.name) for field in fields(SelectionSettings)}


__all__ = ["DemoSettings"]
