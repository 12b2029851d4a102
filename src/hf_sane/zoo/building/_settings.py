"""Settings of a zoo, two recipes, and the plan of training runs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hf_sane.architectures import presets
from hf_sane.architectures.configuration_zoo import Initialization, ZooConfig
from hf_sane.architectures.modeling_zoo import ACTIVATIONS
from hf_sane.core._token_layouts import find_token_layout
from hf_sane.core._token_settings import TokenSettings
from hf_sane.networks._hyperparameters import Optimizer
from hf_sane.networks._image_settings import ImageSettings, TrainLimitSettings
from hf_sane.networks._image_sources import IMAGE_KINDS
from hf_sane.networks._images import ImageData
from hf_sane.networks._modules import EXAMPLES, ModuleArchitecture, ModuleSettings
from hf_sane.networks._shifts import KINDS, LEAST_KINDS, UNCHANGED, Shift
from hf_sane.networks._stacked import call_arguments
from hf_sane.networks._tasks import LabelledData
from hf_sane.records._documents import read_settings
from hf_sane.records._errors import did_you_mean
from hf_sane.records._settings import ProgressSettings, SeedSettings, as_arguments, check_numbers, setting

USUAL_EPOCHS = (0, 1, 2, 4, 8, 12, 16, 25, 35, 50)
SPLIT_STREAM = 2**32  # larger than any run number; seeds the split
CHILD_STREAM = 2**32 + 1  # seeds ancestors and shifts of children
CHILD_SETTINGS = ("children", "child_epochs", "shifts")
# Settings that do not apply to a user's own module, with their defaults.
OF_PRESETS: dict[str, Any] = {
    "architecture": "cnn_digits",
    "architecture_settings": None,
    "initializations": ["kaiming_uniform"],
    "activations": [],
    "dropout": [0.0],
}


@strict
@dataclass(kw_only=True)
class ZooSettings(ImageSettings, TrainLimitSettings, ModuleSettings, TokenSettings, SeedSettings, ProgressSettings):
    """Settings of a zoo, whose architecture is one of this library or a user's own module.

    The text of each field is both its documentation and its help text.

    A hyper-parameter with one value is fixed; with two values, it is drawn between them for each run. `RECIPES`
    has defaults for two kinds of zoo.

    Raises:
        TypeError: If a field is unknown, or a value has the wrong type.
        ValueError: If a value is not among the choices.
        StrictDataclassClassValidationError: If a value is out of range.
    """

    name: str | None = setting("Title of the zoo's card; by default the name of the dataset.", default=None)
    images: str = setting(f"Images to train on: {IMAGE_KINDS}.", default="digits")
    validation_limit: int | None = setting("Use at most this many validation images.", default=None, least=1)
    test_limit: int | None = setting("Use at most this many test images.", default=None, least=1)
    architecture: str = setting(
        f"Architecture of the networks, unless --module names your own: {', '.join(presets.PRESETS)}.",
        default="cnn_digits",
        choices=lambda: presets.PRESETS,
    )
    architecture_settings: dict[str, Any] | str | None = setting(
        "Additional settings of the architecture, as a JSON object or the path of a JSON file.", default=None
    )

    num_models: int = setting("Number of training runs.", default=128)
    epochs: int = setting("Number of passes over the training images.", default=50)
    keep_epochs: list[int] | None = setting(
        f"Epochs to store; by default those of {', '.join(map(str, USUAL_EPOCHS))} that are reached. Epochs "
        "of children are counted from the start of their ancestor.",
        default=None,
    )
    children: int = setting(
        "Number of additional networks (children), each of which continues the training of another one (its "
        "ancestor) on shifted images.",
        default=0,
    )
    child_epochs: int = setting("Number of passes over the shifted images.", default=2, least=1)
    shifts: list[str] = setting(
        f"Shifts to compose for each child: {', '.join(KINDS)}. Some combinations are held out for validation and "
        "test.",
        factory=lambda: list(KINDS),
    )
    batch_size: int = setting("Batch size of each network.", default=32)
    momentum: float = setting("SGD momentum.", default=0.9)
    schedule: Literal["constant", "one_cycle"] = setting("Learning rate schedule.", default="constant")
    initializations: list[str] = setting(
        "Initialisation schemes to draw from.",
        factory=lambda: ["kaiming_uniform"],
        choices=lambda: get_args(Initialization),
    )
    activations: list[str] = setting(
        "Activations to draw from; by default that of the architecture.", factory=list, choices=lambda: ACTIVATIONS
    )
    optimizers: list[str] = setting(
        "Optimizers to draw from: adam, sgd.", factory=lambda: ["adam"], choices=lambda: get_args(Optimizer)
    )
    learning_rate: list[float] = setting(
        "Learning rate, or two bounds for a log-uniform draw.", factory=lambda: [1e-3]
    )
    sgd_factor: float = setting(
        "Factor for the learning rate of SGD, since rates that suit Adam are too small for it.", default=1.0
    )
    weight_decay: list[float] = setting("Weight decay, or two bounds for a log-uniform draw.", factory=lambda: [0.0])
    dropout: list[float] = setting("Dropout, or two bounds for a uniform draw.", factory=lambda: [0.0])
    data_fraction: list[float] = setting(
        "Share of the training images that a network sees, or two bounds for a uniform draw.", factory=lambda: [1.0]
    )

    max_abs_weight: float = setting(
        "Leave out networks as diverged if any parameter exceeds this absolute value at a stored epoch.", default=5.0
    )
    include_excluded: bool = setting("Keep diverged networks, which are listed in any case.", default=False)
    token_dim: int | None = setting(
        "Scalars per token; by default the length of the network's longest row.", default=None, least=1
    )
    split_shares: list[float] = setting(
        "Shares of the runs, or of the combinations of shifts, in the train, validation and test splits.",
        factory=lambda: [0.7, 0.15, 0.15],
    )
    group_size: int = setting(
        "Number of networks to train together. Finished groups are kept if training is interrupted; the others are "
        "saved every minute.",
        default=128,
    )
    train_evaluation_limit: int | None = setting(
        "Measure training accuracy on at most this many images.", default=None, least=1
    )
    license: str | None = setting("Licence of the zoo, for its card.", default=None)

    def __post_init__(self) -> None:
        if isinstance(self.architecture_settings, str):
            self.architecture_settings = read_settings(self.architecture_settings, "architecture_settings")
        if self.keep_epochs is None:
            self.keep_epochs = [epoch for epoch in USUAL_EPOCHS if epoch < self.epochs] + [self.epochs]
        if self.children:
            self.keep_epochs = [*self.keep_epochs, self.epochs, self.last_epoch]
        self.keep_epochs = sorted(set(self.keep_epochs))

    def validate_counts(self) -> None:
        """Check that counts are in range."""
        for name in ("num_models", "batch_size", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs < 0 or self.seed < 0:
            raise ValueError(f"epochs and seed must not be negative, got {self.epochs} and {self.seed}")
        if self.keep_epochs is not None and not all(0 <= epoch <= self.last_epoch for epoch in self.keep_epochs):
            raise ValueError(f"keep_epochs must lie in [0, {self.last_epoch}], got {self.keep_epochs}")
        if self.keep_epochs is not None and not self.keep_epochs:
            raise ValueError("keep_epochs is empty: name at least one epoch, or leave it out")

    def validate_ranges(self) -> None:
        """Check that values and bounds are in range."""
        bounds = {"learning_rate": (0, 1e3), "weight_decay": (0, 1e3), "dropout": (0, 1), "data_fraction": (0, 1)}
        for name, (low, high) in bounds.items():
            values = getattr(self, name)
            if len(values) not in (1, 2) or sorted(values) != values or values[0] < low or values[-1] > high:
                raise ValueError(f"{name} must be a value or two ascending bounds in [{low}, {high}], got {values}")
            is_logarithmic = len(values) == 2 and name in ("learning_rate", "weight_decay")
            if values[0] == 0 and (is_logarithmic or name in ("learning_rate", "data_fraction")):
                raise ValueError(f"{name} must be positive, got {values}")
        if self.dropout[-1] == 1:
            raise ValueError(f"dropout must be below 1, got {self.dropout}")
        if not self.sgd_factor > 0:
            raise ValueError(f"sgd_factor must be positive, got {self.sgd_factor}")
        if not self.max_abs_weight > 0:
            raise ValueError(
                f"max_abs_weight must be positive, got {self.max_abs_weight}; inf keeps all finite networks"
            )
        shares = self.split_shares
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"split_shares must be three shares that add up to 1, got {shares}")
        check_numbers(self, unlimited=["max_abs_weight"])

    def validate_choices(self) -> None:
        """Check that lists of choices are not empty."""
        presets.find_preset(self.architecture)
        find_token_layout(self.token_layout)
        for name in ("initializations", "optimizers"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        if unknown := sorted(set(self.optimizers) - set(get_args(Optimizer))):
            known = get_args(Optimizer)
            meant = did_you_mean(unknown[0], known)
            raise ValueError(f"expected optimizers to be among {', '.join(map(repr, known))}, got {unknown}{meant}")

        if unknown := sorted(set(self.shifts) - set(KINDS)):
            meant = did_you_mean(unknown[0], KINDS)
            raise ValueError(f"expected shifts to be among {', '.join(map(repr, KINDS))}, got {unknown}{meant}")
        if len(set(self.shifts)) < LEAST_KINDS:
            raise ValueError(
                f"expected at least {LEAST_KINDS} shifts, whose combinations can be held out, got {self.shifts}"
            )

    @property
    def last_epoch(self) -> int:
        """Last epoch of any network; those of children are counted from the start of their ancestor."""
        return self.epochs + (self.child_epochs if self.children else 0)

    @property
    def kept_epochs(self) -> list[int]:
        """`keep_epochs` as a list."""
        return list(self.keep_epochs or ())

    def kept_of(self, *, children: bool) -> list[int]:
        """Stored epochs of children, which begin after the last epoch of their ancestor, or of the other networks."""
        return [epoch for epoch in self.kept_epochs if (epoch > self.epochs) == children]

    def validate_module(self) -> None:
        """Check that settings which a user's own module determines are left out."""
        if self.module is None:
            return
        if given := [name for name, default in OF_PRESETS.items() if getattr(self, name) != default]:
            raise ValueError(
                f"your own module (--module) determines its {', '.join(given)}; leave them out, or pass them "
                "to it as arguments (--module-args)"
            )

    def network_config(self, data: LabelledData) -> ZooConfig | ModuleArchitecture:
        """Configuration of the networks for these images or texts; registers a user's own module.

        Raises:
            ValueError: If the architecture lacks a hyper-parameter that is varied, or does not read texts.
        """
        if self.children and not isinstance(data, ImageData):
            raise ValueError(f"children are trained on shifted images, {data.name} holds texts; leave them out")
        if (own := self.register(_examples(data))) is not None:
            return own
        if not isinstance(data, ImageData):
            raise ValueError(f"{self.architecture} takes images, {data.name} holds texts; pass a module (--module)")
        settings = self.architecture_settings if isinstance(self.architecture_settings, dict) else {}
        shape = {"num_channels": data.num_channels, "num_labels": data.num_classes}
        preset = presets.find_preset(self.architecture)
        if "image_size" in inspect.signature(preset).parameters:
            shape["image_size"] = data.image_size
        config = preset(**{**shape, **settings})
        if (self.activations and not hasattr(config, "activation")) or (
            self.dropout != [0.0] and not hasattr(config, "dropout")
        ):
            raise ValueError(
                f"{self.architecture} has a fixed activation and no dropout; leave both out of the arguments"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields of this class in a form that JSON supports, without those that do not apply."""
        other = [entry.name for entry in fields(ModuleSettings)] if self.module is None else [*OF_PRESETS]
        other += [] if self.children else CHILD_SETTINGS
        known = {name: value for name, value in as_arguments(self, ZooSettings).items() if name not in other}
        if self.module is not None and not isinstance(self.module, str):
            made = type(self.module) if isinstance(self.module, nn.Module) else self.module
            known["module"] = getattr(made, "__name__", type(made).__name__)
        return known


def _examples(data: LabelledData) -> Tensor | dict[str, Tensor]:
    """Example inputs with which a module is traced."""
    positional, named = call_arguments(data.split("train")[0][:EXAMPLES])
    return positional[0] if positional else named


# Defaults of two kinds of zoo: homogeneous, for sampling, and with a wide range of accuracies, for probing.
RECIPES: dict[str | None, dict[str, Any]] = {
    "seed": {"learning_rate": [3e-3], "weight_decay": [1e-4]},
    "hyperparameter": {
        "initializations": ["uniform", "normal", "kaiming_uniform", "kaiming_normal"],
        "optimizers": ["adam", "sgd"],
        "learning_rate": [1e-3, 1e-2],
        "sgd_factor": 5.0,
        "weight_decay": [1e-4, 1e-2],
        "dropout": [0.0, 0.2],
        "data_fraction": [0.25, 1.0],
    },
}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Plan of one training run."""

    run_id: str
    seed: int
    initialization: str | None  # these three are unknown for a user's own module
    activation: str | None
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    dropout: float | None
    data_fraction: float
    ancestor: str | None = None  # run that a child continues
    shift: Shift = UNCHANGED


def plan_runs(
    arguments: ZooSettings, config: ZooConfig | ModuleArchitecture, labels: Sequence[int] = ()
) -> list[RunPlan]:
    """Draw the hyper-parameters of every run, and ancestors and shifts of children.

    Run `i` depends only on the seed and `i`, not on the number of runs, and a child on the number of possible
    ancestors.

    Args:
        arguments: Settings of the zoo.
        config: Architecture of the networks.
        labels: Classes of the images, for children.
    """
    activations = arguments.activations or [getattr(config, "activation", "relu")]
    plans: list[RunPlan] = []
    for i in range(arguments.num_models + arguments.children):
        generator = np.random.default_rng([arguments.seed, i])

        def pick(choices: Sequence[Any], generator: np.random.Generator = generator) -> Any:
            return choices[int(generator.integers(len(choices)))]

        def draw(bounds: Sequence[float], generator: np.random.Generator = generator, *, log: bool = False) -> float:
            low, high = bounds[0], bounds[-1]
            share = float(generator.random())
            return float(low * (high / low) ** share if log and low > 0 else low + share * (high - low))

        # Do not change this order, which determines the random draws of a run.
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
    for i in range(arguments.num_models, len(plans)):
        generator = np.random.default_rng([arguments.seed, i, CHILD_STREAM])
        ancestor = plans[int(generator.integers(arguments.num_models))]
        plans[i] = replace(
            plans[i],
            initialization=ancestor.initialization,
            activation=ancestor.activation,
            ancestor=ancestor.run_id,
            shift=Shift.draw(arguments.shifts, labels, generator),
        )
    if isinstance(config, ModuleArchitecture):
        return [replace(plan, initialization=None, activation=None, dropout=None) for plan in plans]
    return plans


def split_plans(runs: Sequence[RunPlan], shares: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Assign runs to train, validation and test: children by their combination of shifts, zoos without any by run.

    Ancestors and children with a single shift are in train, so that only the combination of shifts is new in the
    other splits.

    Raises:
        ValueError: If there are fewer runs, or combinations of several shifts, than splits.
    """
    if all(run.ancestor is None for run in runs):
        return split_runs([run.run_id for run in runs], shares, seed)
    combinations = sorted({run.shift.combination for run in runs if not run.shift.is_single})
    chosen = split_runs(combinations, shares, seed, kind="combinations of several shifts")
    home = {combination: split for split, members in chosen.items() for combination in members}
    found: dict[str, list[str]] = {split: [] for split in chosen}
    for run in runs:
        found[home.get(run.shift.combination, "train")].append(run.run_id)
    return found


def split_runs(
    run_ids: Sequence[str], shares: Sequence[float], seed: int, *, kind: str = "usable runs"
) -> dict[str, list[str]]:
    """Randomly assign runs to train, validation and test, with at least one in each split with a positive share.

    Raises:
        ValueError: If there are fewer runs than splits.
    """
    names = ("train", "validation", "test")
    wanted = sum(share > 0 for share in shares)
    if len(run_ids) < max(1, wanted):
        raise ValueError(f"expected at least {wanted} {kind} for {wanted} splits, got {len(run_ids)}; train more")
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(len(run_ids))
    sizes = [max(1, round(share * len(run_ids))) if share > 0 else 0 for share in shares]
    while sum(sizes) != len(run_ids):
        sizes[int(np.argmax(sizes))] += 1 if sum(sizes) < len(run_ids) else -1
    ends = np.cumsum([0, *sizes])
    return {name: sorted(run_ids[i] for i in order[ends[k] : ends[k + 1]]) for k, name in enumerate(names)}
