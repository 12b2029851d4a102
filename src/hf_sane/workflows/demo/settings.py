"""Settings of the demo: every number that affects its result."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.records._settings import setting
from hf_sane.sampling._comparison import SelectionSettings


@strict
@dataclass(kw_only=True)
class DemoSettings(SelectionSettings):
    """Settings of the demo, which takes about eight minutes on two CPU cores with the defaults."""

    output: Path = setting("New or empty folder.", default=Path("demo_output"), short="-o")
    images: str = setting(f"Images that the zoos are trained on: {IMAGE_KINDS}.", default="digits")
    seed_zoo_networks: int = setting("Number of networks that differ only in their seed, for sampling.", default=128)
    hyperparameter_zoo_networks: int = setting(
        "Number of networks that also differ in hyper-parameters, for probing.", default=384
    )
    seed_zoo_epochs: list[int] = setting(
        "Epochs of the seed zoo to store; training ends at the last.", factory=lambda: [2, 5, 10, 15]
    )
    hyperparameter_zoo_epochs: list[int] = setting(
        "Epochs of the hyper-parameter zoo to store.", factory=lambda: [0, 1, 2, 4, 7, 10, 15, 20]
    )
    hidden_size: int = setting("Hidden size of the autoencoder.", default=128)
    num_layers: int = setting("Number of layers of the encoder and of the decoder.", default=3)
    latent_dim: int = setting("Number of scalars per latent.", default=64)
    latent_noise: float = setting(
        "Standard deviation of the noise added to latents in training, as a share of their root mean square.",
        default=0.1,
    )
    behavior_weight: float = setting("Weight of the behavioural loss.", default=0.3)
    pretrain_epochs: int = setting("Number of windows per training network.", default=6)
    batch_size: int = setting("Number of windows per optimizer step.", default=64)
    learning_rate: float = setting("Peak learning rate of the one-cycle schedule.", default=1e-3)
    finetune_epochs: int = setting("Number of fine-tuning epochs; epochs 0, 1 and 5 are reported.", default=5)

    def sizes(self) -> dict[str, Any]:
        """Everything that affects the result: all settings except the output folder."""
        return {name: value for name, value in asdict(self).items() if name != "output"}

    def validate_epochs(self) -> None:
        """Check that fine-tuning reaches the last reported epoch."""
        if self.finetune_epochs < 5:
            raise ValueError(
                f"finetune_epochs must be at least 5, the last epoch reported, got {self.finetune_epochs}"
            )

    def comparison(self) -> dict[str, Any]:
        """The settings of sampling, as options of [`compare_samplers`]."""
        return {field.name: getattr(self, field.name) for field in fields(SelectionSettings)}


__all__: list[str] = []  # part of the command
