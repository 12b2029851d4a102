"""Reconstruction of test networks: R2 and accuracy, and what windows change."""

import math

import pytest
import torch

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.probing._zoo_features import read_zoo_features
from hf_sane.sampling._generation import NetworkCodec
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.workflows.reconstruct import reconstruct
from hf_sane.workflows.sane import SANE
from hf_sane.zoo._alignment import aligned_tokens


@pytest.fixture(scope="module")
def sane(tiny_zoo) -> SANE:
    """An autoencoder that nobody trained, whose blocks do something."""
    split = tiny_zoo.splits["train"]
    layout = split.layout(0)
    extractor = SANEFeatureExtractor(layout.token_dim).fit([(layout, split.stacked_tokens())])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "latent_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SANEModel(SANEConfig(token_dim=layout.token_dim, window_size=layout.num_tokens, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return SANE(model, extractor)


def test_r2_is_that_of_the_definition_and_accuracies_those_of_the_networks(sane, tiny_zoo, digits):
    result = reconstruct({"tiny": tiny_zoo}, sane, digits)
    split = tiny_zoo.splits["test"]
    layout, mask = split.layout(0), split.layout(0).weight_mask
    tokens = sane.extractor.normalize(aligned_tokens(split), layout)
    latents = sane.model.encode_sequences(tokens, layout.positions)
    decoded = sane.model.decode_sequences(latents, layout.positions)
    real, found = tokens[:, mask].double(), decoded[:, mask].double()
    expected = 1 - (real - found).square().sum() / (real - real.mean()).square().sum()
    (row,) = result.to_dict()["reconstruction"].values()
    assert result.to_dict()["reconstruction_r2"] == pytest.approx(row["r2"]) == pytest.approx(expected.item())
    final = split.final_epochs()
    assert row["networks"] == len(final)
    assert row["accuracy_original"] == pytest.approx(final.column("test_accuracy").mean(), abs=1e-6)
    assert row["accuracy_kept"] == pytest.approx(row["accuracy_reconstructed"] / row["accuracy_original"])
    codec = NetworkCodec(sane.model, sane.extractor, layout, split.config(0)).linear(
        aligned_tokens(tiny_zoo.splits["train"])
    )
    by_code = sane.extractor.normalize(codec.decode_tokens(codec.encode(aligned_tokens(split))), layout)
    error = (real - by_code[:, mask]).square().sum() / (real - real.mean()).square().sum()
    assert row["linear_r2"] == pytest.approx(1 - error.item(), abs=1e-5)
    assert row["linear_accuracy_kept"] * row["accuracy_original"] == pytest.approx(
        row["linear_accuracy_reconstructed"]
    )
    assert f"R2 of all test networks: {expected.item():.4g}" in str(result)


def test_one_zoo_is_called_by_its_place(sane, tiny_zoo, tiny_zoo_folder, digits):
    expected = reconstruct({"tiny": tiny_zoo}, sane, digits).to_dict()["reconstruction"]["tiny"]
    for given in (tiny_zoo_folder, [str(tiny_zoo_folder)]):
        assert reconstruct(given, sane, digits).to_dict()["reconstruction"] == {str(tiny_zoo_folder): expected}
    with pytest.raises(ValueError, match="expected different zoos"):
        reconstruct([tiny_zoo_folder, str(tiny_zoo_folder)], sane, digits)


def test_windows_after_training(sane, tiny_zoo, digits):
    length = tiny_zoo.splits["train"].layout(0).num_tokens
    windows = ({}, {"window_size": length, "halo_size": 4}, {"window_size": 12}, {"window_size": 12, "halo_size": 4})
    r2 = [
        reconstruct({"tiny": tiny_zoo}, sane, digits, **setting).record.results["reconstruction_r2"]
        for setting in windows
    ]
    assert all(map(math.isfinite, r2))
    assert r2[0] == pytest.approx(r2[1], abs=1e-5)  # one window is the whole network
    assert len({round(value, 4) for value in r2}) == 3
    options = {"poolings": ["mean"], "aligned": True}
    embeddings = [
        read_zoo_features(tiny_zoo, ["epoch"], sane.model, sane.extractor, **options, **setting).features["sane_mean"]
        for setting in windows
    ]
    torch.testing.assert_close(embeddings[0]["test"], embeddings[1]["test"], rtol=0, atol=1e-5)
    for setting in (2, 3):
        assert not embeddings[0]["test"].allclose(embeddings[setting]["test"], rtol=0, atol=1e-4)
