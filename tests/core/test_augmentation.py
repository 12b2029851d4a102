import pytest
import torch

from hf_sane.core._augmentation import erase_tokens, multiplicative_noise, random_token_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7)])
def test_noise_follows_its_equation(shape, dtype):
    tokens, mask = torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.7
    noise = torch.randn(shape, generator=generator(), dtype=dtype)
    expected = torch.where(mask, tokens * (1 + 0.1 * noise), tokens)
    out = multiplicative_noise(tokens, mask, std=0.1, generator=generator())
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    assert torch.equal(out[~mask], tokens[~mask])


def test_noise_has_the_given_spread_and_mean_one():
    tokens = torch.full((1000, 200), 2.0)
    ratio = multiplicative_noise(tokens, torch.ones_like(tokens, dtype=torch.bool), std=0.1, generator=generator()) / 2
    assert ratio.mean().item() == pytest.approx(1.0, abs=1e-3)
    assert ratio.std().item() == pytest.approx(0.1, rel=1e-2)


def test_noise_is_repeatable_and_none_at_zero():
    tokens, mask = torch.randn(4, 6), torch.ones(4, 6, dtype=torch.bool)
    first, second, other = (multiplicative_noise(tokens, mask, std=0.1, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(multiplicative_noise(tokens, mask, std=0.0), tokens)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_noise_refuses_a_spread_that_is_none(std):
    with pytest.raises(ValueError, match="std must be a finite number >= 0"):
        multiplicative_noise(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), std=std)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_tokens_are_chosen_with_the_given_probability(probability):
    real = torch.arange(100).expand(500, 100) < 60
    chosen = random_token_mask((500, 100), probability=probability, attention_mask=real, generator=generator())
    assert not chosen[~real].any()
    assert chosen[real].float().mean().item() == pytest.approx(probability, abs=0.01)
    everywhere = random_token_mask((500, 100), probability=probability, generator=generator())
    assert torch.equal(everywhere & real, chosen)


def test_erasing_sets_whole_tokens_to_zero():
    tokens = torch.randn(3, 5, 4)
    erased = random_token_mask((3, 5), probability=0.5, generator=generator())
    assert 0 < erased.sum() < 15
    out = erase_tokens(tokens, erased)
    for i in range(3):
        for j in range(5):
            assert torch.equal(out[i, j], torch.zeros(4) if erased[i, j] else tokens[i, j])


def test_bad_input_raises():
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 1.5"):
        random_token_mask((2, 3), probability=1.5)
    with pytest.raises(ValueError, match=r"erased must be bool \[2, 3\], got torch.int64 \[2, 3\]"):
        erase_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"erased must be bool \[2, 3\], got torch.bool \[3\]"):
        erase_tokens(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.bool))
