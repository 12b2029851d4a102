"""Poolings of latents that come in pieces, against those of all at once; what is kept meanwhile; errors."""

import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._accumulation import STREAM_POOLINGS, LatentAccumulator
from hf_sane.probing._embeddings import embed_tokens
from hf_sane.probing._poolings import POOLINGS, pool_latents
from hf_sane.probing._streaming import embed_stream
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream

LATENT_POOLINGS = [name for name in POOLINGS if not POOLINGS.find(name).decodes]

SIZES = [40, 1, 3, 200, 17]
LATENT_DIM = 6
LAYOUT = Layout.from_state_dict({f"l{i}.weight": torch.zeros(size, 4) for i, size in enumerate(SIZES)}, token_dim=4)


def draw(offset=0.0):
    """Latents `[N, Z]` of a network, and the layer of each."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(sum(SIZES), LATENT_DIM, generator=generator) + offset
    return latents, LAYOUT.positions[:, 1]


def gathered(latents, layers, piece, poolings=STREAM_POOLINGS, sizes=SIZES):
    accumulator = LatentAccumulator(sizes, LATENT_DIM, poolings)
    for part, own in zip(latents.split(piece), layers.split(piece), strict=True):
        accumulator.add(part, own)
    return accumulator


def held(accumulator):
    """Scalars that an accumulator keeps."""
    return sum(value.numel() for value in vars(accumulator).values() if isinstance(value, torch.Tensor))


def test_all_poolings_of_latents_but_one_can_be_gathered():
    assert set(LATENT_POOLINGS) - set(STREAM_POOLINGS) == {"concat"}


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
@pytest.mark.parametrize("pooling", STREAM_POOLINGS)
def test_pieces_give_the_pooling_of_the_whole(pooling, piece):
    latents, layers = draw()
    expected = pool_latents(latents[None], LAYOUT, pooling)[0]
    for poolings in ([pooling], STREAM_POOLINGS):
        found = gathered(latents, layers, piece, poolings).pool(pooling)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = gathered(latents.roll(1, dims=1), layers, piece).pool(pooling)
    assert (pooling == "layer_spectrum") == torch.allclose(other, expected, atol=1e-4)


def test_deviations_of_latents_far_from_zero_are_not_lost_in_the_sums():
    """In float32 squares of 1,000 would leave three digits of a deviation of 1."""
    latents, layers = draw(offset=1000.0)
    found = gathered(latents, layers, 7).pool("layer_moments").view(len(SIZES), 7, LATENT_DIM)
    parts = latents.double().split(SIZES)
    expected = torch.stack([part.std(dim=0, unbiased=False) for part in parts])
    torch.testing.assert_close(found[:, 1].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[:, 2], torch.stack([part.amin(dim=0) for part in latents.split(SIZES)]))
    assert torch.equal(found[:, 6], torch.stack([part.amax(dim=0) for part in latents.split(SIZES)]))


@pytest.mark.parametrize("pooling", STREAM_POOLINGS)
def test_what_is_kept_grows_with_the_longest_layer_at_most(pooling):
    """A network of ten times as many layers and tokens: nothing but sums per layer, and one layer for quantiles."""
    small, large = (LatentAccumulator(SIZES * times, LATENT_DIM, [pooling]) for times in (1, 10))
    per_layer = LATENT_DIM * {"layer_covariance": LATENT_DIM, "layer_spectrum": LATENT_DIM, "layer_moments": 5}.get(
        pooling, 0
    )
    per_layer += 2 + 2 * LATENT_DIM
    longest = max(SIZES) * LATENT_DIM if pooling == "layer_moments" else 0
    assert held(small) == per_layer * len(SIZES) + longest
    assert held(large) == per_layer * 10 * len(SIZES) + longest
    latents, layers = draw()
    assert held(gathered(latents, layers, 7, [pooling])) == held(small)  # and does not grow on the way


def test_a_stream_never_joins_its_latents(monkeypatch):
    torch.manual_seed(0)
    sane = SANEModel(
        SANEConfig(token_dim=4, hidden_size=8, latent_dim=LATENT_DIM, num_hidden_layers=1, num_attention_heads=2,
                   window_size=20, position_embedding="sinusoidal")
    ).eval()  # fmt: skip
    extractor = SANEFeatureExtractor(token_dim=4, normalization="none")
    network = {f"l{i}.weight": torch.randn(size, 4) for i, size in enumerate(SIZES)}
    sizes, add = [], LatentAccumulator.add
    monkeypatch.setattr(
        LatentAccumulator,
        "add",
        lambda self, latents, layers: (sizes.append(len(latents)), add(self, latents, layers)),
    )
    found = embed_stream(sane, TokenStream(network, extractor), poolings=STREAM_POOLINGS, batch_size=2, halo_size=3)
    sequence = extractor.encode(network)
    expected = embed_tokens(sane, sequence.layout, sequence.tokens[None], poolings=STREAM_POOLINGS, halo_size=3)
    assert max(sizes) <= 2 * sane.config.window_size
    assert sum(sizes) == sum(SIZES)
    for pooling in STREAM_POOLINGS:
        torch.testing.assert_close(found[pooling], expected[pooling][0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_pooled_is_refused():
    latents, layers = draw()
    with pytest.raises(ValueError, match="expected the latents of 261 tokens, got 260; add the others first"):
        gathered(latents[:-1], layers[:-1], 50).pool("mean")
    sums = gathered(latents, layers, 50, ["mean"])
    for pooling in ("layer_moments", "layer_covariance", "layer_spectrum", "concat"):
        with pytest.raises(
            ValueError, match=f"one of the requested poolings, got '{pooling}'; pass it to LatentAccumulator"
        ):
            sums.pool(pooling)
