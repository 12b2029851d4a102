"""Settings of a pre-training run, which are also the options of `scripts/pretrain.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from hf_sane.core._adapters import require_hub_id
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._modules import ModuleSettings
from hf_sane.records._documents import read_settings
from hf_sane.records._settings import ProgressSettings, as_arguments, check_numbers, former_names, setting
from hf_sane.records._sources import hub_id
from hf_sane.training._lora import LORA_TARGETS
from hf_sane.zoo._settings import ZooRevisionSettings
from hf_sane.zoo.windows._windows import WindowSettings

# Settings that may differ between a run and its continuation.
RESUMABLE = (
    "output",
    "resume",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "log_every_steps",
    "progress_bar",
    "log_with",
)


@strict
@dataclass(kw_only=True)
class PretrainSettings(WindowSettings, ModuleSettings, ZooRevisionSettings, ProgressSettings):
    """Settings of one pre-training run of a SANE autoencoder.

    The text next to each field is its documentation and its help text. Defaults follow the released settings for
    CNN zoos where they exist (AdamW, OneCycleLR, batch 32, 50 epochs, multiplicative noise 0.1); the learning rate is
    higher, and gradients are clipped, which the released code does not do. Settings of the *model* are defined
    in `SANEConfig` only; `model` passes them on.

    Raises:
        TypeError: If a field is unknown, a value has the wrong type, or `model` has an unknown field of `SANEConfig`.
        ValueError: If a value is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range.
    """

    zoo: list[str] = setting("Zoos to train on (folders or Hub repo ids). Several must have the same token_dim.")
    output: str | Path = setting(
        "Run folder for model/, checkpoints/, logs/ and arguments.json.", short="-o", formerly="--output_dir"
    )
    zoo_config: str | None = setting("Name of the zoo, if a folder or dataset holds several.", default=None)
    streaming: bool = setting(
        "Read the zoos as streams, from their folders or the Hub, without a full copy on this machine.",
        default=False,
    )
    stream_buffer: int = setting("Number of rows in the shuffle buffer of a stream.", default=1000)
    stream_sample: int = setting(
        "Number of training rows of a stream to which the weight tokenizer and the initial weights are fitted.",
        default=1000,
    )
    model: dict[str, Any] | str | None = setting(
        "SANEConfig fields as a JSON object, or the path of a JSON file; token_dim is set by the zoo.", default=None
    )
    from_: str | None = setting(
        "SANE (folder or Hub repo id) to continue training from, with its weight tokenizer.",
        default=None,
        formerly="--pretrained",
    )
    from_subfolder: str | None = setting(
        "Subfolder with that SANE, in its folder or repository.", default=None, formerly="pretrained_subfolder"
    )
    lora: bool = setting(
        "Freeze the pretrained model and train a LoRA adapter for it (docs/how-to/lora.md).", default=False
    )
    lora_rank: int = setting("Rank of the adapter.", default=4)
    lora_alpha: float = setting("Scale of the adapter, which is multiplied by alpha / rank.", default=8.0)
    lora_targets: list[str] = setting(
        "Names of the modules to adapt with low-rank matrices.", factory=lambda: list(LORA_TARGETS)
    )
    lora_trained: list[str] = setting("Names of the modules to train and save in full.", factory=list)
    base: str | None = setting(
        "Hub repo id of the SANE to adapt, if it is given as a folder.",
        default=None,
        formerly="--lora-base",
    )
    normalization: Literal["standardize", "robust", "none"] = setting(
        "Normalisation of each layer, fitted to the training split.", default="standardize"
    )
    statistics_by_kind: bool = setting(
        "Also fit the weight tokenizer by kind of layer, for layers that no training network has (mixed zoos).",
        default=False,
    )

    epochs: int = setting(
        "Number of epochs; in each, every training network contributes one random window.",
        default=50,
        formerly="--num-epochs",
    )
    max_steps: int | None = setting("Number of optimizer steps, instead of --epochs.", default=None)
    gradient_accumulation_steps: int = setting("Number of forward passes per optimizer step.", default=1)
    learning_rate: float = setting("Peak learning rate of the one-cycle schedule.", default=1e-3)
    weight_decay: float = setting("Decoupled weight decay of AdamW.", default=3e-9)
    warmup_share: float = setting("Share of the steps for warm-up of the learning rate, in (0, 1).", default=0.3)
    max_grad_norm: float = setting("Largest gradient norm, for clipping; 0 disables clipping.", default=1.0)
    mixed_precision: Literal["no", "bf16"] = setting(
        "Precision of matrix products; bf16 is faster on GPUs and, for wide models, on CPUs with AMX.", default="no"
    )
    activation_checkpointing: bool = setting(
        "Recompute activations in the backward pass to save memory.", default=False
    )
    initial_tokens: int = setting(
        "Number of training tokens for the principal components of the linear path if latent_dim < token_dim; 0 "
        "for none.",
        default=20_000,
    )

    behavior_weight: float = setting(
        "Share of the behavioural loss, in [0, 1], which compares outputs of original and reconstructed networks. "
        "Requires windows that cover whole networks.",
        default=0.0,
    )
    behavior_data: str | None = setting(
        f"Images of the behavioural loss: {IMAGE_KINDS}.",
        default=None,
    )
    behavior_images: int = setting("Number of images per step of the behavioural loss.", default=64)
    behavior_models: int = setting("Largest number of networks per step and view of the behavioural loss.", default=32)
    behavior_loss: Literal["mse", "kl"] = setting(
        "Distance between softmax outputs: mean squared error or Kullback-Leibler divergence.", default="mse"
    )

    behavior_latent_noise: float = setting(
        "Compute half of the behavioural loss on networks decoded from noisy latents, as in sampling. The noise "
        "has this many standard deviations over the networks of a batch; 0 for no noise.",
        default=0.0,
    )

    supervised_weight: float = setting(
        "Weight of a loss that predicts properties of a network from the mean latent of a window; 0 disables it.",
        default=0.0,
    )
    supervised_properties: list[str] = setting(
        "Columns of the zoo that this loss predicts.", factory=lambda: ["test_accuracy", "epoch", "generalization_gap"]
    )

    eval_every_epochs: int = setting(
        "Number of epochs between evaluations on the validation split; 0 evaluates at the end only.", default=5
    )
    eval_models: int = setting("Number of validation networks per evaluation, evenly spaced.", default=200)
    halo_size: int = setting("Context tokens on each side of a window in evaluation.", default=0)
    checkpoint_every_minutes: float = setting(
        "Minutes between checkpoints, or longer if saving would take over 5% of the time; 0 for none. Checkpoints "
        "are removed when the run is finished.",
        default=1.0,
    )
    checkpoint_every_steps: int = setting(
        "Number of optimizer steps between checkpoints, instead of minutes; 0 to use minutes. The newest are kept.",
        default=0,
    )
    keep_checkpoints: int = setting("Number of checkpoints to keep; older ones are removed.", default=2)
    resume: bool = setting(
        "Continue from the newest checkpoint in the run folder, if there is one.", default=False, once=True
    )
    log_every_steps: int = setting("Number of optimizer steps between logged losses.", default=10)
    log_with: Literal["tensorboard", "none"] = setting("Logger of the losses.", default="tensorboard")

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            self.model = read_settings(self.model, "model")
        self.model = self.model or {}

    def validate_counts(self) -> None:
        """Check that counts are in range."""
        for name in ("epochs", "gradient_accumulation_steps", "eval_models"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "behavior_images",
            "behavior_models",
            "keep_checkpoints",
            "log_every_steps",
            "stream_buffer",
            "stream_sample",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_every_epochs", "checkpoint_every_steps", "initial_tokens", "halo_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {self.lora_rank}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}; leave it out to count epochs")

    def validate_ranges(self) -> None:
        """Check that rates and shares are in range."""
        for name in ("weight_decay", "max_grad_norm", "supervised_weight", "checkpoint_every_minutes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.warmup_share < 1:
            raise ValueError(f"warmup_share must lie strictly between 0 and 1, got {self.warmup_share}")
        if not 0 <= self.behavior_weight <= 1:
            raise ValueError(f"behavior_weight must lie in [0, 1], got {self.behavior_weight}")
        if not 0 <= self.behavior_latent_noise < float("inf"):
            raise ValueError(f"behavior_latent_noise must be a number >= 0, got {self.behavior_latent_noise}")
        check_numbers(self)

    def validate_choices(self) -> None:
        """Check that dependent choices are consistent."""
        if not self.zoo:
            raise ValueError("expected at least one zoo, got none; give folders or Hub repo ids (--zoo)")
        if self.second_network != "same" and self.streaming:
            raise ValueError(
                f"second_network={self.second_network!r} needs all checkpoints of a run, which a stream does not "
                "provide; turn streaming off"
            )
        if self.lora and self.from_ is None:
            raise ValueError("lora needs a pretrained model to adapt; give its folder or Hub repo id (--from)")
        if self.from_subfolder is not None and (self.lora or self.from_ is None):
            raise ValueError(
                "a subfolder (--from-subfolder) needs a SANE to continue from (--from), and cannot be the base of an "
                "adapter; pull the repository and give the folder itself"
            )
        if self.lora and not self.lora_targets:
            raise ValueError(f"expected names of modules in lora_targets, got none; such as {list(LORA_TARGETS)}")
        if self.base is not None:
            require_hub_id(self.base)
        if self.supervised_weight > 0:
            self._check_supervision()
        if self.behavior_weight > 0 and self.behavior_data is None:
            raise ValueError("behavior_weight > 0 needs behavior_data: 'digits' or the path of an .npz of images")

    def _check_supervision(self) -> None:
        if self.batch_size < 3 or not self.supervised_properties or self.streaming:
            raise ValueError(
                "supervised_weight > 0 needs batches of at least 3 windows, at least one property, and zoos that are "
                f"not streamed; got batch_size={self.batch_size}, supervised_properties={self.supervised_properties}, "
                f"streaming={self.streaming}"
            )

    @property
    def model_settings(self) -> dict[str, Any]:
        """`model` as a dictionary."""
        return self.model if isinstance(self.model, dict) else {}

    @property
    def base_model(self) -> str | None:
        """Hub repo id of the base model of a LoRA adapter; `None` if unknown."""
        return self.base or hub_id(self.from_)

    def to_dict(self) -> dict[str, Any]:
        """All fields in a form that JSON supports."""
        return as_arguments(self)

    def check_continues(self, other: dict[str, Any], *, model: Path | None = None, is_finished: bool = False) -> None:
        """Raise an error if a run would be resumed with other settings.

        Args:
            other: Settings of the earlier run, from [`to_dict`].
            model: Folder of its model, from which another run can continue with other settings.
            is_finished: Whether this model is finished.

        Raises:
            ValueError: If a setting that affects the result differs.
        """
        former = former_names(type(self))
        mine, other = self.to_dict(), {former.get(name, name): value for name, value in other.items()}
        changed = sorted(k for k in mine.keys() | other.keys() if k not in RESUMABLE and mine.get(k) != other.get(k))
        if changed:
            remedy = "use those, or another output folder"
            if model is not None and not self.lora:
                remedy += f" (with --from {model}, it continues from {'' if is_finished else 'the end of '}this run)"
            raise ValueError(
                f"the run was started with other settings of {', '.join(changed)}: "
                f"expected {[other.get(k) for k in changed]}, got {[mine.get(k) for k in changed]}; {remedy}"
            )
