"""Latents of whole networks: a linear code before training, more than that afterwards."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel

READERS = ["components", "attention"]
POSITIONS = torch.tensor([[token, token // 2, token % 2] for token in range(6)])
TINY = {
    "token_dim": 5,
    "hidden_size": 24,
    "latent_dim": 2,
    "num_latents": 2,
    "num_components": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "window_size": 8,
    "contrast_weight": 0.0,
}


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return SANEModel(SANEConfig(**TINY | changes)).eval()


def trained_looking(**changes):
    """A model in which all parameters do something."""
    model = tiny(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.components.deviations.abs_().add_(0.5)
    return model


@pytest.fixture(scope="module")
def networks():
    """30 networks of 6 tokens of 5 scalars, the last of which is padding in odd tokens; and their mask."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[1::2, -1] = False
    mixing = torch.randn(20, 6, 5, generator=generator) * torch.linspace(3, 0.1, 20)[:, None, None]
    tokens = torch.einsum("mk,knd->mnd", torch.randn(30, 20, generator=generator), mixing) + mixing[0]
    return tokens * mask, mask


def components(tokens, count):
    """The best code of `count` numbers, from NumPy."""
    flat = tokens.double().flatten(1).numpy()
    directions = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][:count]
    decoded = flat.mean(axis=0) + (flat - flat.mean(axis=0)) @ directions.T @ directions
    return torch.from_numpy(decoded).view(tokens.shape)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("count", [30, 9])  # more networks than weights, and fewer
def test_before_training_it_is_the_best_linear_code_of_whole_networks(reader, count, networks):
    tokens, mask = networks[0][:count], networks[1]
    model = tiny(latent_reader=reader)
    r2 = model.initialize_from_networks(tokens, mask)
    latents = model.encode_sequences(tokens, POSITIONS)
    assert latents.shape == (count, 2, 2)
    torch.testing.assert_close(latents.flatten(1).std(dim=0, correction=0), torch.ones(4))
    expected = components(tokens, 4)
    decoded = model.decode_sequences(latents, POSITIONS)
    torch.testing.assert_close(decoded[:, mask].double(), expected[:, mask], atol=1e-4, rtol=1e-4)
    real = tokens.double()[:, mask]
    error = (real - expected[:, mask]).square().sum() / (real - real.mean()).square().sum()
    assert r2 == pytest.approx(1 - error.item(), abs=1e-6)


@pytest.mark.parametrize("reader", READERS)
def test_padded_tokens_do_not_influence_latents(reader):
    """Networks of 6 tokens, alone and padded to 8."""
    model = trained_looking(latent_reader=reader)
    tokens = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))
    positions = POSITIONS.expand(3, -1, -1)
    padded = torch.cat([tokens, 7 * torch.ones(3, 2, 5)], dim=1)
    places, mask = torch.cat([positions, positions[:, :2]], dim=1), torch.tensor([[1] * 6 + [0] * 2] * 3)
    latents = model.encode(tokens, positions)
    torch.testing.assert_close(model.encode(padded, places, mask), latents, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.encode(padded, places), latents, atol=1e-2)
    decoded = model.decode(latents, places, mask)
    assert not decoded[:, 6:].any()


@pytest.mark.parametrize("reader", READERS)
def test_latents_reach_all_tokens_and_tokens_all_latents(reader):
    model = trained_looking(latent_reader=reader)
    tokens = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    latents = model.encode(tokens, POSITIONS[None])
    (gradient,) = torch.autograd.grad(latents[0, 1, 1], tokens)
    assert (gradient.abs().sum(dim=2) > 0).all()
    inputs = latents.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.decode(inputs, POSITIONS[None])[0, 5, 0], inputs)
    assert (gradient != 0).all()


@pytest.mark.parametrize("reader", READERS)
def test_every_parameter_but_the_components_learns(reader, networks):
    tokens, mask = networks
    model = tiny(latent_reader=reader, contrast_weight=0.1).train()
    model.initialize_from_networks(tokens, mask)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = {"positions": POSITIONS.expand(len(tokens), -1, -1), "weight_mask": mask.expand(len(tokens), -1, -1)}
    for _ in range(3):  # gradients arrive one by one behind branches that start at zero
        optimizer.zero_grad()
        model(tokens, second_tokens=tokens + 0.1 * torch.randn_like(tokens), **batch).loss.backward()
        optimizer.step()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"components.mean", "components.directions", "components.deviations"}
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert not silent


def test_training_finds_what_no_linear_code_has():
    """Around each of two ancestors, networks vary in another direction: 3 linear numbers, 2 learned ones."""
    generator = torch.Generator().manual_seed(0)
    ancestor, first, second = torch.linalg.qr(torch.randn(30, 3, generator=generator))[0].T.view(3, 6, 5)
    side = torch.arange(200) % 2
    size = torch.randn(200, generator=generator)[:, None, None]
    directions = torch.where(side[:, None, None] == 0, first, second)
    tokens = (4 * side - 2)[:, None, None] * ancestor + size * directions
    train, test, mask = tokens[:150], tokens[150:], torch.ones(6, 5, dtype=torch.bool)
    model = tiny(num_latents=1, num_components=3, hidden_size=32)
    model.initialize_from_networks(train, mask)

    def error():
        decoded = model.decode_sequences(model.encode_sequences(test, POSITIONS), POSITIONS)
        return (decoded - test).square().sum().item()

    linear = error()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        model.train()(train, POSITIONS.expand(len(train), -1, -1)).loss.backward()
        optimizer.step()
    assert error() < 0.2 * linear


@pytest.mark.parametrize("reader", READERS)
def test_save_and_load_round_trip(reader, tmp_path):
    model = trained_looking(latent_reader=reader)
    model.save_pretrained(tmp_path)
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is SANEModel
    latents = model.encode_sequences(tokens, POSITIONS)
    assert torch.equal(loaded.encode_sequences(tokens, POSITIONS), latents)
    assert torch.equal(loaded.decode_sequences(latents, POSITIONS), model.decode_sequences(latents, POSITIONS))
    one_by_one = [loaded.encode_sequences(network[None], POSITIONS, batch_size=1) for network in tokens]
    torch.testing.assert_close(torch.cat(one_by_one), latents)


def test_networks_are_not_cut_into_windows(networks):
    model, tokens = tiny(), networks[0]
    for options in ({"window_size": 4}, {"halo_size": 1}):
        with pytest.raises(ValueError, match="2 latents per network instead of one per token, and takes whole"):
            model.encode_sequences(tokens, POSITIONS, **options)
    longer = torch.zeros(1, 9, 5)
    with pytest.raises(ValueError, match="at most 8 tokens, got 9 tokens"):
        model.encode(longer, torch.zeros(1, 9, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected latents \[B, 2, 2\] of whole networks"):
        model.decode_sequences(torch.zeros(1, 6, 2), POSITIONS)


def test_what_does_not_fit_is_refused(networks):
    tokens, mask = networks
    with pytest.raises(ValueError, match="expected a model with num_latents"):
        tiny(num_latents=None).initialize_from_networks(tokens, mask)
    for wrong in ((tokens[:0], mask), (tokens, mask[:2]), (torch.zeros(2, 9, 5), torch.ones(9, 5, dtype=torch.bool))):
        with pytest.raises(ValueError, match="of at most window_size=8 tokens and a mask"):
            tiny().initialize_from_networks(*wrong)
    for wrong, message in (
        ({"num_latents": 0}, "num_latents must be at least 1"),
        ({"num_components": 3}, r"num_components must be at least num_latents \* latent_dim = 4, got 3"),
        ({"initialization": "paper"}, "num_latents requires initialization='linear_path'"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            tiny(**wrong)
