"""The linear code against its definition: NumPy's singular value decomposition, group by group."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from hf_sane.models import modeling_linear
from hf_sane.models.configuration_linear import LinearCodeConfig
from hf_sane.models.modeling_linear import LinearCode

POSITIONS = torch.tensor([[token, token // 2, token % 2] for token in range(6)])  # 6 tokens, 3 layers
GROUPS = {"all": [0], "kind": [0, 1, 0], "layer": [0, 1, 2], "position": [0, 1, 2, 3, 4, 5]}
OF_TOKENS = {"all": [0] * 6, "kind": [0, 0, 1, 1, 0, 0], "layer": [0, 0, 1, 1, 2, 2], "position": GROUPS["position"]}


@pytest.fixture(scope="module")
def tokens():
    """20 networks of 6 tokens of 5 scalars, whose spread and mean differ from position to position."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 5, 5, generator=generator)
    return torch.einsum("mnd,nde->mne", torch.randn(20, 6, 5, generator=generator), mixing) + mixing[:, 0]


def fitted(tokens, grouping, latent_dim):
    config = LinearCodeConfig(token_dim=5, latent_dim=latent_dim, grouping=grouping, groups=GROUPS[grouping])
    return LinearCode.fit(config, lambda: [(tokens[:7], POSITIONS), (tokens[7:], POSITIONS)])


@pytest.mark.parametrize("grouping", GROUPS)
def test_it_is_the_singular_value_decomposition_of_each_group(grouping, tokens):
    """Rank 2 on training and on other networks: `mu + V V^T (t - mu)` with `V` from NumPy."""
    code = fitted(tokens, grouping, 2)
    others = tokens.flip(2) + 1
    decoded = code.decode_sequences(code.encode_sequences(others, POSITIONS), POSITIONS).double().numpy()
    where = np.array(OF_TOKENS[grouping])
    for group in set(where):
        sample = tokens.double().numpy()[:, where == group].reshape(-1, 5)
        mean = sample.mean(axis=0)
        directions = np.linalg.svd(sample - mean, full_matrices=False)[2][:2]
        expected = mean + (others.double().numpy()[:, where == group] - mean) @ directions.T @ directions
        np.testing.assert_allclose(decoded[:, where == group], expected, atol=1e-5)


@pytest.mark.parametrize("grouping", GROUPS)
@pytest.mark.parametrize("latent_dim", [5, 8])
def test_at_full_rank_nothing_is_lost(grouping, latent_dim, tokens):
    code = fitted(tokens, grouping, latent_dim)
    others = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))
    latents = code.encode_sequences(others, POSITIONS)
    assert latents.shape == (4, 6, latent_dim)
    assert not latents[..., 5:].any()
    torch.testing.assert_close(code.decode_sequences(latents, POSITIONS), others, atol=1e-5, rtol=0)


def test_finer_groups_reconstruct_training_networks_better(tokens):
    errors = []
    for grouping in GROUPS:
        code = fitted(tokens, grouping, 2)
        decoded = code.decode_sequences(code.encode_sequences(tokens, POSITIONS), POSITIONS)
        errors.append((decoded - tokens).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_whole_networks_are_one_vector_each(tokens, tmp_path):
    """`mu + V V^T (t - mu)` of flattened networks, with `V` from NumPy; also for other networks."""
    config = LinearCodeConfig(token_dim=5, latent_dim=4, grouping="network", groups=list(range(6)))
    code = LinearCode.fit(config, lambda: [(tokens[:7], POSITIONS), (tokens[7:], POSITIONS)])
    others = tokens.flip(2) + 1
    latents = code.encode_sequences(others, POSITIONS)
    assert latents.shape == (20, 1, 4)
    flat, wanted = tokens.double().flatten(1).numpy(), others.double().flatten(1).numpy()
    mean = flat.mean(axis=0)
    directions = np.linalg.svd(flat - mean, full_matrices=False)[2][:4]
    expected = mean + (wanted - mean) @ directions.T @ directions
    decoded = code.decode_sequences(latents, POSITIONS)
    np.testing.assert_allclose(decoded.double().flatten(1).numpy(), expected, atol=1e-5)
    code.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode_sequences(latents, POSITIONS), decoded)
    with pytest.raises(ValueError, match="fitted on whole networks of 6 tokens, got 5"):
        code.encode_sequences(tokens[:, :5], POSITIONS[:5])
    with pytest.raises(ValueError, match="expected training networks of 6 tokens, got none"):
        LinearCode.fit(config, lambda: [])


def test_windows_and_parts_of_the_memory_change_nothing(tokens, monkeypatch):
    whole = fitted(tokens, "position", 3)
    latents = whole.encode_sequences(tokens, POSITIONS)
    torch.testing.assert_close(whole.encode_sequences(tokens, POSITIONS, window_size=4, halo_size=1), latents)
    monkeypatch.setattr(modeling_linear, "MAX_SCALARS", 2 * 5**2)  # two groups at a time
    in_parts = fitted(tokens, "position", 3)
    assert all(torch.equal(in_parts.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_it_is_saved_and_loaded_with_the_auto_class(tokens, tmp_path):
    code = fitted(tokens, "kind", 3)
    code.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, LinearCode)
    assert loaded.config.to_dict()["groups"] == [0, 1, 0]
    output = loaded(tokens, POSITIONS.expand(20, 6, 3))
    assert torch.equal(output.latents, code.encode_sequences(tokens, POSITIONS))
    assert torch.equal(output.reconstruction, code.decode_sequences(output.latents, POSITIONS))


def test_what_it_was_not_fitted_on_is_refused(tokens):
    longer = torch.cat([POSITIONS, POSITIONS[-1:] + 1])
    with pytest.raises(ValueError, match="fitted on networks of 3 layers, got one with more"):
        fitted(tokens, "layer", 2).encode_sequences(torch.zeros(1, 7, 5), longer)
    with pytest.raises(ValueError, match="expected tokens of training networks, got none"):
        LinearCode.fit(LinearCodeConfig(token_dim=5), lambda: [])
    with pytest.raises(StrictDataclassError, match="expected at least one group, all >= 0"):
        LinearCodeConfig(groups=[])
    with pytest.raises(TypeError, match="did you mean 'latent_dim'"):
        LinearCodeConfig(latent_dims=3)
