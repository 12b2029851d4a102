import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import KernelDensity

from hf_sane.core import _kde as kde
from hf_sane.core._kde import bandwidth_by_rule, sample_latents

MODES = ["joint", "token", "scalar"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def far_anchors(num_anchors: int, num_tokens: int, latent_dim: int) -> torch.Tensor:
    """Anchor `a` is 100 a everywhere, so a sample tells which anchor each of its coordinates is from."""
    return (100.0 * torch.arange(num_anchors)).view(-1, 1, 1).expand(num_anchors, num_tokens, latent_dim).clone()


def picks(samples: torch.Tensor) -> torch.Tensor:
    return (samples / 100).round().long()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("num_anchors", "num_tokens", "latent_dim"), [(1, 1, 1), (3, 7, 4), (5, 300, 16)])
def test_shape_dtype_and_arguments_untouched(mode, dtype, num_anchors, num_tokens, latent_dim):
    anchors = torch.randn(num_anchors, num_tokens, latent_dim, generator=generator()).to(dtype)
    before = anchors.clone()
    samples = sample_latents(anchors, 9, bandwidth=0.3, mode=mode, generator=generator(1))
    assert samples.shape == (9, num_tokens, latent_dim)
    assert samples.dtype == dtype
    assert samples.isfinite().all()
    assert torch.equal(anchors, before)


@pytest.mark.parametrize("mode", MODES)
def test_bandwidth_zero_gives_anchor_coordinates_exactly(mode):
    anchors = torch.randn(4, 6, 3, generator=generator())
    samples = sample_latents(anchors, 50, bandwidth=0, mode=mode, generator=generator(1))
    assert (samples.unsqueeze(1) == anchors).any(dim=1).all()
    whole = (samples.flatten(1).unsqueeze(1) == anchors.flatten(1)).all(dim=2).any(dim=1)
    assert whole.all() == (mode == "joint")


def test_joint_takes_one_anchor_for_all_tokens():
    chosen = picks(sample_latents(far_anchors(5, 8, 3), 200, bandwidth=1.0, mode="joint", generator=generator()))
    assert (chosen == chosen[:, :1, :1]).all()
    assert chosen.unique().tolist() == [0, 1, 2, 3, 4]


def test_token_takes_one_anchor_per_token_and_different_ones_for_different_tokens():
    chosen = picks(sample_latents(far_anchors(5, 8, 3), 200, bandwidth=1.0, mode="token", generator=generator()))
    assert (chosen == chosen[:, :, :1]).all()
    assert not (chosen == chosen[:, :1]).all(dim=(1, 2)).any()


def test_scalar_takes_anchors_coordinate_by_coordinate():
    chosen = picks(sample_latents(far_anchors(5, 8, 3), 200, bandwidth=1.0, mode="scalar", generator=generator()))
    assert not (chosen == chosen[:, :, :1]).all(dim=(1, 2)).any()


@pytest.mark.parametrize(("mode", "draws"), [("joint", 1), ("token", 6), ("scalar", 24)])
def test_draws_are_independent_and_even(mode, draws):
    num_samples, num_anchors = 6_000, 3
    chosen = picks(
        sample_latents(far_anchors(num_anchors, 6, 4), num_samples, bandwidth=1.0, mode=mode, generator=generator())
    )
    columns = {1: chosen[:, 0, :1], 6: chosen[:, :, 0], 24: chosen.flatten(1)}[draws]
    for column in columns.T:
        assert stats.chisquare(np.bincount(column.numpy(), minlength=num_anchors)).pvalue > 1e-5
    pairs = list(itertools.pairwise(columns.T))
    assert len(pairs) == draws - 1
    for first, second in pairs:
        table = np.zeros((num_anchors, num_anchors))
        np.add.at(table, (first.numpy(), second.numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_samples", [1, 3, 40])
def test_noise_is_normal_and_not_repeated(mode, num_samples):
    num_tokens = 4_800 // num_samples
    noise = sample_latents(
        torch.zeros(3, num_tokens, 16), num_samples, bandwidth=2.0, mode=mode, generator=generator()
    )
    noise = noise.flatten() / 2
    assert len(noise) >= 70_000
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-4
    assert len(noise.unique()) > 0.99 * len(noise)  # a repeated block would halve it


@pytest.mark.parametrize("mode", MODES)
def test_moments_of_the_mixture(mode):
    anchors = torch.randn(6, 3, 2, generator=generator(), dtype=torch.float64)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    samples = sample_latents(anchors, 40_000, bandwidth=scale, mode=mode, generator=generator(1))
    variance = anchors.var(dim=0, unbiased=False) + scale**2
    error = variance.sqrt() / 40_000**0.5
    assert ((samples.mean(dim=0) - anchors.mean(dim=0)).abs() < 5 * error).all()
    torch.testing.assert_close(samples.var(dim=0), variance, rtol=0.05, atol=0)
    joint = torch.cov(samples.flatten(1).T)
    expected = torch.cov(anchors.flatten(1).T, correction=0)
    group = {"joint": torch.zeros(6), "token": torch.arange(6) // 2, "scalar": torch.arange(6)}[mode]
    expected = torch.where(group[:, None] == group, expected, 0) + torch.diag(scale.repeat(3) ** 2)
    torch.testing.assert_close(joint, expected, rtol=0, atol=0.12)


@pytest.mark.parametrize("mode", ["joint", "token"])
def test_same_density_as_scikit_learn(mode):
    anchors = torch.randn(5, 4, 3, generator=generator(), dtype=torch.float64)
    samples = sample_latents(anchors, 4_000, bandwidth=0.4, mode=mode, generator=generator(1))
    mine = samples.flatten(1) if mode == "joint" else samples[:, 2]
    centres = anchors.flatten(1) if mode == "joint" else anchors[:, 2]
    reference = KernelDensity(bandwidth=0.4).fit(centres.numpy())
    theirs = reference.sample(4_000, random_state=0)
    scores = reference.score_samples(mine.numpy()), reference.score_samples(theirs)
    assert stats.ks_2samp(*scores).pvalue > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_same_generator_state_same_samples_whatever_the_threads(mode):
    anchors = torch.randn(3, 1_500, 16, generator=generator())
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(sample_latents(anchors, 64, bandwidth=0.1, mode=mode, generator=generator(5)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], sample_latents(anchors, 64, bandwidth=0.1, mode=mode, generator=generator(6)))


def test_generator_advances_and_the_global_one_serves_when_none_is_given():
    anchors, source = torch.randn(3, 4, 2), generator()
    first, second = (sample_latents(anchors, 2, bandwidth=1.0, generator=source) for _ in "ab")
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    third = sample_latents(anchors, 2, bandwidth=1.0)
    torch.manual_seed(3)
    assert torch.equal(third, sample_latents(anchors, 2, bandwidth=1.0))


@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_and_anchors_with_gradient(mode):
    anchors = torch.randn(3, 900, 32, requires_grad=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            assert sample_latents(anchors, 40, bandwidth=1.0, mode=mode).is_inference()
        assert not sample_latents(anchors, 40, bandwidth=1.0, mode=mode).requires_grad
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2,), (5, 1), (5, 2), (1,), ()])
def test_bandwidth_tensor_scales_each_coordinate(mode, shape):
    scale = torch.rand(shape, generator=generator()) + 0.5
    scaled = sample_latents(torch.zeros(1, 5, 2), 30, bandwidth=scale, mode=mode, generator=generator(1))
    plain = sample_latents(torch.zeros(1, 5, 2), 30, bandwidth=1.0, mode=mode, generator=generator(1))
    torch.testing.assert_close(scaled, plain * scale)


@pytest.mark.parametrize("mode", MODES)
def test_anchor_weights(mode):
    weights = torch.tensor([0.0, 3.0, 1.0])
    samples = sample_latents(
        far_anchors(3, 10, 4), 2_000, bandwidth=0.1, mode=mode, anchor_weights=weights, generator=generator()
    )
    counts = torch.bincount(picks(samples).flatten(), minlength=3)
    assert counts[0] == 0
    assert counts[1] / counts.sum() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("rule", ["scott", "silverman"])
@pytest.mark.parametrize(("mode", "dimension"), [("joint", 6), ("token", 2), ("scalar", 1)])
def test_bandwidth_rules_are_those_of_scipy(rule, mode, dimension):
    anchors = torch.randn(30, 3, 2, generator=generator(), dtype=torch.float64)
    reference = stats.gaussian_kde(np.random.default_rng(0).normal(size=(dimension, 30)), bw_method=rule)
    expected = reference.factor * anchors.std(dim=0)
    torch.testing.assert_close(bandwidth_by_rule(anchors, rule, mode=mode), expected)
    by_name = sample_latents(anchors, 4, bandwidth=rule, mode=mode, generator=generator())
    by_tensor = sample_latents(anchors, 4, bandwidth=expected, mode=mode, generator=generator())
    torch.testing.assert_close(by_name, by_tensor)


def test_every_coordinate_is_filled_at_block_borders(monkeypatch):
    monkeypatch.setattr(kde, "CPU_STEP_SCALARS", 48)
    monkeypatch.setattr(kde, "STEPS_PER_BLOCK", 2)
    tried = 0
    for mode in MODES:
        for num_samples, num_tokens in itertools.product((1, 2, 5), (1, 3, 17, 40)):
            tokens = torch.arange(1.0, num_tokens + 1).view(1, -1, 1).expand(1, num_tokens, 4)
            samples = sample_latents(tokens, num_samples, bandwidth=0.0, mode=mode, generator=generator())
            assert torch.equal(samples, tokens.expand(num_samples, -1, -1))
            tried += 1
    assert tried == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchors": torch.zeros(3, 4)}, r"expected floating-point anchors \[A, N, Z\], got torch.float32 \[3, 4\]"),
        ({"anchors": torch.zeros(3, 4, 2).long()}, r"got torch.int64"),
        ({"anchors": torch.zeros(0, 4, 2)}, r"got torch.float32 \[0, 4, 2\]"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"mode": "tokens"}, "expected mode 'joint', 'token' or 'scalar', got 'tokens'"),
        ({"bandwidth": -1.0}, "bandwidth must be a finite number >= 0, got -1.0"),
        ({"bandwidth": float("nan")}, "bandwidth must be a finite number"),
        ({"bandwidth": torch.ones(3)}, r"bandwidth must broadcast to \[tokens, latent_dim\] = \[4, 2\], got \[3\]"),
        ({"bandwidth": torch.ones(5, 4, 2)}, r"got \[5, 4, 2\]"),
        ({"bandwidth": torch.tensor([1.0, -1.0])}, "bandwidth must be finite and >= 0 everywhere"),
        ({"bandwidth": "normal"}, "expected a bandwidth rule 'scott' or 'silverman', got 'normal'"),
        (
            {"bandwidth": "scott", "anchors": torch.zeros(1, 4, 2)},
            "requires at least 2 anchors to measure their spread, got 1",
        ),
        ({"anchor_weights": torch.ones(2)}, r"anchor_weights must be 3 finite numbers >= 0 .* got \[2\]"),
        ({"anchor_weights": torch.zeros(3)}, "with a positive sum"),
        ({"anchor_weights": torch.tensor([1.0, -1.0, 1.0])}, "finite numbers >= 0"),
    ],
)
def test_errors(arguments, message):
    settings = {"anchors": torch.zeros(3, 4, 2), "num_samples": 2, "bandwidth": 0.1, **arguments}
    with pytest.raises(ValueError, match=message):
        sample_latents(settings.pop("anchors"), settings.pop("num_samples"), **settings)


def test_rule_refuses_unknown_modes():
    with pytest.raises(ValueError, match="expected mode 'joint', 'token' or 'scalar', got 'model'"):
        bandwidth_by_rule(torch.zeros(3, 4, 2), "scott", mode="model")
