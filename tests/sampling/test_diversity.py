import pytest
import torch

from hf_sane.architectures.presets import build_model, cifar_resnet
from hf_sane.core._layout import Layout
from hf_sane.networks._stacked import StackedNetworks
from hf_sane.sampling._diversity import (
    WeightSpace,
    agreement,
    align_tokens,
    error_overlap,
    nearest_distances,
    nearest_training_distance,
    pairwise_distance,
    rms_distances,
)
from hf_sane.symmetry._networks import permutation_spec


@pytest.fixture(scope="module")
def space(layout, raw_tokens) -> WeightSpace:
    return WeightSpace.fit(layout, raw_tokens)


@pytest.fixture(scope="module")
def spec(config):
    return permutation_spec(config)


@pytest.fixture(scope="module")
def aligned(raw_tokens, layout, spec, trained) -> torch.Tensor:
    return align_tokens(raw_tokens, layout, spec, trained.state_dict(0))


def permuted(tokens: torch.Tensor, layout: Layout, spec, config, seed: int = 0) -> torch.Tensor:
    """The same functions with their neurons in another order."""
    generator = torch.Generator().manual_seed(seed)
    networks = StackedNetworks(config, layout.tensors(tokens))
    moved = spec.apply(networks.tensors, spec.random(len(tokens), generator=generator), batch_dims=1)
    return layout.tokens(moved, batch_dims=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_against_a_loop(dtype):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 20, generator=generator, dtype=dtype) + 5 for n in (4, 6))
    expected = torch.tensor([[(a - b).square().mean().sqrt().item() for b in second] for a in first]).double()
    torch.testing.assert_close(rms_distances(first, second), expected, rtol=1e-5, atol=1e-6)
    distances, nearest = nearest_distances(first, second)
    assert nearest.tolist() == expected.argmin(dim=1).tolist()
    torch.testing.assert_close(distances, expected.min(dim=1).values, rtol=1e-6, atol=1e-7)
    pairs = [expected_pair(first, i, j) for i in range(4) for j in range(4) if i != j]
    assert pairwise_distance(first) == pytest.approx(sum(pairs) / 12, rel=1e-5)


def test_equal_networks_are_at_distance_zero():
    points = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    assert pairwise_distance(points) == 0
    points[1, 7] += 0.1
    assert pairwise_distance(points) == pytest.approx(0.4 * 0.1 / 1000**0.5, rel=1e-4)


def expected_pair(points: torch.Tensor, i: int, j: int) -> float:
    return (points[i] - points[j]).square().mean().sqrt().item()


def test_a_training_network_is_at_distance_zero_and_others_are_not(space, raw_tokens):
    distances = nearest_training_distance(space, raw_tokens, raw_tokens)
    assert distances.tolist() == [0.0] * 12
    for i in range(12):
        others = torch.cat([raw_tokens[:i], raw_tokens[i + 1 :]])
        assert nearest_training_distance(space, raw_tokens[i : i + 1], others) > 0.1


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
def test_noise_of_one_standard_deviation_is_at_distance_one(space, raw_tokens, generator, scale):
    noise = torch.randn(raw_tokens.shape, generator=generator) * space.token_scales()
    points = space.points(raw_tokens + scale * noise)
    distances = (points - space.points(raw_tokens)).square().mean(dim=1).sqrt()
    assert distances.mean().item() == pytest.approx(scale, rel=0.1)


def test_every_layer_counts_in_its_own_units(layout, raw_tokens):
    factors = torch.ones(layout.num_tokens, 1)
    factors[layout.token_slices[0]] = 1000.0
    scaled = raw_tokens * factors
    plain = WeightSpace.fit(layout, raw_tokens)
    other = WeightSpace.fit(layout, scaled)
    torch.testing.assert_close(other.points(scaled), plain.points(raw_tokens), rtol=1e-4, atol=1e-5)
    assert plain.points(raw_tokens).shape == (12, layout.num_weights)


def test_running_statistics_take_no_part():
    config = cifar_resnet(20, width=2, num_labels=2)
    networks = StackedNetworks.initialize(config, [0, 1, 2])
    layout = Layout.from_state_dict(build_model(config).state_dict(), token_dim=19)
    tokens = layout.tokens(networks.tensors, batch_dims=1)
    space = WeightSpace.fit(layout, tokens)
    before = space.points(tokens)
    for layer, part in zip(layout.layers, layout.token_slices, strict=True):
        if layer.kind == "running_statistics":
            tokens[:, part] += 5
    torch.testing.assert_close(space.points(tokens), before)
    assert before.shape[1] == sum(p.numel() for p in build_model(config).parameters())


def test_a_permuted_copy_is_found_out_by_alignment(space, layout, aligned, spec, config, trained):
    copies = permuted(aligned, layout, spec, config)
    plain = nearest_training_distance(space, copies, aligned)
    assert plain.mean() > 0.1
    found = nearest_training_distance(space, copies, aligned, permutations=spec, reference=trained.state_dict(0))
    assert (found < 1e-6).sum() > 9  # matching is a heuristic: a few copies may end in another optimum
    direct = nearest_training_distance(space, copies, aligned, permutations=spec, realigned=12)
    assert (direct < 1e-6).sum() > 9
    assert (direct <= plain + 1e-9).all()


def test_realigning_only_comes_closer(space, layout, aligned, spec, config, generator):
    candidates = aligned + 0.3 * torch.randn(aligned.shape, generator=generator) * space.token_scales()
    distances = [
        nearest_training_distance(space, candidates, aligned, permutations=spec, realigned=count)
        for count in (0, 1, 5)
    ]
    assert (distances[1] <= distances[0]).all()
    assert (distances[2] <= distances[1]).all()


@pytest.mark.parametrize("batch_norm", ["tokens", "template"])
def test_alignment_with_batch_norm_in_tokens_or_template(batch_norm):
    config = cifar_resnet(20, width=2, num_labels=2)
    networks = StackedNetworks.initialize(config, [0, 1, 2])
    reference = networks.state_dict(0)
    layout = Layout.from_state_dict(reference, token_dim=19, batch_norm=batch_norm)
    tokens = layout.tokens(networks.tensors, batch_dims=1)
    spec = permutation_spec(config)
    moved = align_tokens(tokens, layout, spec, reference)
    assert torch.equal(moved[0], tokens[0])
    assert not torch.equal(moved[1], tokens[1])
    space = WeightSpace.fit(layout, tokens)
    distances = nearest_training_distance(space, tokens, moved, permutations=spec, reference=reference, realigned=1)
    assert (distances < 1e-6).all()


def test_agreement_and_error_overlap_against_loops():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (30,), generator=generator)
    first, second = (torch.randint(3, (n, 30), generator=generator) for n in (4, 5))
    second[0] = labels
    agreements, overlaps = agreement(first, second), error_overlap(first == labels, second == labels)
    assert agreements.shape == overlaps.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            assert agreements[i, j] == pytest.approx(sum(map(int, first[i] == second[j])) / 30)
            wrong = [{k for k in range(30) if p[k] != labels[k]} for p in (first[i], second[j])]
            assert overlaps[i, j] == pytest.approx(len(wrong[0] & wrong[1]) / len(wrong[0] | wrong[1]))
    assert (overlaps[:, 0] == 0).all()


def test_copies_overlap_fully_and_of_perfect_networks_there_is_no_overlap():
    correct = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) > 0.3
    assert error_overlap(correct, correct).diagonal().tolist() == [1, 1, 1]
    assert error_overlap(torch.ones(1, 5).bool(), torch.ones(1, 5).bool()).isnan().all()


def test_errors(space, layout, raw_tokens, trained):
    with pytest.raises(ValueError, match=r"expected points \[S, F\] and \[T, F\], got \[2, 3\] and \[2, 4\]"):
        rms_distances(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected at least two networks to measure distances between, got 1"):
        pairwise_distance(torch.zeros(1, 3))
    for settings in ({"reference": trained.state_dict(0)}, {"realigned": 2}):
        with pytest.raises(ValueError, match=r"alignment requires permutations: pass permutation_spec\(config\)"):
            nearest_training_distance(space, raw_tokens, raw_tokens, **settings)
    with pytest.raises(ValueError, match=r"expected raw tokens \[M, 15, 9\] .* got \[12, 15, 8\]"):
        WeightSpace.fit(layout, raw_tokens[..., 1:])
    with pytest.raises(ValueError, match="expected raw tokens"):
        space.points(raw_tokens[0])
    for function, values in ((agreement, torch.zeros(2, 3).long()), (error_overlap, torch.zeros(2, 3).bool())):
        with pytest.raises(ValueError, match=r"expected predictions \[S, n\] and \[T, n\] on the same images, got"):
            function(values, values[:, :2])
