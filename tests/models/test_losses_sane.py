"""The losses against loops written from their equations."""

import math

import pytest
import torch

from hf_sane.models.losses_sane import MIN_SPREAD, masked_reconstruction_loss, masked_spread, nt_xent_loss


def example(seed=0, batch=3, window=4, token_dim=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, window, token_dim)
    decoded, target = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[0, 0] = False
    mask[0, 1] = torch.tensor([True] + [False] * (token_dim - 1))  # a token with one real weight
    return decoded, target * mask, mask


def entries(mask):
    return [tuple(index) for index in mask.nonzero().tolist()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("denominator", ["weights", "all"])
def test_reconstruction_loss_is_the_mean_square_over_real_weights(seed, denominator):
    decoded, target, mask = example(seed)
    real = entries(mask)
    assert real
    total = sum((decoded[i].item() - target[i].item()) ** 2 for i in real)
    expected = total / (len(real) if denominator == "weights" else mask.numel())
    loss = masked_reconstruction_loss(decoded, target, mask, denominator=denominator)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_all_entries_as_denominator_is_the_released_formula():
    decoded, target, mask = example()
    loss = masked_reconstruction_loss(decoded, target, mask, denominator="all")
    assert torch.allclose(loss, torch.nn.functional.mse_loss(decoded * mask, target))


def naive_spread(target, indices):
    values = [target[i].item() for i in indices]
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


@pytest.mark.parametrize("per_token", [False, True])
def test_masked_normalisation_maps_target_and_output_alike(per_token):
    decoded, target, mask = example(1)
    real = entries(mask)
    batch_statistics = naive_spread(target, real)
    total = 0.0
    for i in real:
        token = [j for j in real if j[:2] == i[:2]]
        mean, spread = naive_spread(target, token) if per_token and len(token) > 1 else batch_statistics
        first, second = ((x[i].item() - mean) / (spread + MIN_SPREAD) for x in (decoded, target))
        total += (first - second) ** 2
    kind = "masked_per_token" if per_token else "masked"
    loss = masked_reconstruction_loss(decoded, target, mask, normalization=kind)
    assert loss.item() == pytest.approx(total / len(real), rel=1e-4)


def test_masked_normalisation_does_not_see_the_scale_of_the_zoo_and_the_plain_loss_does():
    decoded, target, mask = example(2)
    normal, plain = (
        [masked_reconstruction_loss(decoded * s, target * s, mask, normalization=kind).item() for s in (1.0, 50.0)]
        for kind in ("masked", "none")
    )
    assert normal[0] == pytest.approx(normal[1], rel=1e-3)
    assert plain[1] == pytest.approx(2500 * plain[0], rel=1e-4)


def test_spread_of_a_single_weight_is_that_of_the_batch():
    _, target, mask = example(3)
    spread = masked_spread(target, mask, per_token=True)
    assert spread.shape == (3, 4, 1)
    assert spread[0, 1, 0] == masked_spread(target, mask, per_token=False)
    assert (spread > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_padding_has_no_influence_and_no_gradient(dtype):
    decoded, target, mask = example(dtype=dtype)
    loss = masked_reconstruction_loss(decoded, target, mask)
    polluted = torch.where(mask, decoded, torch.full_like(decoded, float("inf"))).requires_grad_()
    same = masked_reconstruction_loss(polluted, target, mask)
    same.backward()
    assert same.dtype == torch.float32
    assert same == loss
    assert polluted.grad[~mask].abs().sum() == 0
    assert polluted.grad[mask].abs().sum() > 0


def test_a_window_of_padding_costs_nothing():
    decoded, target, mask = example()
    for normalization in ("none", "masked", "masked_per_token"):
        loss = masked_reconstruction_loss(decoded, target, torch.zeros_like(mask), normalization=normalization)
        assert loss == 0


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_against_its_definition(size, temperature):
    generator = torch.Generator().manual_seed(size)
    first, second = torch.randn(2, size, 7, generator=generator, dtype=torch.float64)
    views = [*first, *second]
    total = 0.0
    for i in range(2 * size):
        scores = [
            math.exp(torch.nn.functional.cosine_similarity(views[i], views[j], dim=0).item() / temperature)
            for j in range(2 * size)
        ]
        partner = (i + size) % (2 * size)
        total -= math.log(scores[partner] / (sum(scores) - scores[i]))
    loss = nt_xent_loss(first, second, temperature=temperature)
    assert loss.item() == pytest.approx(total / (2 * size), rel=1e-5, abs=1e-6)


def test_nt_xent_prefers_matching_views():
    views = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    assert nt_xent_loss(views, views) < nt_xent_loss(views, views.roll(1, 0))
    order = torch.randperm(8)
    assert torch.allclose(nt_xent_loss(views, views * 3), nt_xent_loss(views[order], views[order]), atol=1e-5)


def test_nt_xent_survives_dead_projections():
    dead = torch.zeros(4, 6, requires_grad=True)
    loss = nt_xent_loss(dead, torch.randn(4, 6))
    loss.backward()
    assert loss.isfinite()
    assert dead.grad.isfinite().all()


def test_nt_xent_refuses_views_of_different_shape():
    with pytest.raises(ValueError, match=r"two views \[B, P\] of the same shape, got \(3, 4\) and \(2, 4\)"):
        nt_xent_loss(torch.zeros(3, 4), torch.zeros(2, 4))
