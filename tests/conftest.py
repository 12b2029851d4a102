"""Shared by all tests: one thread, no progress bars, and a tiny zoo that is built once."""

from pathlib import Path

import datasets
import pytest
import torch

from hf_sane.zoo.arguments import ZooArguments, hyperparameter_zoo
from hf_sane.zoo.build import build_zoo
from hf_sane.zoo.dataset import Zoo
from hf_sane.zoo.images import ImageData, load_images

torch.set_num_threads(1)
datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """320 training, 100 validation and 100 test images of scikit-learn's digits."""
    return load_images("digits", train_limit=320, validation_limit=100, test_limit=100)


@pytest.fixture(scope="session")
def tiny_zoo_arguments() -> ZooArguments:
    return hyperparameter_zoo(
        num_models=12, epochs=12, keep_epochs=[0, 3, 6, 12], learning_rate=[5e-3, 2e-2], progress_bar=False
    )


@pytest.fixture(scope="session")
def tiny_zoo_folder(
    tmp_path_factory: pytest.TempPathFactory, digits: ImageData, tiny_zoo_arguments: ZooArguments
) -> Path:
    """Folder of `tiny_zoo`; do not write to it."""
    folder = tmp_path_factory.mktemp("zoo") / "tiny"
    build_zoo(tiny_zoo_arguments, digits, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_zoo(tiny_zoo_folder: Path) -> Zoo:
    """12 runs of the digits CNN (1,108 parameters, 52 tokens of 73) at 4 epochs each, split 8 / 2 / 2, aligned."""
    return Zoo.load(tiny_zoo_folder)
