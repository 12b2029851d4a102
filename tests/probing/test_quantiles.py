import numpy as np
import pytest
import torch

from hf_sane.probing._quantiles import quantiles

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 17, 100])
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_same_as_numpy(size, dim):
    shape = [3, 4, 5]
    shape[dim] = size
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.moveaxis(np.quantile(values.numpy(), LEVELS, axis=dim), 0, dim)
    np.testing.assert_allclose(quantiles(values, LEVELS, dim=dim).numpy(), expected, atol=1e-12)


def test_more_entries_than_torch_quantile_takes():
    values = torch.arange(2.0**24 + 3).flip(0)
    assert quantiles(values, [0.5], dim=0).item() == 2**23 + 1


@pytest.mark.parametrize("levels", [[], [-0.1], [0.5, 1.1]])
def test_levels_out_of_range(levels):
    with pytest.raises(ValueError, match=r"expected at least one quantile level, all in \[0, 1\], got"):
        quantiles(torch.ones(3), levels, dim=0)
