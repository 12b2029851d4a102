"""Tensors that were rounded to few values, and tensors that only look like it."""

import pytest
import torch

from hf_sane.screening import _grids
from hf_sane.screening._grids import is_rounded


def rounded_to(steps, groups, is_symmetric=True):
    """Function that rounds a matrix, with one scale (and origin) for each of its groups."""

    def change(tensor):
        x = {
            "tensor": lambda: tensor.reshape(1, -1),
            "row": lambda: tensor,
            "column": lambda: tensor.T,
            "block": lambda: tensor.reshape(-1, 32),
        }[groups]()
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale = torch.maximum(high, -low) / (steps // 2) if is_symmetric else (high - low) / steps
        zero = torch.zeros_like(scale) if is_symmetric else (-low / scale).round()
        x = ((x / scale + zero).round().clamp(None if is_symmetric else 0, steps) - zero) * scale
        return (x.T if groups == "column" else x).reshape(tensor.shape)

    return change


LEVELS = torch.tensor([-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1])


def to_codes(tensor):
    """To 4 bits with uneven codes, per block."""
    x = tensor.reshape(-1, 32)
    scale = x.abs().amax(1, keepdim=True)
    return (LEVELS[((x / scale)[..., None] - LEVELS).abs().argmin(-1)] * scale).view(tensor.shape)


def to_floats(tensor):
    """To 8-bit floats with one scale per row."""
    scale = tensor.abs().amax(1, keepdim=True) / 448
    return (tensor / scale).to(torch.float8_e4m3fn).float() * scale


def weights(seed=3, rows=96, columns=64):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("groups", ["tensor", "row", "column", "block"])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantisation_is_recognised_whatever_shares_a_scale(bits, groups, is_symmetric):
    fine = weights()
    coarse = rounded_to(2**bits - 1, groups, is_symmetric)(fine)
    assert is_rounded(fine, coarse)
    assert not is_rounded(coarse, fine)
    assert is_rounded(fine, coarse.bfloat16())
    assert is_rounded(fine, coarse.half())


@pytest.mark.parametrize(
    "change",
    [
        *(rounded_to(steps, groups) for steps in (7, 15, 255) for groups in ("tensor", "row", "block")),
        to_codes,
        to_floats,
    ],
)
def test_every_single_value_is_rounded(change):
    fine = weights()
    coarse = change(fine)
    assert is_rounded(fine, coarse)
    row, column = 5, int(coarse[5].abs().argmax())
    for edit in (lambda x: 8 * x, lambda x: -x, lambda x: 0 * x):
        wrong = coarse.clone()
        wrong[row, column] = edit(wrong[row, column])
        assert not is_rounded(fine, wrong)
    for edit in (lambda x: 0 * x, lambda x: 2 * x, lambda x: x.flip(0), lambda x: 0 * x + x.mean()):
        wrong = coarse.clone()
        wrong[row] = edit(wrong[row])
        assert not is_rounded(fine, wrong)
    assert not is_rounded(fine, change(fine + 0.05 * weights(seed=4)))
    assert not is_rounded(fine, change(weights(seed=4)))


def test_a_short_vector_is_rounded_if_that_cannot_be_chance():
    fine = weights()[0]
    for size in (5, 10, 64):
        assert is_rounded(fine[:size], rounded_to(255, "tensor")(fine[:size]))
        assert not is_rounded(fine[:size], fine[:size] + 1e-3 * weights(seed=4)[0, :size])
    assert not is_rounded(fine[:2], rounded_to(255, "tensor")(fine[:2]))


def test_what_is_near_is_not_rounded():
    fine = weights()
    outlier = fine.clone()
    outlier[0, 0] = 1e5  # beside which all other values vanish
    near = outlier.clone()
    near[3, 3] += 0.05
    pruned = torch.where(fine.abs() > 0.2, fine, 0)
    for a, b in (
        (fine, fine + 0.01 * weights(seed=4)),
        (fine.bfloat16(), (fine + 0.01 * weights(seed=4)).bfloat16()),
        (fine.half(), (fine + 0.01 * weights(seed=4)).half()),
        (outlier, near),
        (fine, pruned),
        (fine, fine.bfloat16()),  # a cast
        (torch.ones(64), 1 + 1e-4 * weights()[0]),
        (1 + 1e-4 * weights()[0], torch.ones(64)),
        (weights()[0, :4], weights()[0, :4].round()),
    ):
        assert not is_rounded(a, b)


def test_large_tensors_are_told_from_their_first_groups_and_all_others(monkeypatch):
    monkeypatch.setattr(_grids, "AT_ONCE", 2**14)
    fine = weights(rows=80, columns=600)
    for groups in ("tensor", "row"):
        coarse = rounded_to(255, groups)(fine)
        assert is_rounded(fine, coarse)
        coarse[79, 500] *= -1
        assert not is_rounded(fine, coarse)
