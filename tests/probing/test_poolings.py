"""Poolings by name: a new one is a function with a decorator, and everything that embeds takes it."""

import pytest
import torch

from hf_sane.architectures.presets import build_model, cnn_digits
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._poolings import POOLINGS, choose_poolings, pool_latents, register_pooling
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.sane import SANE


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten."""
    monkeypatch.setattr(POOLINGS, "_entries", dict(POOLINGS._entries))


@pytest.fixture(scope="module")
def sane():
    torch.manual_seed(0)
    extractor = SANEFeatureExtractor(token_dim=20).fit([build_model(cnn_digits()).state_dict() for _ in range(2)])
    config = SANEConfig(token_dim=20, hidden_size=8, latent_dim=4, num_attention_heads=2, window_size=32)
    return SANE(SANEModel(config).eval(), extractor)


def test_a_new_pooling_serves_like_any_other(registry, sane):
    @register_pooling("largest")
    def largest(latents, layout):
        return latents.amax(dim=1)

    @register_pooling("largest decoded", decodes=True)
    def largest_decoded(latents, layout, decoded):
        assert decoded.shape[:2] == latents.shape[:2]
        return decoded.amax(dim=1)

    network = build_model(cnn_digits())
    latents, layout = sane.encode(network)
    assert torch.allclose(sane.embed(network, pooling="largest"), latents.amax(dim=0), atol=1e-6)
    decoded = sane.model.decode_sequences(latents[None], layout.positions)[0]
    assert torch.allclose(sane.embed(network, pooling="largest decoded"), decoded.amax(dim=0), atol=1e-5)
    assert torch.equal(pool_latents(latents[None], layout, "largest")[0], latents.amax(dim=0))
    assert choose_poolings(["all"], sane.model)[-2:] == ["largest", "largest decoded"]
    with pytest.raises(ValueError, match="largest decoded requires decoded tokens"):
        pool_latents(latents[None], layout, "largest decoded")
    with pytest.raises(ValueError, match="there is a pooling 'mean' already"):
        register_pooling("mean")(largest)


def test_registered_poolings_are_not_streamed(registry, sane, tmp_path):
    @register_pooling("first")
    def first(latents, layout):
        return latents[:, 0]

    network = build_model(cnn_digits())
    network.save_pretrained(tmp_path)
    expected = sane.encode(network)[0][0]
    assert torch.allclose(sane.embed(tmp_path, pooling="first"), expected, atol=1e-6)
