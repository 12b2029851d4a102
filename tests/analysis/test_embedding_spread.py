"""What SANE sees of the layers whose spectra are analysed."""

import pytest

from hf_sane.analysis._embedding import layer_embedding_spread
from hf_sane.analysis._spectral import analyze_spectrum
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor


def test_spread_of_latents_by_layer(tiny_zoo):
    split = tiny_zoo.splits["train"]
    extractor = SANEFeatureExtractor(token_dim=split.layout(0).token_dim).fit([split.state_dict(0)])
    config = SANEConfig(
        token_dim=extractor.token_dim, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2
    )
    model = SANEModel(config).eval()
    network = split.model(1)
    found = layer_embedding_spread(model, extractor, network)
    layers = [layer.name for layer in analyze_spectrum(network).layers]
    assert set(layers) <= set(found)
    sequence = extractor.encode(network)
    latents = model.encode_sequences(sequence.tokens[None], sequence.positions)[0]
    names = [layer.weight.name for layer in sequence.layout.layers]
    part = sequence.layout.token_slices[names.index(layers[0])]
    assert found[layers[0]] == pytest.approx(latents[part].detach().numpy().std(), rel=1e-5)
