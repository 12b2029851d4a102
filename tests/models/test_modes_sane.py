"""Who looks at a model leaves every part of it in the mode that it was in."""

import pytest
import torch
from torch import nn

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.merging._scoring import ImageScore
from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.models.modes_sane import modes_kept
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.probing._streaming import embed_stream
from hf_sane.sampling._finetuning import accuracy
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._token_stream import TokenStream


def frozen(module):
    """In training mode, but for one part."""
    module.train()
    parts = [part for part in module.modules() if part is not module]
    parts[len(parts) // 2].eval()
    parts[-1].eval()
    return module


def modes(module):
    return [part.training for part in module.modules()]


def sane():
    return SANEModel(
        SANEConfig(
            token_dim=9, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2, window_size=8,
            position_embedding="sinusoidal",
        )
    )  # fmt: skip


POSITIONS = torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.arange(5)], dim=1)


def test_encoding_and_decoding_sequences():
    model = frozen(sane())
    before = modes(model)
    latents = model.encode_sequences(torch.randn(2, 5, 9), POSITIONS)
    model.decode_sequences(latents, POSITIONS)
    assert modes(model) == before
    assert True in before
    assert False in before


def test_streams():
    model = frozen(sane())
    before = modes(model)
    extractor = SANEFeatureExtractor(9, normalization="none")
    embed_stream(model, TokenStream({"w": torch.ones(3, 9)}, extractor))
    with pytest.raises(ValueError, match="NaN or infinite"):
        embed_stream(model, TokenStream({"w": torch.full((3, 9), torch.nan)}, extractor))
    assert modes(model) == before


def test_scores_and_accuracies():
    network = frozen(build_model(cnn_digits()))
    before = modes(network)
    images, labels = torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    ImageScore(images, labels)(network)
    accuracy(network, images, labels)
    assert modes(network) == before


def test_networks_whose_structure_is_the_callers_own():
    network = frozen(build_model(cifar_resnet(20, width=2)))
    before = modes(network)
    tensors = {name: tensor[None] for name, tensor in network.state_dict().items()}
    StackedNetworks(network, tensors).logits(torch.randn(2, 3, 8, 8))
    assert modes(network) == before


def test_modes_are_put_back_after_an_error_too():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with pytest.raises(RuntimeError), modes_kept(network):
        network.eval()
        raise RuntimeError
    assert modes(network) == [True, True, False]
