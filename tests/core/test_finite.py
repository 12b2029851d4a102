"""Weights that do not fit single precision are refused by name; finite weights never silently give NaN."""

import pytest
import torch

from hf_sane.analysis._embedding import layer_embedding_spread
from hf_sane.architectures.presets import build_model, cnn_s
from hf_sane.core._finite import MAX_TOKEN, check_results, check_sizes
from hf_sane.core._layout import Layout
from hf_sane.hub._pipeline import WeightFeatureExtractionPipeline
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._embeddings import embed_networks
from hf_sane.probing._poolings import POOLINGS
from hf_sane.probing._streaming import embed_checkpoint
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream

MODEL = SANEModel(
    SANEConfig(
        token_dim=30, hidden_size=12, latent_dim=6, num_hidden_layers=1, num_attention_heads=2, window_size=17,
        position_embedding="sinusoidal",
    )
).eval()  # fmt: skip
NETWORK = build_model(cnn_s())
PLAIN = SANEFeatureExtractor(30, normalization="none")
FITTED = SANEFeatureExtractor(30).fit([NETWORK])


def scaled(factor):
    return {name: tensor * (factor if "hidden" in name else 1) for name, tensor in NETWORK.state_dict().items()}


def every_way(extractor, source):
    """All that makes latents or embeddings of one network."""
    raw = PLAIN.encode(source)
    codec = NetworkCodec(MODEL, extractor, raw.layout, cnn_s())
    pipeline = WeightFeatureExtractionPipeline(model=MODEL, feature_extractor=extractor)
    return {
        "networks": lambda: embed_networks(MODEL, extractor, raw.layout, raw.tokens[None], poolings=POOLINGS)["mean"],
        "checkpoint": lambda: embed_checkpoint(MODEL, extractor, source)[1]["mean"],
        "stream": lambda: embed_checkpoint(MODEL, extractor, source, max_memory_bytes=10)[1]["mean"],
        "pipeline": lambda: pipeline(source),
        "codec": lambda: codec.encode(raw.tokens[None]),
        "spread": lambda: torch.tensor(list(layer_embedding_spread(MODEL, extractor, source).values())),
    }


@pytest.mark.parametrize("extractor", [PLAIN, FITTED], ids=["none", "fitted"])
@pytest.mark.parametrize("way", ["networks", "checkpoint", "stream", "pipeline", "codec", "spread"])
def test_diverged_weights_are_refused_by_name_and_large_ones_are_not(extractor, way):
    with pytest.raises(ValueError, match=r"weights (of|in) hidden\.0.*(diverged|overflow)"):
        every_way(extractor, scaled(1e37))[way]()
    assert every_way(extractor, scaled(1e4))[way]().isfinite().all()
    assert every_way(extractor, NETWORK.half())[way]().isfinite().all()
    NETWORK.float()


def test_weights_that_overflow_once_normalised_are_refused_with_their_layer(tmp_path):
    small = {"a.weight": torch.randn(4, 5), "b.weight": torch.randn(4, 5) * 1e-6}
    extractor = SANEFeatureExtractor(5).fit([small])
    large = {**small, "b.weight": torch.full((4, 5), 3e37)}
    with pytest.raises(ValueError, match=r"weights of b overflow when normalised: the largest is 3e\+37"):
        extractor.encode(large)
    with pytest.raises(ValueError, match="in b, or weights that overflow when normalised"):
        list(TokenStream(large, extractor))


def test_the_limits_of_half_precision_are_kept_exactly():
    limits = torch.tensor([[65504.0, -65504.0, 6e-8, 0.0]], dtype=torch.float16)
    sequence = SANEFeatureExtractor(4, normalization="none").encode({"w.weight": limits})
    assert sequence.tokens.tolist() == [[65504.0, -65504.0, float(limits[0, 2]), 0.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_templates_are_looked_at_too(value):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    network[1].running_var[1] = value
    for batch_norm in ("tokens", "template"):
        extractor = SANEFeatureExtractor(4, batch_norm=batch_norm, normalization="none")
        with pytest.raises(ValueError, match=r"NaN or infinite weights .*'1.running_var': 1"):
            extractor.encode(network)


def test_networks_and_layers_are_named_where_several_stand_together():
    layout = Layout.from_state_dict({"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(1, 3)}, token_dim=3)
    tokens = torch.randn(4, 3, 3)
    check_sizes(tokens, layout)
    check_sizes(tokens[:0], layout)
    tokens[1, 2, 0], tokens[3, 0, 1] = 2 * MAX_TOKEN, float("nan")
    with pytest.raises(ValueError, match=r"weights of b \(networks \[11, 13\]\) reach 2e\+18"):
        check_sizes(tokens, layout, first=10)
    with pytest.raises(ValueError, match=r"weights of a \(networks \[0\]\) reach inf"):
        check_sizes(tokens[3:], layout)


def test_an_autoencoder_that_is_not_finite_is_blamed_itself():
    broken = SANEModel(MODEL.config).eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    for pooling in ("mean", "concat"):
        with pytest.raises(
            ValueError, match=r"embeddings .* of 1 of 1 networks are not finite, although their weights are"
        ):
            embed_checkpoint(broken, PLAIN, NETWORK, poolings=[pooling])
    with pytest.raises(ValueError, match="latents of 2 of 3 networks are not finite"):
        check_results(torch.tensor([[1.0], [float("nan")], [float("inf")]]), "latents")
