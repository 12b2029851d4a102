import pytest
import torch

from hf_sane.core._augmentation import erase_tokens, multiplicative_noise, random_span_mask, random_token_mask


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


@pytest.mark.parametrize("span_size", [0, 1, 4, 9, 12])
def test_spans_are_contiguous_of_the_given_size_within_real_tokens(span_size):
    lengths = torch.tensor([9, 5, 1, 0]).repeat(200)
    real = torch.arange(9) < lengths.unsqueeze(1)
    chosen = random_span_mask((800, 9), span_size=span_size, attention_mask=real, generator=generator())
    assert torch.equal(chosen.sum(1), lengths.clamp_max(span_size))
    changes = (chosen[:, 1:] != chosen[:, :-1]).sum(1) + chosen[:, 0].long() + chosen[:, -1].long()
    assert (changes[chosen.any(1)] == 2).all()
    assert not (chosen & ~real).any()


def test_spans_start_everywhere_alike():
    chosen = random_span_mask((20_000, 6), span_size=3, generator=generator())
    starts = chosen.long().argmax(1).bincount(minlength=6)
    assert starts[4:].tolist() == [0, 0]
    assert (starts[:4] > 4700).all()


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
    with pytest.raises(ValueError, match="span_size must not be negative, got -1"):
        random_span_mask((2, 3), span_size=-1)
    with pytest.raises(ValueError, match=r"erased must be bool \[2, 3\], got torch.int64 \[2, 3\]"):
        erase_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"erased must be bool \[2, 3\], got torch.bool \[3\]"):
        erase_tokens(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.bool))
