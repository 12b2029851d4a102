"""Fine-tuned copies of one network, whose soups work, and independent networks, which need alignment."""

import pytest
import torch

from hf_sane.architectures.presets import cnn_digits
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked

CONFIG = cnn_digits()


def train(config, tensors, data, *, seeds, epochs, learning_rate):
    hyper_parameters = HyperParameters.repeat(seeds, learning_rate=learning_rate)
    (snapshot,) = train_stacked(config, tensors, data, hyper_parameters, epochs=epochs)
    return StackedNetworks(config, snapshot.tensors)


@pytest.fixture(scope="session")
def independent(digits: ImageData) -> StackedNetworks:
    """Two networks of different initialisations, trained."""
    fresh = StackedNetworks.initialize(CONFIG, [0, 1])
    return train(CONFIG, fresh.tensors, digits, seeds=[0, 1], epochs=12, learning_rate=1e-2)


@pytest.fixture(scope="session")
def fine_tuned(digits: ImageData, independent: StackedNetworks) -> StackedNetworks:
    """Five continuations of one trained network, on other orders of images."""
    start = {name: tensor[:1].repeat(5, *[1] * (tensor.ndim - 1)) for name, tensor in independent.tensors.items()}
    return train(CONFIG, start, digits, seeds=range(10, 15), epochs=4, learning_rate=5e-3)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, fine_tuned: StackedNetworks):
    """The five as model folders; do not write to them."""
    root = tmp_path_factory.mktemp("soup")
    for index in range(5):
        fine_tuned.model(index).save_pretrained(root / f"run_{index}")
    return [root / f"run_{index}" for index in range(5)]


@pytest.fixture
def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
