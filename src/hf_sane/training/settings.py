"""Settings of a pre-training run, checked when they are set; `scripts/pretrain.py` takes the same names as flags."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from hf_sane.core.adapters import require_hub_id
from hf_sane.records.documents import read_settings
from hf_sane.records.errors import did_you_mean
from hf_sane.records.sources import hub_id
from hf_sane.training.lora import LORA_TARGETS

# What may differ between a run and its continuation.
RESUMABLE = (
    "output_dir",
    "resume",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "log_every_steps",
    "progress_bar",
    "log_with",
)


def _field(help_text: str, *, default: Any, aliases: Sequence[str] = ()) -> Any:
    """A field that documents itself; `aliases` are further names of its flag."""
    return field(default=default, metadata={"help": help_text, "aliases": list(aliases)})


VIEWS = ("original", "aligned", "permuted")


@strict
@dataclass(kw_only=True)
class PretrainSettings:
    """Settings of one pre-training run of a SANE autoencoder.

    The text beside each field is its documentation and its `--help`. Defaults follow the released settings for CNN zoos
    where there is one (AdamW, OneCycleLR, batch 32, 50 epochs, multiplicative noise 0.1); the learning rate is higher,
    and gradients are clipped, which the released code does not do. What defines the *model* lives in `SANEConfig` only:
    `model` passes its fields on.

    Raises:
        TypeError: For an unknown field (and, in `model`, for an unknown field of `SANEConfig`).
        StrictDataclassFieldValidationError: For a value of the wrong type.
        StrictDataclassClassValidationError: For a value out of range.
    """

    zoo: list[str] = field(
        metadata={"help": "Zoos to train on: folders or Hub dataset ids. Several must share one token_dim."}
    )
    output_dir: str = field(metadata={"help": "Run folder: receives model/, checkpoints/, logs/ and arguments.json."})
    zoo_config: str | None = _field("Which zoo of a folder or dataset that holds several.", default=None)
    zoo_revision: str | None = _field("Branch, tag or commit of zoos on the Hub.", default=None)
    streaming: bool = _field(
        "Read the zoos as streams, in place or from the Hub, without a copy of the whole on this machine.",
        default=False,
    )
    stream_buffer: int = _field("Rows of a stream in memory from which the next is drawn.", default=1000)
    stream_sample: int = _field(
        "Training rows of a stream in memory, which the extractor and the first weights are fitted on.", default=1000
    )
    model: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "SANEConfig fields as a JSON object, or the path of a JSON file; token_dim is the zoo's."},
    )
    pretrained: str | None = _field(
        "SANE folder or Hub id whose model and extractor to continue from.", default=None, aliases=["--from"]
    )
    lora: bool = _field("Freeze the pretrained model and train a LoRA adapter of it (docs/lora.md).", default=False)
    lora_rank: int = _field("Rank of the adapter's maps.", default=4)
    lora_alpha: float = _field("Scale of the adapter: alpha / rank.", default=8.0)
    lora_targets: list[str] = field(
        default_factory=lambda: list(LORA_TARGETS), metadata={"help": "Modules that get low-rank maps, by name."}
    )
    lora_trained: list[str] = field(
        default_factory=list, metadata={"help": "Modules that the adapter trains and saves whole, by name."}
    )
    lora_base: str | None = _field(
        "Hub id of the base that the adapter names; not needed when the pretrained model comes from the Hub.",
        default=None,
    )
    normalization: Literal["standardize", "robust", "none"] = _field(
        "How the extractor that is fitted on the training split normalises each layer.", default="standardize"
    )
    statistics_by_kind: bool = _field(
        "Fit the extractor by kind of layer too, for layers that no training network has: zoos of mixed architectures.",
        default=False,
    )

    views: list[str] = field(
        default_factory=lambda: ["aligned", "permuted"],
        metadata={"help": "The views of each window: 'original', 'aligned', 'permuted'. One: reconstruction only."},
    )
    second_network: Literal["same", "same_run"] = _field(
        "What the second view shows: the same network, or another checkpoint of its training run.", default="same"
    )
    noise: float = _field("Standard deviation of the multiplicative noise N(1, noise) on both views.", default=0.1)
    num_permutations: int = _field("Random permutations drawn per layout for the permuted view.", default=200)
    erase: float = _field("Share of each view's tokens that are blanked, in [0, 1).", default=0.0)

    num_epochs: int = _field("Epochs; in one epoch every training model gives one random window.", default=50)
    max_steps: int | None = _field("Optimizer steps, in place of num_epochs.", default=None)
    batch_size: int = _field("Windows per process and forward pass.", default=32)
    gradient_accumulation_steps: int = _field("Forward passes per optimizer step.", default=1)
    learning_rate: float = _field("Peak of the one-cycle schedule.", default=1e-3)
    weight_decay: float = _field("Decoupled weight decay of AdamW.", default=3e-9)
    warmup_share: float = _field("Share of the steps in which the learning rate rises, in (0, 1).", default=0.3)
    max_grad_norm: float = _field("Gradients are scaled down to this norm; 0 leaves them alone.", default=1.0)
    mixed_precision: Literal["no", "bf16"] = _field(
        "bf16 pays on GPUs, and for wide models on CPUs with bf16 matrix units (AMX).", default="no"
    )
    activation_checkpointing: bool = _field(
        "Recompute activations in the backward pass to save memory.", default=False
    )
    initial_tokens: int = _field(
        "Training tokens whose principal subspace the linear path starts from when latent_dim < token_dim; 0: skip.",
        default=20_000,
    )
    seed: int = _field("Seed of initialisation, windows, views and noise.", default=0)

    behavior_weight: float = _field(
        "Share of the behavioural loss, in [0, 1]: outputs of original and reconstructed networks on images. "
        "Needs windows that cover whole models.",
        default=0.0,
    )
    behavior_data: str | None = _field(
        "Images of the behavioural loss: 'digits' or the path of an .npz.", default=None
    )
    behavior_images: int = _field("Images per step of the behavioural loss.", default=64)
    behavior_models: int = _field("Networks per step and view of the behavioural loss, at most.", default=32)
    behavior_loss: Literal["mse", "kl"] = _field(
        "Between softmax outputs: mean squared error, or Kullback-Leibler divergence.", default="mse"
    )

    supervised_weight: float = _field(
        "Factor of a loss on what the mean latent of a window tells about its network; 0: none.", default=0.0
    )
    supervised_properties: list[str] = field(
        default_factory=lambda: ["test_accuracy", "epoch", "generalization_gap"],
        metadata={"help": "Columns of the zoo that it asks for."},
    )

    eval_every_epochs: int = _field(
        "Epochs between evaluations on the validation split; 0: only at the end.", default=5
    )
    eval_models: int = _field("Validation models per evaluation, evenly spaced.", default=200)
    halo_size: int = _field("Context tokens on each side of a window in evaluation.", default=0)
    checkpoint_every_minutes: float = _field(
        "Minutes between checkpoints, more where saving them would take over 5 % of the time; they go when the run is "
        "finished. 0: none.",
        default=1.0,
    )
    checkpoint_every_steps: int = _field(
        "Optimizer steps between checkpoints, in place of minutes; the last ones stay. 0: minutes count.", default=0
    )
    keep_checkpoints: int = _field("Newest checkpoints that are kept.", default=2)
    resume: bool = _field("Continue from the newest checkpoint of output_dir, if there is one.", default=False)
    log_every_steps: int = _field("Optimizer steps between logged losses.", default=10)
    log_with: Literal["tensorboard", "none"] = _field("Where losses are logged.", default="tensorboard")
    progress_bar: bool = _field("Show a progress bar.", default=True)

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            self.model = read_settings(self.model, "model")
        self.model = self.model or {}

    def validate_counts(self) -> None:
        """Counts are counts."""
        for name in ("num_epochs", "batch_size", "gradient_accumulation_steps", "num_permutations", "eval_models"):
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
        """Rates and shares lie where they have a meaning."""
        for name in ("noise", "weight_decay", "max_grad_norm", "supervised_weight", "checkpoint_every_minutes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.warmup_share < 1:
            raise ValueError(f"warmup_share must lie strictly between 0 and 1, got {self.warmup_share}")
        if not 0 <= self.erase < 1:
            raise ValueError(f"erase must lie in [0, 1), got {self.erase}")
        if not 0 <= self.behavior_weight <= 1:
            raise ValueError(f"behavior_weight must lie in [0, 1], got {self.behavior_weight}")

    def validate_choices(self) -> None:
        """Choices that depend on each other fit."""
        if not self.zoo:
            raise ValueError("zoo is empty: name at least one zoo folder or Hub dataset id")
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or len(self.views) not in (1, 2):
            meant = did_you_mean(unknown[0], VIEWS) if unknown else ""
            raise ValueError(
                f"expected views to be one or two of {', '.join(map(repr, VIEWS))}, got {self.views}{meant}"
            )
        if self.second_network != "same" and len(self.views) != 2:
            raise ValueError(f"second_network={self.second_network!r} needs two views, got views={self.views}")
        if self.second_network != "same" and self.streaming:
            raise ValueError(
                f"second_network={self.second_network!r} needs all checkpoints of a run at hand, which a stream does not "
                "have; leave streaming out"
            )
        if self.lora and self.pretrained is None:
            raise ValueError("lora adapts a model that exists: name it with pretrained (--from), a folder or Hub id")
        if self.lora and not self.lora_targets:
            raise ValueError(f"lora_targets is empty: name modules, such as {list(LORA_TARGETS)}")
        if self.lora_base is not None:
            require_hub_id(self.lora_base)
        if self.supervised_weight > 0:
            self._check_supervision()
        if self.behavior_weight > 0 and self.behavior_data is None:
            raise ValueError("behavior_weight > 0 needs behavior_data: 'digits' or the path of an .npz of images")

    def _check_supervision(self) -> None:
        if self.batch_size < 3 or not self.supervised_properties or self.streaming:
            raise ValueError(
                "supervised_weight > 0 needs batches of 3 windows or more, a property at least, and zoos that are not "
                f"streamed; got batch_size={self.batch_size}, supervised_properties={self.supervised_properties}, "
                f"streaming={self.streaming}"
            )

    @property
    def model_settings(self) -> dict[str, Any]:
        """`model`, which is a dictionary once the arguments exist."""
        return self.model if isinstance(self.model, dict) else {}

    @property
    def base_model(self) -> str | None:
        """Hub id of the base of a LoRA adapter; `None` when it is not known."""
        return self.lora_base or hub_id(self.pretrained)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)

    def check_continues(self, other: dict[str, Any]) -> None:
        """Refuse to resume a run that was started with other settings.

        Args:
            other: [`to_dict`] of the run that left the checkpoint.

        Raises:
            ValueError: If a setting differs that changes the result.
        """
        mine = self.to_dict()
        changed = sorted(k for k in mine.keys() | other.keys() if k not in RESUMABLE and mine.get(k) != other.get(k))
        if changed:
            raise ValueError(
                f"the checkpoint was written with other settings of {', '.join(changed)}: "
                f"expected {[other.get(k) for k in changed]}, got {[mine.get(k) for k in changed]}; "
                "use those, or another output_dir"
            )


def parse_arguments(argv: Sequence[str] | None = None) -> PretrainSettings:
    """Read [`PretrainSettings`] from command-line flags.

    `HfArgumentParser` rewrites the type of optional fields on the class itself (`str | None` becomes `str`), after which
    strict validation refuses `None` for the rest of the process; the types are put back here.

    Args:
        argv: Flags without the program name; `sys.argv[1:]` when `None`. Unknown flags end the program with a message.
    """
    types = {entry.name: entry.type for entry in fields(PretrainSettings)}
    parser = HfArgumentParser(DataClassType(PretrainSettings), allow_abbrev=False)
    for entry in fields(PretrainSettings):
        entry.type = types[entry.name]
    (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return arguments


__all__ = ["PretrainSettings", "parse_arguments"]
