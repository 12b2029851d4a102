"""The set transformer: what it may not depend on, what it can learn that sums cannot, and where it stops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_sane.core import Layout
from hf_sane.core._layer_kinds import LAYER_KINDS
from hf_sane.probing._runs import fold_of_runs
from hf_sane.probing._set_transformer import SetTransformerProbe, SetTransformerSettings
from hf_sane.probing._token_sets import TokenSets, describe_latents, summarize_tokens, token_places

SMALL = SetTransformerSettings(members=2, width=16, heads=2, epochs=10, batch_size=16, dropout=0.0, rate=1e-2)
SHAPES = {"conv.weight": (3, 2, 2, 2), "conv.bias": (3,), "fc.weight": (4, 3), "fc.bias": (4,)}


@pytest.fixture(scope="module")
def layout() -> Layout:
    """Two layers: three channels of two tokens each, and four of one."""
    return Layout.from_state_dict({name: torch.zeros(shape) for name, shape in SHAPES.items()}, token_dim=5)


def sets_of(values: torch.Tensor, layout: Layout) -> TokenSets:
    return TokenSets.of_layout(values, layout)


def test_places_are_layers_and_parts_of_channels_but_no_channels(layout):
    conv, linear = (LAYER_KINDS.index(kind) for kind in ("conv", "linear"))
    assert token_places(layout).tolist() == [[conv, 0, 0], [conv, 0, 1]] * 3 + [[linear, 1, 0]] * 4


def test_statistics_are_those_of_real_weights(layout):
    tokens = torch.randn(3, layout.num_tokens, 5, generator=torch.Generator().manual_seed(0))
    found = summarize_tokens(tokens, layout)
    checked = 0
    for token, mask in enumerate(layout.weight_mask):
        weights = tokens[:, token, mask].numpy()
        expected = [
            *(weights.mean(1), weights.std(1), np.log(np.sqrt(np.square(weights).mean(1)))),
            np.log(np.abs(weights)).mean(1),
            *np.quantile(weights, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], axis=1),
            weights[:, -1],
        ]
        np.testing.assert_allclose(found[:, token], np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)
        checked += 1
    assert checked == 10
    assert summarize_tokens(torch.zeros_like(tokens), layout).isfinite().all()
    whole = tokens[:, layout.weight_mask.all(dim=1)]
    latents = describe_latents(whole)
    assert torch.equal(latents[..., :5], whole)
    torch.testing.assert_close(latents[..., 5:], found[:, layout.weight_mask.all(dim=1), :-1])
    with pytest.raises(ValueError, match=r"expected tokens \[M, 10, 5\], got \[3, 9, 5\]"):
        summarize_tokens(tokens[:, 1:], layout)


@pytest.fixture(scope="module")
def problem(layout) -> tuple[TokenSets, torch.Tensor, list[str]]:
    """Networks whose first property is a difference of layers, which no sum over all tokens knows."""
    values = torch.randn(240, layout.num_tokens, 2, generator=torch.Generator().manual_seed(0))
    first, second = (values[:, part].mean(dim=1) for part in layout.token_slices)
    targets = torch.stack([first[:, 0] - second[:, 0], 100 + 5 * first[:, 1]], dim=1)
    return sets_of(values, layout), targets, [f"run {index // 3}" for index in range(240)]


@pytest.fixture(scope="module")
def probe(problem) -> SetTransformerProbe:
    sets, targets, runs = problem
    return SetTransformerProbe.fit_runs(sets, targets, runs=runs, settings=SMALL)


def test_it_learns_what_the_tokens_of_each_layer_hold(probe):
    assert all(r2 > 0.4 for r2 in probe.validation_r2)  # on runs that were left out
    assert all(1 <= found["epochs"] <= SMALL.epochs for found in probe.settings)


def test_the_order_of_channels_does_not_matter_but_layers_do(probe, problem, layout):
    sets, _, _ = problem
    order = torch.tensor([4, 5, 0, 1, 2, 3, 9, 6, 8, 7])  # channels trade places, with both of their tokens
    found = probe.predict(sets)
    torch.testing.assert_close(probe.predict(sets_of(sets.values[:, order], layout)), found, rtol=1e-4, atol=1e-4)
    other = torch.tensor([6, 1, 2, 3, 4, 5, 0, 7, 8, 9])  # tokens of two layers trade places
    assert not torch.allclose(probe.predict(sets_of(sets.values[:, other], layout)), found, atol=1e-2)


def test_padding_does_not_matter(probe, problem):
    sets, _, _ = problem
    longer = TokenSets(torch.randn(1, 13, 2), torch.zeros(1, 13, 3, dtype=torch.int64), torch.ones(1, 13).bool())
    padded = TokenSets.joined([sets, longer])[:-1]
    assert padded.values.shape[1] == 13
    assert not padded.mask[:, 10:].any()
    torch.testing.assert_close(probe.predict(padded), probe.predict(sets), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected networks whose tokens have equally many features, got \[2, 3\]"):
        TokenSets.joined([sets, TokenSets(torch.zeros(1, 13, 3), longer.places, longer.mask)])


def test_members_are_averaged_and_scored_on_the_runs_on_which_they_stopped(probe, problem):
    sets, targets, runs = problem
    folds = torch.from_numpy(fold_of_runs(runs, 2, seed=SMALL.seed))
    alone = [replace(probe, members=(member,)).predict(sets) for member in probe.members]
    assert len(alone) == 2
    torch.testing.assert_close(probe.predict(sets), torch.stack(alone).mean(dim=0))
    errors = torch.where((folds == 0)[:, None], *alone) - targets
    r2 = 1 - errors.square().sum(dim=0) / (targets - targets.mean(dim=0)).square().sum(dim=0)
    assert r2.tolist() == pytest.approx(probe.validation_r2, abs=1e-4)
    np.testing.assert_allclose(probe.margins, np.sort(errors.abs(), axis=0)[int(np.ceil(241 * 0.9)) - 1], rtol=1e-3)


def test_a_seed_gives_one_probe(problem):
    sets, targets, runs = problem
    few = replace(SMALL, width=4, epochs=1)
    one, again, other = (
        SetTransformerProbe.fit_runs(sets, targets, runs=runs, settings=replace(few, seed=seed)).predict(sets)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_folds_keep_runs_together_and_are_of_equal_size():
    runs = np.repeat([f"run {index}" for index in range(11)], 3)
    folds = fold_of_runs(runs, 4)
    assert [len(set(folds[runs == run])) for run in set(runs)] == [1] * 11
    assert sorted(np.bincount(folds) // 3) == [2, 3, 3, 3]
    assert not np.array_equal(folds, fold_of_runs(runs, 4, seed=1))
    with pytest.raises(ValueError, match="expected at least 12 training runs, some of which are left out in turn, go"):
        fold_of_runs(runs, 12)


def test_errors(layout, probe, problem):
    sets, targets, runs = problem
    with pytest.raises(ValueError, match="expected at least two members, which stop on different runs, got 1"):
        SetTransformerSettings(members=1)
    with pytest.raises(
        ValueError, match=r"expected features of tokens \[M, 10, F\] of this layout, got \[240, 9, 2\]"
    ):
        TokenSets.of_layout(sets.values[:, 1:], layout)
    with pytest.raises(
        ValueError, match=r"expected targets \[M\] or \[M, T\] of 240 networks, at least one, got \[239,"
    ):
        SetTransformerProbe.fit_runs(sets, targets[1:], runs=runs)
    with pytest.raises(ValueError, match="requires targets that vary, got a property with all targets equal"):
        SetTransformerProbe.fit_runs(sets, torch.ones(240), runs=runs)
    broken = TokenSets(sets.values.clone(), sets.places, sets.mask)
    broken.values[7, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"features or targets are not finite for networks \[7\]; leave these"):
        SetTransformerProbe.fit_runs(broken, targets, runs=runs)
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinite values; leave those"):
        probe.predict(broken)
    with pytest.raises(ValueError, match="the probe was fitted on tokens of 2 features, got 1; use the same features"):
        probe.predict(TokenSets(sets.values[..., :1], sets.places, sets.mask))
