import numpy as np
import pytest
import torch

from hf_sane.networks._modules import fresh_networks
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._baselines import (
    AVERAGE_GROUP,
    anchor_spread,
    average_networks,
    interpolated_anchors,
    matched_noise_scale,
    noise_baseline,
    noisy_anchors,
    reconstructed_anchors,
    shrunken_networks,
    simple_baselines,
)
from hf_sane.sampling._diversity import WeightSpace, nearest_training_distance
from hf_sane.sampling._selection import Judge


@pytest.fixture(scope="module")
def space(layout, raw_tokens) -> WeightSpace:
    return WeightSpace.fit(layout, raw_tokens)


def test_reconstruction_is_encode_then_decode(codec, raw_tokens, data):
    found = reconstructed_anchors(codec, raw_tokens)
    assert torch.equal(found.latents, codec.encode(raw_tokens))
    assert torch.allclose(codec.tokens(found.networks), raw_tokens, atol=0.02)
    assert not torch.equal(codec.tokens(found.networks), raw_tokens)


@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0])
def test_noise_has_the_scale_of_each_layer(space, layout, raw_tokens, scale):
    generator = torch.Generator().manual_seed(0)
    found = noisy_anchors(space, raw_tokens[:1], 400, scale=scale, generator=generator)
    noise = found - raw_tokens[0]
    assert found.shape == (400, *raw_tokens.shape[1:])
    assert noise[:, ~layout.weight_mask].abs().max() == 0
    measured = 0
    for part, (_, std) in zip(layout.token_slices, space.statistics.per_layer(layout), strict=True):
        values = noise[:, part][:, layout.weight_mask[part]]
        assert values.std().item() == pytest.approx(scale * std, rel=0.05, abs=1e-6)
        measured += 1
    assert measured == 2


def test_noisy_networks_start_from_all_anchors(space, raw_tokens, generator):
    found = noisy_anchors(space, raw_tokens, 200, scale=0.0, generator=generator)
    origin = (found.unsqueeze(1) == raw_tokens).flatten(2).all(dim=2)
    assert origin.any(dim=1).all()
    assert origin.any(dim=0).all()


@pytest.mark.parametrize("distance", [0.01, 0.2, 0.6])
def test_matched_noise_reaches_the_distance(space, raw_tokens, distance):
    scale = matched_noise_scale(
        space, raw_tokens[:5], raw_tokens, distance=distance, generator=torch.Generator().manual_seed(0)
    )
    same_draws = noisy_anchors(space, raw_tokens[:5], 64, scale=scale, generator=torch.Generator().manual_seed(0))
    reached = nearest_training_distance(space, same_draws, raw_tokens).mean().item()
    assert reached == pytest.approx(distance, rel=2e-3)
    others = noisy_anchors(space, raw_tokens[:5], 64, scale=scale, generator=torch.Generator().manual_seed(1))
    assert nearest_training_distance(space, others, raw_tokens).mean().item() == pytest.approx(distance, rel=0.1)


def test_average_of_all_is_the_mean_and_groups_differ(raw_tokens, generator):
    whole = average_networks(raw_tokens, 8)
    torch.testing.assert_close(whole, raw_tokens.mean(dim=0).expand(8, -1, -1))
    assert (whole == whole[0]).all()  # in whatever order anchors are drawn
    groups = average_networks(raw_tokens, 50, group_size=3, generator=generator)
    assert not torch.equal(groups[0], groups[1])
    triples = {
        (i, j, k): (raw_tokens[i] + raw_tokens[j] + raw_tokens[k]) / 3
        for i in range(12)
        for j in range(i)
        for k in range(j)
    }
    stacked = torch.stack(list(triples.values()))
    nearest = (groups.unsqueeze(1) - stacked).abs().amax(dim=(2, 3)).min(dim=1).values
    assert nearest.max() < 1e-5
    single = average_networks(raw_tokens, 5, group_size=1, generator=generator)
    assert (single.unsqueeze(1) == raw_tokens).flatten(2).all(dim=2).any(dim=1).all()


def test_networks_from_scratch_are_fresh_and_know_nothing(config, data):
    networks = fresh_networks(config, list(range(100, 130)))
    assert networks.num_models == 30
    assert networks.evaluate(*data.split("test"))[1].mean() < 0.5
    expected = StackedNetworks.initialize(config, list(range(100, 130)))
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in networks.tensors.items())


def test_errors(space, raw_tokens):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        noisy_anchors(space, raw_tokens, 0, scale=0.1)
    for scale in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="the noise scale must be a finite number >= 0, got"):
            noisy_anchors(space, raw_tokens, 1, scale=scale)
    for distance in (0.0, float("nan")):
        with pytest.raises(ValueError, match="the distance to match must be positive and finite, got"):
            matched_noise_scale(space, raw_tokens, raw_tokens, distance=distance)
    with pytest.raises(
        ValueError, match="the anchors are .* from the nearest training network, more than the 0.01 to match"
    ):
        matched_noise_scale(space, raw_tokens[:3], raw_tokens[6:], distance=0.01)
    with pytest.raises(ValueError, match="expected num_samples >= 1 and groups of 1 to 12 anchors, got 1 and 13"):
        average_networks(raw_tokens, 1, group_size=13)
    with pytest.raises(ValueError, match="got 0 and 12"):
        average_networks(raw_tokens, 0)


def test_shaped_noise_has_the_spread_of_every_weight_and_reaches_the_distance(space, layout, raw_tokens):
    anchors, shape = raw_tokens[:5], anchor_spread(space, raw_tokens[:5])
    expected = np.where(layout.weight_mask, anchors.double().numpy().std(axis=0, ddof=1), 0)
    np.testing.assert_allclose(shape, expected, rtol=1e-4, atol=1e-7)
    given = {"shape": shape, "generator": torch.Generator().manual_seed(0)}
    scale = matched_noise_scale(space, anchors, raw_tokens, distance=0.2, **given)
    given["generator"].manual_seed(0)
    found = noisy_anchors(space, anchors, 64, scale=scale, **given)
    assert nearest_training_distance(space, found, raw_tokens).mean().item() == pytest.approx(0.2, rel=2e-3)
    noise = noisy_anchors(space, raw_tokens[:1], 2000, scale=0.5, **given) - raw_tokens[0]
    torch.testing.assert_close(noise.std(dim=0), 0.5 * shape, rtol=0.1, atol=1e-6)
    with pytest.raises(ValueError, match="needs at least two, got 1"):
        anchor_spread(space, raw_tokens[:1])
    with pytest.raises(ValueError, match="the anchors do not differ"):
        matched_noise_scale(space, anchors, raw_tokens, distance=0.2, shape=torch.zeros_like(shape))


@pytest.mark.parametrize("distance", [0.1, 100.0])
def test_interpolations_lie_between_two_anchors(distance, space, raw_tokens, generator):
    """At a share that reaches the distance; half-way, where none does."""
    found = interpolated_anchors(space, raw_tokens[:4], raw_tokens, 6, distance=distance, generator=generator)
    own = nearest_training_distance(space, found, raw_tokens).mean().item()
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    for network in found:
        shares = []
        for a, b in pairs:
            line = (raw_tokens[b] - raw_tokens[a]).flatten()
            share = ((network - raw_tokens[a]).flatten() @ line / line.square().sum()).item()
            if torch.allclose(network, raw_tokens[a] + share * (raw_tokens[b] - raw_tokens[a]), atol=1e-5):
                shares.append(share)
        assert len(shares) == 2  # from either end
        assert 0 < min(shares) <= 0.5 + 1e-5
    assert own == pytest.approx(0.1, rel=1e-3) if distance == 0.1 else min(shares) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 2 anchors"):
        interpolated_anchors(space, raw_tokens[:1], raw_tokens, 1, distance=0.1)


def test_shrunken_networks_have_the_norm_of_others(space, layout, raw_tokens):
    found = shrunken_networks(space, raw_tokens[:3], raw_tokens[3:5] / 4)
    norms = found[:, layout.weight_mask].double().norm(dim=1)
    wanted = raw_tokens[3:5, layout.weight_mask].double().norm(dim=1).mean() / 4
    torch.testing.assert_close(norms, wanted.expand(3))
    factors = found / raw_tokens[:3].where(layout.weight_mask, 1)
    for row in factors:
        assert row[layout.weight_mask].std() < 1e-6


@pytest.mark.parametrize("scale", [0.01, 0.1])
def test_noise_is_as_far_from_training_networks_as_what_it_is_compared_with(
    scale, codec, raw_tokens, noisy_copies, generator
):
    like = noisy_copies(raw_tokens, scale)
    tokens, networks = noise_baseline(codec, raw_tokens[:4], raw_tokens, like=like, generator=generator)(40)
    assert networks.num_models == len(tokens) == 40
    assert torch.equal(codec.tokens(networks), tokens)
    space = WeightSpace.fit(codec.layout, raw_tokens)
    found, wanted = (
        nearest_training_distance(space, codec.tokens(part), raw_tokens).mean().item() for part in (networks, like)
    )
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("num_anchors", [3, 8])  # fewer and more than make an average
def test_simple_baselines_against_their_definitions(num_anchors, codec, raw_tokens, data, generator):
    anchors = raw_tokens[:num_anchors]
    made = simple_baselines(
        codec,
        anchors,
        Judge.of_images(*data.split("validation")),
        num_networks=2,
        draw_noise=lambda count: (anchors[:count], codec.networks(anchors[:count] + 1)),
        shown=anchors[:1],
        seed=5,
        generator=generator,
    )
    found = {name: codec.tokens(networks) for name, networks in made.items()}
    mask = codec.layout.weight_mask
    assert torch.equal(found["anchors"], anchors[:1])
    assert torch.allclose(found["reconstructed_anchors"], codec.decode_tokens(codec.encode(anchors[:1])) * mask)
    assert torch.equal(found["anchor_noise"], (anchors[:2] + 1) * mask)
    scratch = StackedNetworks.initialize(codec.config, [1_000_005, 1_000_006])
    assert torch.equal(found["scratch"], codec.tokens(scratch))
    groups = torch.combinations(torch.arange(num_anchors), min(AVERAGE_GROUP, num_anchors))
    means = torch.stack([anchors[group].mean(dim=0) for group in groups])
    for average in found["anchor_average"]:
        assert torch.isclose(means, average, atol=1e-6).all(dim=(1, 2)).sum() == 1


def test_anchors_all_stand_for_themselves_unless_some_are_chosen(codec, raw_tokens, data):
    made = simple_baselines(
        codec,
        raw_tokens,
        Judge.of_images(*data.split("validation")),
        num_networks=1,
        draw_noise=lambda count: (raw_tokens[:count], codec.networks(raw_tokens[:count])),
    )
    sizes = {name: networks.num_models for name, networks in made.items()}
    assert sizes == dict.fromkeys(made, 1) | dict.fromkeys(["anchors", "reconstructed_anchors"], len(raw_tokens))
