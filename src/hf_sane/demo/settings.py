"""What the demo builds and how much of it; every number that shapes the result is here."""

from dataclasses import dataclass, field, fields

from huggingface_hub.dataclasses import strict

from hf_sane.sampling.comparison import ComparisonSettings


@strict
@dataclass(kw_only=True)
class DemoSettings:
    """Sizes of the demo. The defaults fill about eight minutes on two CPU cores; tests use far smaller ones.

    Attributes:
        seed: Of everything.
        images: Task that the zoos are trained on, see `load_images`.
        seed_zoo_networks: Networks that differ in nothing but their seed; sampling starts from them.
        hyperparameter_zoo_networks: Networks that differ in hyper-parameters too; probes read them.
        seed_zoo_epochs: Epochs kept of the seed zoo; the last one is where training ends.
        hyperparameter_zoo_epochs: The same for the hyper-parameter zoo.
        hidden_size, num_layers, latent_dim: Of the SANE autoencoder.
        latent_noise: Noise on latents in training, as a share of their root mean square: what bandwidth will ask for.
        behavior_weight: Share of the behavioural loss.
        pretrain_epochs: Windows per training network.
        batch_size: Windows per optimizer step.
        learning_rate: Peak of the one-cycle schedule.
        anchor_fraction: Best share of the seed zoo's training networks that serve as anchors (the paper: 30 %).
        bandwidths: Candidates, in standard deviations of the anchors' latents; 0 would only copy anchors and is not
            one.
        accuracy_share: The largest bandwidth wins whose kept networks keep this share of the best validation accuracy.
        num_candidates: Networks drawn for subsampling.
        num_kept: Networks kept, of every method.
        finetune_epochs: Epochs of fine-tuning.
    """

    seed: int = 0
    images: str = "digits"
    seed_zoo_networks: int = 128
    hyperparameter_zoo_networks: int = 384
    seed_zoo_epochs: list[int] = field(default_factory=lambda: [2, 5, 10, 15])
    hyperparameter_zoo_epochs: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 7, 10, 15, 20])
    hidden_size: int = 128
    num_layers: int = 3
    latent_dim: int = 64
    latent_noise: float = 0.1
    behavior_weight: float = 0.3
    pretrain_epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    anchor_fraction: float = 0.3
    bandwidths: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.15, 0.2, 0.3, 0.4])
    accuracy_share: float = 0.95
    num_candidates: int = 400
    num_kept: int = 10
    finetune_epochs: int = 5

    def validate_epochs(self) -> None:
        """Sampling is reported at epochs 0, 1 and 5."""
        if self.finetune_epochs < 5:
            raise ValueError(
                f"finetune_epochs must be at least 5, the last epoch reported, got {self.finetune_epochs}"
            )

    def comparison(self) -> ComparisonSettings:
        """The part about sampling."""
        return ComparisonSettings(
            **{
                entry.name: getattr(self, entry.name)
                for entry in fields(ComparisonSettings)
                if hasattr(self, entry.name)
            }
        )
