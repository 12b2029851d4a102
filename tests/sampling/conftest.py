"""A task, networks trained on it, and an autoencoder that reconstructs them: all in about a second, on one thread."""

from collections.abc import Callable

import pytest
import torch

from hf_sane.architectures.presets import build_model, mlp
from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.networks._hyperparameters import HyperParameters
from hf_sane.networks._images import ImageData
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.networks._training import train_stacked
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

NUM_NETWORKS = 12


@pytest.fixture(scope="session")
def data() -> ImageData:
    """Three classes of 4x4 images: noise around three prototypes."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(3, 1, 4, 4, generator=generator)
    parts = {}
    for split, count in {"train": 300, "validation": 150, "test": 150}.items():
        labels = torch.arange(count) % 3
        parts[f"{split}_labels"] = labels
        parts[f"{split}_images"] = prototypes[labels] + torch.randn(count, 1, 4, 4, generator=generator)
    return ImageData(name="prototypes", num_classes=3, **parts)


@pytest.fixture(scope="session")
def config():
    return mlp(num_channels=1, image_size=4, num_labels=3, hidden_sizes=(6,))


@pytest.fixture(scope="session")
def trained(config, data) -> StackedNetworks:
    """Networks of different quality, trained from different seeds."""
    start = StackedNetworks.initialize(config, list(range(NUM_NETWORKS)))
    hyper_parameters = HyperParameters(
        seeds=list(range(NUM_NETWORKS)),
        learning_rates=[1e-2] * NUM_NETWORKS,
        weight_decays=[0.0] * NUM_NETWORKS,
        optimizers=["adam"] * NUM_NETWORKS,
        dropouts=[0.0] * NUM_NETWORKS,
        data_fractions=[1.0] * NUM_NETWORKS,
    )
    (snapshot,) = train_stacked(config, start.tensors, data, hyper_parameters, epochs=4)
    assert snapshot.test_accuracy.mean() > 0.8
    return StackedNetworks(config, snapshot.tensors)


@pytest.fixture(scope="session")
def layout(config) -> Layout:
    return Layout.from_state_dict(build_model(config).state_dict(), token_dim=9)


@pytest.fixture(scope="session")
def raw_tokens(trained, layout) -> torch.Tensor:
    return layout.tokens(trained.tensors, batch_dims=1)


@pytest.fixture(scope="session")
def codec(config, layout, raw_tokens) -> NetworkCodec:
    """An untrained autoencoder on the linear path; with as many latents as weights it loses hardly anything."""
    torch.manual_seed(0)
    sane_config = SANEConfig(
        token_dim=9,
        hidden_size=16,
        latent_dim=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=8,
        initializer_range=1e-3,
    )
    extractor = SANEFeatureExtractor(token_dim=9).fit([(layout, raw_tokens)])
    return NetworkCodec(SANEModel(sane_config), extractor, layout, config)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def noisy_copies(codec) -> Callable[[torch.Tensor, float], StackedNetworks]:
    """Function that makes networks of raw tokens, with noise of a scale on every tensor."""

    def make(tokens: torch.Tensor, scale: float) -> StackedNetworks:
        noise = torch.Generator().manual_seed(1)
        tensors = codec.networks(tokens).tensors
        return StackedNetworks(
            codec.config,
            {name: value + scale * torch.randn(value.shape, generator=noise) for name, value in tensors.items()},
        )

    return make
