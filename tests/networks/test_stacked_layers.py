"""Stacked layers against torch's own, network by network: values and gradients in float64."""

import pytest
import torch
import torch.nn.functional as F

from hf_sane.networks._stacked_layers import pooled_convolution, stacked_dropout, stacked_linear


def naive(images, weight, bias, pool):
    """`max_pool2d(conv2d(...))` of each network; images `[M, C, H, W, B]`."""
    results = [
        F.max_pool2d(F.conv2d(x.permute(3, 0, 1, 2), w, b), pool).permute(1, 2, 3, 0)
        for x, w, b in zip(images, weight, bias, strict=True)
    ]
    return torch.stack(results)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("channels", "outputs", "size"), [(1, 4, 11), (3, 2, 9), (6, 5, 8)])
def test_convolution_and_pooling_as_torch(channels, outputs, size, kernel_size, pool):
    images, weight = draw(3, channels, size, size, 7), draw(3, outputs, channels, kernel_size, kernel_size, seed=1)
    bias = draw(3, outputs, seed=2)
    mine, theirs = pooled_convolution(images, weight, bias, pool), naive(images, weight, bias, pool)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(mine)
    for ours, reference in zip(
        torch.autograd.grad(mine, (images, weight, bias), gradient),
        torch.autograd.grad(theirs, (images, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_of_equal_values_the_first_gets_the_gradient():
    images = torch.ones(1, 1, 4, 4, 1, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    (mine,) = torch.autograd.grad(pooled_convolution(images, weight, bias, 2).sum(), images)
    (theirs,) = torch.autograd.grad(naive(images, weight, bias, 2).sum(), images)
    assert torch.equal(mine, theirs)
    assert mine.sum() == 4


def test_images_shared_by_all_networks():
    images, weight, bias = draw(1, 2, 6, 6, 5), draw(3, 4, 2, 3, 3, seed=1), draw(3, 4, seed=2)
    shared = pooled_convolution(images, weight, bias, 2)
    torch.testing.assert_close(shared, naive(images.expand(3, -1, -1, -1, -1), weight, bias, 2))


def test_a_view_of_a_flat_matrix_serves_as_weight():
    """Training keeps all parameters of a network in one row."""
    flat = draw(3, 60)
    weight, bias = flat[:, :54].view(3, 3, 2, 3, 3), flat[:, 54:57]
    images = draw(3, 2, 6, 6, 4, seed=1)
    torch.testing.assert_close(pooled_convolution(images, weight, bias, 1), naive(images, weight, bias, 1))


@pytest.mark.parametrize("shared", [False, True])
def test_linear_as_torch(shared):
    values, weight, bias = draw(1 if shared else 3, 5, 7), draw(3, 4, 5, seed=1), draw(3, 4, seed=2)
    expected = torch.stack([F.linear(values[0 if shared else m].T, weight[m], bias[m]).T for m in range(3)])
    torch.testing.assert_close(stacked_linear(values, weight, bias), expected)


def test_dropout_keeps_the_mean_and_drops_at_each_networks_rate():
    values = torch.ones(3, 50, 400)
    rates = torch.tensor([0.0, 0.2, 0.7])
    dropped = stacked_dropout(values, rates, torch.Generator().manual_seed(0))
    assert torch.equal(dropped[0], values[0])
    torch.testing.assert_close((dropped == 0).float().mean(dim=(1, 2)), rates, atol=0.01, rtol=0)
    torch.testing.assert_close(dropped.mean(dim=(1, 2)), torch.ones(3), atol=0.03, rtol=0)
