import numpy as np
import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._poolings import MOMENT_LEVELS, POOLINGS, pool_latents
from hf_sane.probing._spectra import layer_distribution, weight_profile
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor

LATENT_POOLINGS = [name for name in POOLINGS if not POOLINGS.find(name).decodes]

SHAPES = {"a.weight": (6, 5), "a.bias": (6,), "b.weight": (3, 6), "b.bias": (3,), "c.weight": (1, 3)}


def state_dict(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def layout() -> Layout:
    return Layout.from_state_dict(state_dict(0), token_dim=7)


@pytest.fixture
def raw_tokens(layout) -> torch.Tensor:
    return torch.stack([layout.tokens(state_dict(i)) for i in range(9)])


@pytest.fixture
def extractor(layout, raw_tokens) -> SANEFeatureExtractor:
    return SANEFeatureExtractor(token_dim=7).fit([(layout, raw_tokens)])


@pytest.fixture
def model() -> SANEModel:
    torch.manual_seed(0)
    config = SANEConfig(
        token_dim=7,
        hidden_size=16,
        latent_dim=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=6,
        initialization="paper",  # attention that does something, so that windows matter
        initializer_range=0.3,
    )
    return SANEModel(config)


def naive_pooling(latents: np.ndarray, layers: np.ndarray, pooling: str) -> np.ndarray:
    """One network `[N, Z]`, straight from the table in the docstring."""
    if pooling == "layer_spectrum":
        return np.concatenate([np.linalg.svd(latents[layers == i])[1] for i in range(layers.max() + 1)])
    if pooling == "mean":
        return latents.mean(0)
    if pooling == "concat":
        return latents.reshape(-1)
    parts = []
    for layer in sorted(set(layers.tolist())):
        z = latents[layers == layer]
        parts.append(z.mean(0))
        if pooling in ("layer_mean_std", "layer_moments"):
            parts.append(z.std(0))
        if pooling == "layer_moments":
            parts += [np.quantile(z, level, axis=0) for level in MOMENT_LEVELS]
        if pooling == "layer_covariance":
            second = np.mean([np.outer(token, token) for token in z], axis=0)
            parts.append(second[np.triu_indices(z.shape[1])])
    return np.concatenate(parts)


@pytest.mark.parametrize("pooling", LATENT_POOLINGS)
@pytest.mark.parametrize("latent_dim", [1, 4])
def test_poolings_against_their_definition(layout, pooling, latent_dim):
    latents = torch.randn(5, layout.num_tokens, latent_dim, generator=torch.Generator().manual_seed(0))
    pooled = pool_latents(latents, layout, pooling)
    expected = np.stack([naive_pooling(z, layout.layer_index.numpy(), pooling) for z in latents.double().numpy()])
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-4, atol=1e-5)
    sizes = {"mean": 1, "layer_mean": 3, "layer_mean_std": 6, "layer_moments": 21, "concat": layout.num_tokens}
    per_layer = latent_dim * (latent_dim + 3) // 2
    counts = [part.stop - part.start for part in layout.token_slices]
    whole = {"layer_covariance": 3 * per_layer, "layer_spectrum": sum(min(count, latent_dim) for count in counts)}
    assert pooled.shape[1] == (whole[pooling] if pooling in whole else sizes[pooling] * latent_dim)


@pytest.mark.parametrize("pooling", LATENT_POOLINGS)
def test_order_of_tokens_within_a_layer_matters_to_concat_only(layout, pooling):
    latents = torch.randn(2, layout.num_tokens, 3)
    order = torch.arange(layout.num_tokens)
    order[layout.token_slices[0]] = order[layout.token_slices[0]].flip(0)
    before, after = pool_latents(latents, layout, pooling), pool_latents(latents[:, order], layout, pooling)
    assert torch.allclose(before, after, atol=1e-6) == (pooling != "concat")


@pytest.mark.parametrize("pooling", LATENT_POOLINGS)
def test_layers_are_told_apart_except_by_the_mean(layout, pooling):
    latents = torch.randn(2, layout.num_tokens, 3)
    order = torch.arange(layout.num_tokens).flip(0)
    before, after = pool_latents(latents, layout, pooling), pool_latents(latents[:, order], layout, pooling)
    assert torch.allclose(before, after, atol=1e-6) == (pooling == "mean")


@pytest.mark.parametrize("batch_size", [1, 4, 9, 64])
def test_embeddings_do_not_depend_on_the_batch(layout, raw_tokens, extractor, model, batch_size):
    expected = embed_networks(model, extractor, layout, raw_tokens, poolings=POOLINGS, batch_size=100)
    found = embed_networks(model, extractor, layout, raw_tokens, poolings=POOLINGS, batch_size=batch_size)
    assert list(found) == list(POOLINGS)
    for name, pooled in found.items():
        assert pooled.shape[0] == 9
        torch.testing.assert_close(pooled, expected[name], rtol=1e-4, atol=1e-5)


def test_embedding_is_the_pooled_encoding_of_normalised_tokens(layout, raw_tokens, extractor, model):
    tokens = extractor.normalize(raw_tokens, layout)
    latents = model.encode_sequences(tokens, layout.positions, window_size=5, halo_size=2)
    found = embed_networks(model, extractor, layout, raw_tokens, poolings=["concat"], window_size=5, halo_size=2)
    torch.testing.assert_close(found["concat"], latents.flatten(1))
    without = embed_networks(model, extractor, layout, raw_tokens, poolings=["concat"])
    assert not torch.allclose(found["concat"], without["concat"])
    assert model.training  # encoding leaves the model as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"raw_tokens": torch.zeros(10, 7)},
            r"expected raw tokens \[M, 10, 7\] of at least one network, got \[10, 7\]",
        ),
        ({"raw_tokens": torch.zeros(2, 10, 8)}, r"got \[2, 10, 8\]"),
        ({"raw_tokens": torch.zeros(0, 10, 7)}, r"got \[0, 10, 7\]"),
        ({"poolings": []}, "expected poolings among mean, layer_mean, .* got none"),
        ({"poolings": ["mean", "max"]}, r"got \['max'\]"),
    ],
)
def test_embedding_errors(layout, raw_tokens, extractor, model, arguments, message):
    settings = {"raw_tokens": raw_tokens, "poolings": ["mean"], **arguments}
    with pytest.raises(ValueError, match=message):
        embed_networks(model, extractor, layout, settings["raw_tokens"], poolings=settings["poolings"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_that_are_not_finite_are_named(layout, raw_tokens, extractor, model, value):
    raw_tokens[3, 0, 0] = value
    raw_tokens[7, 1, 1] = value
    with pytest.raises(ValueError, match=r"NaN or infinite weights in networks \[3, 7\]; leave them out"):
        embed_networks(model, extractor, layout, raw_tokens)


def test_pooling_errors(layout):
    with pytest.raises(ValueError, match=r"expected latents \[M, 10, Z\] of this layout, got \[2, 9, 3\]"):
        pool_latents(torch.zeros(2, 9, 3), layout, "mean")
    with pytest.raises(ValueError, match="expected a pooling, one of mean, .* got 'max'"):
        pool_latents(torch.zeros(2, 10, 3), layout, "max")


def test_decoded_poolings_read_the_decoded_weights(model, extractor, layout, raw_tokens):
    names = ["spectrum_distribution", "decoded_distribution", "decoded_profile", "layer_spectrum"]
    found = embed_networks(model, extractor, layout, raw_tokens, poolings=names)
    tokens = extractor.normalize(raw_tokens, layout)
    decoded = model.decode_sequences(model.encode_sequences(tokens, layout.positions), layout.positions)
    expected = torch.cat([found["layer_spectrum"], layer_distribution(decoded, layout)], dim=1)
    torch.testing.assert_close(found["spectrum_distribution"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["decoded_profile"], weight_profile(decoded, layout), rtol=1e-3, atol=1e-3)
    without = weight_profile(decoded, layout, with_spectrum=False)
    torch.testing.assert_close(found["decoded_distribution"], without, rtol=1e-3, atol=1e-3)
    assert without.shape[1] == 36 * len(layout.layers) < found["decoded_profile"].shape[1]
