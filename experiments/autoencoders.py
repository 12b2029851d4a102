"""Autoencoders of experiments: windows are whole networks, and finished runs are reused."""

import argparse
from pathlib import Path
from typing import Any

from hf_sane.core._layout import Layout
from hf_sane.workflows.pretrain import pretrain
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._dataset import Zoo

# Settings of the model and of training for reconstruction alone, without a contrastive loss.
RECONSTRUCTION_MODEL: dict[str, Any] = {"contrast_weight": 0.0}
RECONSTRUCTION: dict[str, Any] = {"views": ["original"], "noise": 0.0}


def train_sane(
    zoo: Zoo, layout: Layout, latent_dim: int, folder: Path, options: argparse.Namespace, **settings: Any
) -> SANE:
    """Pre-train a SANE with a number of latents per token.

    Args:
        zoo: Networks to train on.
        layout: Their layout.
        latent_dim: Latents per token.
        folder: Folder of the run; a finished one is reused.
        options: Options of the experiment, with `hidden_size`, `epochs` and `seed`.
        **settings: Further settings of pre-training; `model` has further settings of the model.
    """
    model = {
        "hidden_size": options.hidden_size,
        "num_hidden_layers": 2,
        "latent_dim": latent_dim,
        "window_size": layout.num_tokens,
        "max_positions": layout.max_positions,
        **settings.pop("model", {}),
    }
    return pretrain(
        zoo,
        output=folder,
        model=model,
        epochs=options.epochs,
        eval_every_epochs=0,
        log_with="none",
        progress_bar=False,
        resume=True,
        seed=options.seed,
        **settings,
    )
