from dataclasses import replace

import pytest
import torch

from hf_sane.architectures.presets import build_model, cifar_resnet, cnn_digits
from hf_sane.core._kde import bandwidth_by_rule
from hf_sane.core._layout import Layout
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._generation import (
    Density,
    NetworkCodec,
    SampledNetworks,
    networks_from_tokens,
    sample_from_prior,
)


def sample_networks(codec, anchor_tokens, count, *, density, anchor_weights=None, generator=None):
    """Latents around those of anchors, and the networks that they decode to."""
    anchors = codec.encode(anchor_tokens)
    latents = density.sample(anchors, count, anchor_weights=anchor_weights, generator=generator)
    return SampledNetworks(latents, codec.decode(latents))


def same(first: StackedNetworks, second: StackedNetworks, **tolerance: float) -> bool:
    assert first.tensors.keys() == second.tensors.keys()
    return all(torch.allclose(first.tensors[n], second.tensors[n], **tolerance) for n in first.tensors)


def test_encode_decode_gives_the_networks_back(codec, raw_tokens, trained):
    decoded = codec.decode(codec.encode(raw_tokens))
    assert same(decoded, trained, atol=0.02)
    assert not same(decoded, trained.select([*range(1, 12), 0]), atol=0.02)
    assert torch.equal(codec.tokens(trained), raw_tokens)
    assert same(codec.networks(raw_tokens), trained, rtol=0, atol=0)


@pytest.mark.parametrize("halo_size", [0, 1, 3])
@pytest.mark.parametrize("window_size", [None, 7, 15, 16, 50])
def test_every_window_reconstructs(codec, raw_tokens, trained, window_size, halo_size):
    windowed = replace(codec, window_size=window_size, halo_size=halo_size, batch_size=5)
    assert same(windowed.decode(windowed.encode(raw_tokens)), trained, atol=0.02)


def test_sampled_networks_scatter_around_anchors(codec, raw_tokens, data, generator):
    accuracies = {}
    for bandwidth in (0.0, 0.1, 3.0):
        sampled = sample_networks(codec, raw_tokens, 40, density=Density(bandwidth), generator=generator)
        assert sampled.latents.shape == (40, codec.layout.num_tokens, 12)
        assert sampled.networks.num_models == 40
        accuracies[bandwidth] = sampled.networks.evaluate(*data.split("test"))[1].mean().item()
    assert accuracies[0.0] > 0.8
    assert accuracies[0.1] > 0.8
    assert accuracies[3.0] < 0.6


def test_same_seed_same_networks(codec, raw_tokens):
    first, second, other = (
        sample_networks(codec, raw_tokens, 3, density=Density(0.1), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert same(first.networks, second.networks, rtol=0, atol=0)
    assert not same(first.networks, other.networks)


def test_anchor_weights_reach_the_density(codec, raw_tokens, generator):
    weights = torch.zeros(len(raw_tokens))
    weights[4] = 1
    sampled = sample_networks(codec, raw_tokens, 5, density=Density(0.0), anchor_weights=weights, generator=generator)
    assert same(sampled.networks, codec.decode(codec.encode(raw_tokens[[4] * 5])), atol=1e-5)


@pytest.mark.parametrize("mode", ["joint", "token", "scalar"])
def test_bandwidth_units(mode):
    anchors = torch.randn(5, 4, 3) * torch.tensor([1.0, 10.0, 0.0])
    assert Density(0.3, "latent", mode).kernel(anchors) == 0.3
    torch.testing.assert_close(Density(0.3, "anchor_std", mode).kernel(anchors), 0.3 * anchors.std(dim=0))
    expected = 0.3 * anchors.reshape(20, 3).std(dim=0)
    torch.testing.assert_close(Density(0.3, "latent_std", mode).kernel(anchors)[2], expected)
    assert Density(0.3, "latent_std", mode).sample(anchors[:1], 2).shape == (2, 4, 3)  # one anchor has that too
    assert Density(0.0, "anchor_std", mode).kernel(anchors[:1]) == 0
    rule = Density("scott", mode=mode).sample(anchors, 6, generator=torch.Generator().manual_seed(0))
    fixed = Density(1.0, "latent", mode)
    assert Density("scott", mode=mode).kernel(anchors) == "scott"
    expected = bandwidth_by_rule(anchors, "scott", mode=mode)
    noise = fixed.sample(torch.zeros(1, 4, 3), 6, generator=torch.Generator().manual_seed(0))
    if mode == "joint":  # the same random numbers, whatever the anchors
        nearest = (rule - noise * expected).unsqueeze(1) - anchors
        assert nearest.abs().amax(dim=(2, 3)).min(dim=1).values.max() < 1e-4


def test_prior_needs_no_anchors_and_scales(codec, generator):
    sampled = sample_from_prior(codec, 500, std=3.0, generator=generator)
    assert sampled.networks.num_models == 500
    assert sampled.latents.std().item() == pytest.approx(3.0, rel=0.02)
    assert sample_from_prior(codec, 2, std=0.0).latents.abs().max() == 0


def test_template_and_counters_come_back(generator):
    config = cifar_resnet(20, width=4, num_labels=3)
    model = build_model(config)
    model.bn1.num_batches_tracked.fill_(17)
    for batch_norm in ("tokens", "template"):
        layout = Layout.from_state_dict(model.state_dict(), token_dim=20, batch_norm=batch_norm)
        tokens = layout.tokens(model.state_dict())
        networks = networks_from_tokens(tokens.expand(3, -1, -1), layout, config)
        for name, tensor in model.state_dict().items():
            assert torch.equal(networks.tensors[name], tensor.expand(3, *tensor.shape))
        networks.tensors["bn1.num_batches_tracked"].add_(1)
    assert model.bn1.num_batches_tracked == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": -0.1}, "expected a bandwidth >= 0, 'scott' or 'silverman', got -0.1"),
        (
            {"bandwidth": "scott", "unit": "latent_std"},
            "the rules 'scott' and 'silverman' require the unit 'anchor_std'",
        ),
        ({"bandwidth": "silverman", "unit": "latent"}, "leave the unit out, or pass the bandwidth as a number"),
        ({"bandwidth": float("inf")}, "got inf"),
        ({"bandwidth": "wide"}, "got 'wide'"),
        ({"bandwidth": 0.1, "unit": "std"}, "expected a bandwidth unit of .*'latent_std', 'latent'.*, got 'std'"),
        ({"bandwidth": 0.1, "mode": "tokens"}, "expected mode 'joint', 'token' or 'scalar', got 'tokens'"),
    ],
)
def test_density_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Density(**arguments)


def test_one_anchor_has_no_standard_deviation(codec, raw_tokens):
    with pytest.raises(
        ValueError, match="one anchor has no standard deviation .*--unit latent_std, unit='latent_std'"
    ):
        sample_networks(codec, raw_tokens[:1], 3, density=Density(0.1))
    assert sample_networks(codec, raw_tokens[:1], 3, density=Density(0.1, "latent")).networks.num_models == 3


def test_foreign_tokens(codec, raw_tokens):
    with pytest.raises(
        ValueError, match=r"expected raw tokens \[M, 15, 9\] of at least one network, got \[12, 14, 9\]"
    ):
        codec.encode(raw_tokens[:, 1:])
    with pytest.raises(ValueError, match=r"got \[0, 15, 9\]"):
        sample_networks(codec, raw_tokens[:0], 3, density=Density(0.1))
    broken = raw_tokens.clone()
    broken[2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite weights in networks \[2\]; leave them out"):
        codec.encode(broken)


def test_codec_refuses_parts_that_do_not_fit(codec, config):
    other = Layout.from_state_dict(build_model(config).state_dict(), token_dim=8)
    with pytest.raises(ValueError, match="the SANE model expects tokens of 9 values, the layout has 8"):
        NetworkCodec(codec.model, codec.extractor, other, config)
    with pytest.raises(
        ValueError, match="belong to different networks: missing or unexpected tensors .*convolutions.0.bias"
    ):
        NetworkCodec(codec.model, codec.extractor, codec.layout, cnn_digits())


def test_prior_errors(codec):
    with pytest.raises(ValueError, match="expected num_samples >= 1 and a finite std >= 0, got 0 and 1.0"):
        sample_from_prior(codec, 0, std=1.0)
    with pytest.raises(ValueError, match="got 1 and -1.0"):
        sample_from_prior(codec, 1, std=-1.0)
