"""Settings of a zoo, two recipes, and the plan of training runs that follows from them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

from hf_sane.architectures import presets
from hf_sane.architectures.configuration_zoo import ZooConfig
from hf_sane.networks.images import ImageData
from hf_sane.networks.training import Optimizer
from hf_sane.records.documents import read_settings
from hf_sane.records.errors import did_you_mean

USUAL_EPOCHS = (0, 1, 2, 4, 8, 12, 16, 25, 35, 50)
SPLIT_STREAM = 2**32  # beyond every run number: the seed of the split


def _field(help_text: str, *, default: Any) -> Any:
    """A field that documents itself."""
    return field(default=default, metadata={"help": help_text})


@strict
@dataclass(kw_only=True)
class ZooSettings:
    """Settings of one zoo. The text beside each field is its documentation and its `--help`.

    A hyper-parameter with two values is drawn anew for every run between them; with one value it is fixed. See
    [`seed_zoo`] and [`hyperparameter_zoo`] for two useful sets.

    Raises:
        TypeError: For an unknown field.
        StrictDataclassFieldValidationError: For a value of the wrong type or an unknown choice.
        StrictDataclassClassValidationError: For a value out of range.
    """

    name: str | None = _field("What cards call the zoo; the name of the images if left out.", default=None)
    images: str = _field(
        "'digits' (scikit-learn's) or the path of an .npz with train and test images.", default="digits"
    )
    train_limit: int | None = _field("Training images used at most.", default=None)
    validation_limit: int | None = _field("Validation images used at most.", default=None)
    test_limit: int | None = _field("Test images used at most.", default=None)
    image_size: int | None = _field("Resize the images to so many pixels.", default=None)
    architecture: Literal["cnn_digits", "cnn_s", "cnn_l", "mlp", "cifar_resnet", "resnet"] = _field(
        "Networks of the zoo, by the name of a preset.", default="cnn_digits"
    )
    architecture_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further settings of the preset: a JSON object, or the path of a JSON file."}
    )

    num_models: int = _field("Training runs.", default=128)
    epochs: int = _field("Passes over the training images.", default=50)
    keep_epochs: list[int] | None = field(
        default=None, metadata={"help": f"Epochs that are kept; of {USUAL_EPOCHS} those that exist if left out."}
    )
    batch_size: int = _field("Images per network and update.", default=32)
    momentum: float = _field("Of SGD.", default=0.9)
    schedule: Literal["constant", "one_cycle"] = _field("Of the learning rate.", default="constant")
    initializations: list[str] = field(
        default_factory=lambda: ["kaiming_uniform"], metadata={"help": "Schemes of initialisation, drawn evenly."}
    )
    activations: list[str] = field(
        default_factory=list, metadata={"help": "Activations, drawn evenly; none: the one of the architecture."}
    )
    optimizers: list[str] = field(  # a list of Literal has no form on the command line
        default_factory=lambda: ["adam"], metadata={"help": "Optimisers ('adam', 'sgd'), drawn evenly."}
    )
    learning_rate: list[float] = field(
        default_factory=lambda: [1e-3], metadata={"help": "Learning rate, or its bounds (log-uniform)."}
    )
    sgd_factor: float = _field(
        "SGD's learning rate is this times the one drawn: what suits Adam is too small for SGD.", default=1.0
    )
    weight_decay: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "Weight decay, or its bounds (log-uniform)."}
    )
    dropout: list[float] = field(default_factory=lambda: [0.0], metadata={"help": "Dropout, or its bounds (uniform)."})
    data_fraction: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Share of the training images a network sees, or its bounds (uniform)."},
    )

    max_abs_weight: float = _field("Networks that ever have a larger parameter count as exploded.", default=5.0)
    include_excluded: bool = _field(
        "Keep networks that exploded or are not finite (they are listed anyway).", default=False
    )
    token_dim: int | None = _field("Scalars per token; the longest row of the network if left out.", default=None)
    token_layout: str = _field("How weights become tokens.", default="rowwise")
    batch_norm: Literal["tokens", "template"] = _field("Where BatchNorm tensors go.", default="tokens")
    split_shares: list[float] = field(
        default_factory=lambda: [0.7, 0.15, 0.15],
        metadata={"help": "Shares of the runs for train, validation and test."},
    )
    group_size: int = _field(
        "Networks trained together; what is finished survives an interruption, and the rest is kept once a minute.",
        default=128,
    )
    train_evaluation_limit: int | None = _field("Training accuracy over the first so many images only.", default=None)
    license: str | None = _field("Licence that the dataset card states.", default=None)
    seed: int = _field("Of everything that is drawn.", default=0)
    progress_bar: bool = _field("Show a progress bar.", default=True)

    def __post_init__(self) -> None:
        if isinstance(self.architecture_settings, str):
            self.architecture_settings = read_settings(self.architecture_settings, "architecture_settings")
        if self.keep_epochs is None:
            self.keep_epochs = [epoch for epoch in USUAL_EPOCHS if epoch < self.epochs] + [self.epochs]
        self.keep_epochs = sorted(set(self.keep_epochs))

    def validate_counts(self) -> None:
        """Counts are counts."""
        for name in ("num_models", "batch_size", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs < 0 or self.seed < 0:
            raise ValueError(f"epochs and seed must not be negative, got {self.epochs} and {self.seed}")
        if self.keep_epochs is not None and not all(0 <= epoch <= self.epochs for epoch in self.keep_epochs):
            raise ValueError(f"keep_epochs must lie in [0, {self.epochs}], got {self.keep_epochs}")
        if self.keep_epochs is not None and not self.keep_epochs:
            raise ValueError("keep_epochs is empty: keep one epoch at least, or leave it out")

    def validate_ranges(self) -> None:
        """One value or two bounds, within what makes sense."""
        bounds = {"learning_rate": (0, 1e3), "weight_decay": (0, 1e3), "dropout": (0, 1), "data_fraction": (0, 1)}
        for name, (low, high) in bounds.items():
            values = getattr(self, name)
            if len(values) not in (1, 2) or sorted(values) != values or values[0] < low or values[-1] > high:
                raise ValueError(f"{name} takes a value or two ascending bounds in [{low}, {high}], got {values}")
            is_logarithmic = len(values) == 2 and name in ("learning_rate", "weight_decay")
            if values[0] == 0 and (is_logarithmic or name in ("learning_rate", "data_fraction")):
                raise ValueError(f"{name} must be positive to be drawn or used, got {values}")
        if self.dropout[-1] == 1:
            raise ValueError(f"dropout must stay below 1, got {self.dropout}")
        if not self.sgd_factor > 0:
            raise ValueError(f"sgd_factor must be positive, got {self.sgd_factor}")
        if not self.max_abs_weight > 0:
            raise ValueError(
                f"max_abs_weight must be positive, got {self.max_abs_weight}; inf keeps all finite networks"
            )
        shares = self.split_shares
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split_shares must be three shares that add up to 1, got {shares}")

    def validate_choices(self) -> None:
        """Something to choose from."""
        for name in ("initializations", "optimizers"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        if unknown := sorted(set(self.optimizers) - set(get_args(Optimizer))):
            known = get_args(Optimizer)
            meant = did_you_mean(unknown[0], known)
            raise ValueError(f"expected optimizers to be among {', '.join(map(repr, known))}, got {unknown}{meant}")

    @property
    def kept_epochs(self) -> list[int]:
        """`keep_epochs`, which is a list once the arguments exist."""
        return list(self.keep_epochs or ())

    def config(self, data: ImageData) -> ZooConfig:
        """Configuration of the networks for these images.

        Raises:
            ValueError: If a hyper-parameter is varied that the architecture does not have.
        """
        settings = self.architecture_settings if isinstance(self.architecture_settings, dict) else {}
        shape = {"num_channels": data.num_channels, "num_labels": data.num_classes}
        if self.architecture not in ("cifar_resnet", "resnet"):
            shape["image_size"] = data.image_size
        config = getattr(presets, self.architecture)(**{**shape, **settings})
        if (self.activations and not hasattr(config, "activation")) or (
            self.dropout != [0.0] and not hasattr(config, "dropout")
        ):
            raise ValueError(
                f"{self.architecture} has a fixed activation and no dropout; leave both out of the arguments"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)


def seed_zoo(**settings: Any) -> ZooSettings:
    """A zoo of networks that differ in their seed only: homogeneous, made for sampling.

    `settings` are fields of [`ZooSettings`]; by default Adam at 3e-3 with a little weight decay.
    """
    return ZooSettings(**{"learning_rate": [3e-3], "weight_decay": [1e-4], **settings})


def hyperparameter_zoo(**settings: Any) -> ZooSettings:
    """A zoo of networks that differ in everything: wide in accuracy, made for probing.

    Random per run: one of four initialisations, Adam or SGD, learning rate over a decade (five times that for SGD),
    weight decay 1e-4 to 1e-2, dropout up to 0.2, 25 to 100 % of the data. `settings` are fields of [`ZooSettings`].
    """
    defaults = {
        "initializations": ["uniform", "normal", "kaiming_uniform", "kaiming_normal"],
        "optimizers": ["adam", "sgd"],
        "learning_rate": [1e-3, 1e-2],
        "sgd_factor": 5.0,
        "weight_decay": [1e-4, 1e-2],
        "dropout": [0.0, 0.2],
        "data_fraction": [0.25, 1.0],
    }
    return ZooSettings(**{**defaults, **settings})


RECIPES: dict[str, Callable[..., ZooSettings]] = {"seed": seed_zoo, "hyperparameter": hyperparameter_zoo}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What one training run will do."""

    run_id: str
    seed: int
    initialization: str
    activation: str
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    dropout: float
    data_fraction: float


def plan_runs(arguments: ZooSettings, config: ZooConfig) -> list[RunPlan]:
    """Draw the hyper-parameters of every run; run `i` depends on the seed and `i` alone, not on how many there are."""
    activations = arguments.activations or [getattr(config, "activation", "relu")]
    plans = []
    for i in range(arguments.num_models):
        generator = np.random.default_rng([arguments.seed, i])

        def pick(choices: Sequence[Any], generator: np.random.Generator = generator) -> Any:
            return choices[int(generator.integers(len(choices)))]

        def draw(bounds: Sequence[float], generator: np.random.Generator = generator, *, log: bool = False) -> float:
            low, high = bounds[0], bounds[-1]
            share = float(generator.random())
            return float(low * (high / low) ** share if log and low > 0 else low + share * (high - low))

        # In this order: what a run draws must not change.
        seed = int(generator.integers(2**31))
        initialization, activation = pick(arguments.initializations), pick(activations)
        optimizer = pick(arguments.optimizers)
        factor = arguments.sgd_factor if optimizer == "sgd" else 1.0
        plans.append(
            RunPlan(
                run_id=f"{i:06d}",
                seed=seed,
                initialization=initialization,
                activation=activation,
                optimizer=optimizer,
                learning_rate=factor * draw(arguments.learning_rate, log=True),
                weight_decay=draw(arguments.weight_decay, log=True),
                dropout=draw(arguments.dropout),
                data_fraction=draw(arguments.data_fraction),
            )
        )
    return plans


def split_runs(run_ids: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Deal runs out to train, validation and test at random; at least one to each split of a positive share.

    Raises:
        ValueError: If there are fewer runs than splits.
    """
    names = ("train", "validation", "test")
    wanted = sum(share > 0 for share in shares)
    if len(run_ids) < max(1, wanted):
        raise ValueError(f"expected at least {wanted} usable runs for {wanted} splits, got {len(run_ids)}; train more")
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(len(run_ids))
    sizes = [max(1, round(share * len(run_ids))) if share > 0 else 0 for share in shares]
    while sum(sizes) != len(run_ids):
        sizes[int(np.argmax(sizes))] += 1 if sum(sizes) < len(run_ids) else -1
    ends = np.cumsum([0, *sizes])
    return {name: sorted(run_ids[i] for i in order[ends[k] : ends[k + 1]]) for k, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a command line asks for: settings of the zoo, its folder, its name there."""

    arguments: ZooSettings
    output_dir: str
    config: str


def parse_arguments(argv: Sequence[str] | None = None) -> BuildRequest:
    """Read a [`BuildRequest`] from command-line flags; `--help` lists them.

    `HfArgumentParser` rewrites the types of optional fields on the class, after which strict validation refuses `None`;
    they are put back here.
    """
    types = {entry.name: entry.type for entry in fields(ZooSettings)}
    parser = HfArgumentParser(DataClassType(ZooSettings), allow_abbrev=False)
    for entry in fields(ZooSettings):
        entry.type = types[entry.name]
    parser.add_argument("--output_dir", required=True, help="Folder of the zoo; an interrupted build continues there.")
    parser.add_argument("--config", default="default", help="Name of the zoo in its folder.")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="Defaults of a recipe instead of those listed here.")
    recipe = parser.parse_known_args(argv)[0].recipe
    if recipe is not None:
        defaults = RECIPES[recipe]().to_dict()
        parser.set_defaults(**{name: defaults[name] for name in defaults if name != "keep_epochs"})
    arguments, rest = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return BuildRequest(arguments, rest.output_dir, rest.config)
