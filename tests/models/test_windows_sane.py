"""Halo windows: every length, every window, each token kept exactly once."""

import pytest
import torch

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.models.windows_sane import halo_spans, map_windows, window_index

SIZES = [(1, 0), (2, 0), (3, 1), (8, 0), (8, 1), (8, 3), (16, 0), (16, 4), (16, 7), (40, 19), (70, 8), (100, 10)]


@pytest.mark.parametrize(("window_size", "halo_size"), SIZES)
@pytest.mark.parametrize("length", range(71))
def test_every_token_is_kept_once_with_its_context(length, window_size, halo_size):
    spans = list(halo_spans(length, window_size, halo_size))
    sequence = torch.arange(length)
    kept = [sequence[context][keep] for context, keep in spans]
    assert torch.equal(torch.cat(kept) if kept else sequence[:0], sequence)
    assert bool(spans) == (length > 0)
    for context, keep in spans:
        assert context.stop - context.start == min(window_size, length)
        assert 0 <= context.start <= context.stop <= length
        assert keep.start >= min(halo_size, context.start)  # the left halo, unless the sequence begins
        assert context.stop == length or context.stop - context.start - keep.stop >= halo_size


@pytest.mark.parametrize(("window_size", "halo_size"), SIZES)
@pytest.mark.parametrize("length", [1, 5, 16, 17, 39, 70])
def test_window_index_is_the_same_spans(length, window_size, halo_size):
    index, keep = window_index(length, window_size, halo_size)
    spans = list(halo_spans(length, window_size, halo_size))
    assert len(index) == len(spans) > 0
    for row, (context, kept) in enumerate(spans):
        assert index[row].tolist() == list(range(context.start, context.stop))
        assert keep[row].nonzero().flatten().tolist() == list(range(kept.start, kept.stop))
    assert index[keep].tolist() == list(range(length))


def test_no_more_windows_than_needed():
    assert [(c.start, k.start, k.stop) for c, k in halo_spans(16, 16, 4)] == [(0, 0, 16)]
    assert [(c.start, k.start, k.stop) for c, k in halo_spans(17, 16, 4)] == [(0, 0, 12), (1, 11, 16)]
    assert len(list(halo_spans(160, 16, 0))) == 10


@pytest.mark.parametrize(("length", "window_size", "halo_size"), [(-1, 4, 0), (10, 0, 0), (10, 4, 2), (10, 4, -1)])
def test_impossible_sizes_raise(length, window_size, halo_size):
    with pytest.raises(
        ValueError, match=r"need length >= 0, halo_size >= 0 and window_size > 2 \* halo_size.*smaller halo"
    ):
        list(halo_spans(length, window_size, halo_size))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
@pytest.mark.parametrize("length", [1, 9, 10, 23])
@pytest.mark.parametrize("per_model_positions", [False, True])
def test_map_windows_puts_every_token_in_its_place(batch_size, length, per_model_positions):
    features = torch.randn(3, length, 4)
    positions = torch.arange(length)[:, None].expand(length, 3)
    if per_model_positions:
        positions = positions + 100 * torch.arange(3)[:, None, None]
    calls = []

    def double(window, where):
        calls.append(len(window))
        assert window.shape[1] == min(10, length)
        return torch.cat([2 * window, where[..., :1].float()], dim=-1)

    mapped = map_windows(double, features, positions, window_size=10, halo_size=2, batch_size=batch_size)
    assert torch.equal(mapped[..., :4], 2 * features)
    assert torch.equal(mapped[..., 4], positions[..., 0].expand(3, length).float())
    assert max(calls) <= batch_size
    assert sum(calls) == 3 * len(list(halo_spans(length, 10, 2)))


@pytest.mark.parametrize(
    ("features", "positions", "batch_size"),
    [
        ((3, 4), (4, 3), 1),
        ((2, 4, 5), (5, 3), 1),
        ((2, 4, 5), (3, 4, 3), 1),
        ((2, 4, 5), (4, 3), 0),
        ((0, 4, 5), (4, 3), 1),
    ],
)
def test_map_windows_refuses_what_does_not_fit(features, positions, batch_size):
    with pytest.raises(ValueError, match=r"expected sequences \[M, N, \*\], positions .* the same length"):
        map_windows(
            lambda window, _: window,
            torch.zeros(features),
            torch.zeros(positions, dtype=torch.int64),
            window_size=4,
            halo_size=0,
            batch_size=batch_size,
        )


@pytest.mark.parametrize("halo_size", [0, 3, 5])
@pytest.mark.parametrize("length", [*range(1, 30), 60, 61])
def test_encoding_and_decoding_any_length_in_any_batch_is_one_window_after_the_other(length, halo_size):
    torch.manual_seed(length)
    config = SANEConfig(
        token_dim=6, hidden_size=8, latent_dim=4, num_hidden_layers=1, num_attention_heads=2, window_size=12,
        initialization="paper", initializer_range=0.5,
    )  # fmt: skip
    model = SANEModel(config).eval()
    tokens, positions = torch.randn(2, length, 6), torch.arange(length)[:, None].expand(length, 3) % 50
    both = positions.expand(2, length, 3)

    def one_by_one(method, features):
        parts = [
            method(features[:, context], both[:, context])[:, keep]
            for context, keep in halo_spans(length, 12, halo_size)
        ]
        return torch.cat(parts, dim=1).detach()

    latents = one_by_one(model.encode, tokens)
    decoded = one_by_one(model.decode, latents)
    for batch_size in (1, 2, 5, 64):
        options = {"halo_size": halo_size, "batch_size": batch_size}
        found = model.encode_sequences(tokens, positions, **options)
        torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.decode_sequences(found, positions, **options), decoded, rtol=1e-5, atol=1e-5)
    if length > 12:  # a window of another size would give something else
        whole = model.encode_sequences(tokens, positions, window_size=length)
        assert not torch.allclose(whole, latents, atol=1e-3)
