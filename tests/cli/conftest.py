"""A SANE folder that the command line itself made."""

from pathlib import Path

import pytest
from program import run_command


@pytest.fixture(scope="session")
def tiny_sane_run(tmp_path_factory: pytest.TempPathFactory, tiny_zoo_folder: Path) -> tuple[Path, str]:
    """Output folder of `hf-sane pretrain` on the tiny zoo (do not write to it), and what it printed."""
    output = tmp_path_factory.mktemp("cli") / "run"
    model = (
        '{"hidden_size": 16, "latent_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "window_size": 52}'
    )
    result = run_command(
        *("pretrain", "--zoo", tiny_zoo_folder, "--output", output, "--model", model, "--epochs", 2),
        *("--eval-every-epochs", 0, "--log-with", "none", "--no-progress-bar"),
    )
    return output, result.output


@pytest.fixture(scope="session")
def tiny_sane_folder(tiny_sane_run: tuple[Path, str]) -> Path:
    """A SANE folder; do not write to it."""
    return tiny_sane_run[0] / "model"
