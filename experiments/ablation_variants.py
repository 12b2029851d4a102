"""Studies of `paper_ablations.py`: tables of variants, each of which changes one setting of the base."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE_MODEL: dict[str, Any] = {"latent_dim": 32, "latent_noise": 0.1}
BASE_TRAINING: dict[str, Any] = {
    "learning_rate": 3e-3,
    "eval_every_epochs": 0,
    "eval_models": 20,
    "log_with": "none",
    "progress_bar": False,
}


@dataclass(frozen=True)
class Variant:
    """One row of a study, given by its differences from the base.

    Attributes:
        title: Name in tables.
        model: Fields of `SANEConfig`.
        training: Fields of `PretrainSettings`.
        aligned: Whether networks are aligned, in training and afterwards.
        tokens: `(token_layout, token_dim)` of the zoos; by default one token per row, as long as the longest row.
        window: Tokens of a training window; numbers up to 1 are a share of the network's tokens.
        batch_factor: Factor of the base's number of windows per step, larger for shorter windows, so that all variants
            are trained on the same number of tokens.
        inference: Window after training, in the units of `window`; by default the training window.
        halo: Context tokens on each side after training.
        trained_as: Variant whose autoencoder is used.
        zoos: Training zoos of the autoencoder; the first one is tested. Samples come from the zoo of seeds, or of
            ResNets.
        runs: Number of training runs of the hyper-parameter zoo; by default that of the base.
        step_factor: Factor of the base's number of optimizer steps.
        condition: Batch-norm conditioning of decoded networks: `"reset"`, `"keep"` (the old statistics fade out) or
            `None`.
    """

    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    aligned: bool = True
    tokens: tuple[Any, int] | None = None
    window: float = 1.0
    batch_factor: int = 1
    inference: float | None = None
    halo: int = 0
    trained_as: str | None = None
    zoos: tuple[str, ...] = ("hyper", "seed")
    runs: int | None = None
    step_factor: int = 1
    condition: str | None = None


HALVES: dict[str, Any] = {"window": 0.5, "batch_factor": 2}
QUARTERS: dict[str, Any] = {"window": 0.25, "batch_factor": 4}
RESNET: dict[str, Any] = {
    "zoos": ("resnet",),
    "window": 64,
    "model": {"position_embedding": "sinusoidal", "hidden_size": 160, "latent_dim": 128},  # tokens are twice as long
    "trained_as": "resnet",
}
STUDIES: dict[str, dict[str, Variant]] = {
    "base": {"base": Variant("base")},
    "alignment": {
        "both_aligned": Variant("both views aligned", training={"views": ["aligned", "aligned"]}),
        "both_permuted": Variant("both views permuted", training={"views": ["permuted", "permuted"]}),
        "one_view": Variant("one view, no contrast", training={"views": ["aligned"]}),
        "not_aligned": Variant("not aligned", aligned=False),
    },
    "windows": {
        "whole_in_halves": Variant("whole, then halves", inference=0.5, trained_as="base"),
        "halves": Variant("halves", **HALVES),
        "halves_halo": Variant("halves, then with halo", **HALVES, halo=6, trained_as="halves"),
        "halves_whole": Variant("halves, then whole", **HALVES, inference=1.0, trained_as="halves"),
        "quarters": Variant("quarters", **QUARTERS),
        "quarters_halo": Variant("quarters, then with halo", **QUARTERS, halo=3, trained_as="quarters"),
        "quarters_whole": Variant("quarters, then whole", **QUARTERS, inference=1.0, trained_as="quarters"),
    },
    "tokens": {
        "rowwise_37": Variant("rowwise, 37 (Z 16)", tokens=("rowwise", 37), model={"latent_dim": 16}),
        "dense_37": Variant("dense, 37 (Z 16)", tokens=("dense", 37), model={"latent_dim": 16}),
        "dense_73": Variant("dense, 73", tokens=("dense", 73)),
        "dense_146": Variant("dense, 146 (Z 64)", tokens=("dense", 146), model={"latent_dim": 64}),
        "raw_scale": Variant("weights as they are, not normalised", training={"normalization": "none"}),
        "robust_scale": Variant("median and quartiles per layer", training={"normalization": "robust"}),
    },
    "latent": {f"latent_{size}": Variant(f"Z = {size}", model={"latent_dim": size}) for size in (16, 64)},
    "loss": {
        "untrained": Variant("not trained: the linear code alone", training={"max_steps": 1, "learning_rate": 1e-9}),
        "behavior": Variant(
            "behavioural loss 0.3", training={"behavior_weight": 0.3, "behavior_data": "digits", "behavior_models": 16}
        ),
        "gamma_0": Variant("gamma = 0", model={"contrast_weight": 0.0}),
        "gamma_0.2": Variant("gamma = 0.2", model={"contrast_weight": 0.2}),
        "epochs": Variant("contrast between epochs of a run", training={"second_network": "same_run"}),
        "epochs_0.2": Variant(
            "contrast between epochs, gamma = 0.2",
            training={"second_network": "same_run"},
            model={"contrast_weight": 0.2},
        ),
        "supervised_0.1": Variant("properties as targets, weight 0.1", training={"supervised_weight": 0.1}),
        "supervised_1": Variant("properties as targets, weight 1", training={"supervised_weight": 1.0}),
        "masked": Variant("masked loss normalisation", model={"loss_normalization": "masked"}),
        "no_latent_noise": Variant("no noise on latents", model={"latent_noise": 0.0}),
        "all_entries": Variant("loss over padding too (released)", model={"reconstruction_denominator": "all"}),
        "paper_initialization": Variant("the paper's initialisation", model={"initialization": "paper"}),
    },
    "scale": {
        f"scale_{runs}": Variant(f"{runs:,} runs", zoos=("hyper",), runs=runs, step_factor=2)
        for runs in (100, 200, 500, 1000)
    },
    "batchnorm": {
        "resnet": Variant("windows as they are", **{**RESNET, "trained_as": None}),
        "resnet_halo": Variant("+ halo", **RESNET, halo=16),
        "resnet_conditioned": Variant("+ conditioning", **RESNET, condition="reset"),
        "resnet_both": Variant("+ halo and conditioning", **RESNET, halo=16, condition="reset"),
        "resnet_keep": Variant("+ halo and conditioning without reset", **RESNET, halo=16, condition="keep"),
    },
}
