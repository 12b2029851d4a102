"""Refinement of sampled networks: a search of latents by gradient or by scores, against what it should do by hand."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_sane.core._layout import Layout
from hf_sane.sampling._generation import Density, NetworkCodec
from hf_sane.sampling._refinement import Refinement, refine_by_gradient, refine_by_scores
from hf_sane.sampling._score_searches import CovarianceSearch
from hf_sane.sampling._selection import Judge, SelectedNetworks, keep_best, subsample
from hf_sane.tokenization._feature_extraction_sane import SANEFeatureExtractor
from hf_sane.tokenization._linear_code import fit_linear_code


@pytest.fixture(scope="module")
def judge(data) -> Judge:
    return Judge.of_images(*data.split("validation"))


@pytest.fixture(scope="module")
def sampled(codec, raw_tokens, judge) -> SelectedNetworks:
    """Networks far from the anchors, which can be better."""
    anchors, generator = codec.encode(raw_tokens), torch.Generator().manual_seed(0)
    options = {"density": Density(2.0), "num_candidates": 6, "num_samples": 4, "generator": generator}
    return subsample(codec, anchors, judge, **options)


@pytest.fixture(scope="module")
def scale(codec, raw_tokens):
    return codec.encode(raw_tokens).std(dim=0)


def losses(networks, data, split="train"):
    return networks.evaluate(*data.split(split))[0]


def indifferent(networks):
    """A judge that prefers whatever is judged last."""
    count = networks.num_models
    return torch.zeros(count), torch.full((count,), 2.0)


def test_one_step_goes_down_the_gradient_of_each_network(codec, sampled, data, scale):
    images, labels = data.split("train")
    settings = Refinement(steps=1, rate=0.01, batch_size=len(labels))
    found = refine_by_gradient(codec, sampled, Judge(indifferent), images, labels, scale=scale, settings=settings)
    for index, latents in enumerate(sampled.sources):
        moved = torch.zeros_like(latents).requires_grad_()
        tokens = codec.decode_tokens((latents + scale * moved)[None], with_gradient=True)
        network = codec.networks(tokens.detach()).model(0)
        state = codec.layout.state_dict(tokens)
        logits = torch.func.functional_call(network, {name: part[0] for name, part in state.items()}, images).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        clear = moved.grad.abs() > 1e-5  # where rounding cannot turn the sign
        assert clear.float().mean() > 0.5
        step = ((found.sources[index] - latents) / scale)[clear]
        torch.testing.assert_close(step, -0.01 * moved.grad.sign()[clear], rtol=1e-2, atol=1e-5)


def test_a_search_by_gradient_helps_and_costs_no_network_its_score(codec, sampled, judge, data, scale):
    search = {"scale": scale, "settings": Refinement(steps=23, rate=0.1, batch_size=50)}
    found = refine_by_gradient(codec, sampled, judge, *data.split("train"), **search)
    assert found.validation_score.tolist() == sorted(found.validation_score.tolist(), reverse=True)
    assert (found.validation_score >= sampled.validation_score.sort(descending=True).values).all()
    assert found.mean_score > sampled.mean_score + 0.05
    assert losses(found.networks, data).mean() < losses(sampled.networks, data).mean()
    torch.testing.assert_close(judge.measure(found.networks)[1], found.validation_score)
    decoded = codec.decode(found.sources)
    for name, tensor in decoded.tensors.items():
        torch.testing.assert_close(found.networks.tensors[name], tensor)
    assert not found.sources.requires_grad
    again = refine_by_gradient(codec, sampled, judge, *data.split("train"), **search)
    assert torch.equal(found.sources, again.sources)


def test_a_search_that_only_hurts_returns_its_start(codec, sampled, judge, data, scale):
    images, labels = data.split("train")
    settings = Refinement(steps=5, rate=50.0)
    found = refine_by_gradient(codec, sampled, judge, images, (labels + 1) % 3, scale=scale, settings=settings)
    assert torch.equal(found.sources, sampled.sources)
    assert torch.equal(found.validation_score, sampled.validation_score)


def test_the_prior_holds_latents_back(codec, sampled, data, scale):
    def distance(prior):
        settings = Refinement(steps=30, rate=0.05, prior=prior)
        found = refine_by_gradient(
            codec, sampled, Judge(indifferent), *data.split("train"), scale=scale, settings=settings
        )
        return ((found.sources - sampled.sources) / scale).square().mean().item()

    assert distance(1000.0) < 0.2 * distance(0.0)


def test_a_network_that_is_not_finite_stops_no_other(codec, sampled, judge, data, scale):
    sources = sampled.sources.clone()
    sources[3] = torch.nan
    score, loss = sampled.validation_score.clone(), sampled.validation_loss.clone()
    score[3], loss[3] = -torch.inf, torch.inf
    broken = replace(sampled, sources=sources, validation_score=score, validation_loss=loss)
    settings = Refinement(steps=5)
    found = refine_by_gradient(codec, broken, judge, *data.split("train"), scale=scale, settings=settings)
    alone = refine_by_gradient(codec, sampled, judge, *data.split("train"), scale=scale, settings=settings)
    assert found.validation_score[:3].tolist() >= sorted(score[:3].tolist(), reverse=True)
    assert alone.sources.isfinite().all()
    assert found.sources[:3].isfinite().all()


@pytest.mark.parametrize("method", ["cross_entropy", "cma"])
def test_scores_alone_are_enough(codec, sampled, judge, scale, method):
    judged = []

    def measure(networks):
        judged.append(networks.num_models)
        return judge.measure(networks)

    search = {"scale": scale, "settings": Refinement(steps=4, num_candidates=10, seed=3), "method": method}
    found = refine_by_scores(codec, sampled, Judge(measure), **search)
    assert judged == [10] * 16  # 4 networks in 4 rounds
    assert found.mean_score > sampled.mean_score + 0.05
    assert (found.validation_score >= sampled.validation_score.sort(descending=True).values).all()
    torch.testing.assert_close(judge.measure(codec.decode(found.sources))[1], found.validation_score)
    assert torch.equal(refine_by_scores(codec, sampled, judge, **search).sources, found.sources)


@pytest.mark.parametrize("size", [6, 600])
def test_cma_finds_a_minimum_from_ranks_and_leaves_numpy_alone(size):
    """With few latents the covariance is full, with many it is diagonal."""
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    goal = torch.linspace(-1, 1, size).view(2, -1)
    searches = [
        CovarianceSearch(torch.zeros_like(goal), torch.full_like(goal, 0.5), 20, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    asked = []
    for search in searches:
        for _ in range(30):
            candidates = search.ask()
            search.tell(candidates, (candidates - goal).flatten(1).norm(dim=1).argsort())
        asked.append(search.ask())
    assert asked[0].shape == (20, *goal.shape)
    assert (asked[0] - goal).square().mean() < (0.05 if size == 6 else 0.9) * goal.square().mean()
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_cma_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ImportError, match=r"CMA-ES requires the package cma: pip install 'hf_sane\[refine\]'"):
        CovarianceSearch(torch.zeros(1, 2), torch.ones(1, 2), 4, torch.Generator())


def test_networks_with_batch_norm_keep_the_statistics_they_were_judged_with(data):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    )
    states = []
    for _ in range(6):
        for part in module:
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    layout = Layout.from_state_dict(states[0], token_dim=17)
    tokens = torch.stack([layout.tokens(state) for state in states])
    extractor = SANEFeatureExtractor(17).fit([(layout, tokens)])
    code = fit_linear_code(lambda: [(layout, tokens)], [layout], extractor, latent_dim=8, grouping="kind")
    codec = NetworkCodec(code, extractor, layout, module)
    judge = Judge.of_images(*data.split("validation"), conditioning_images=data.split("train")[0])
    latents = codec.encode(tokens)
    start = keep_best(
        lambda count: (latents[:count], codec.decode(latents[:count])), judge, num_candidates=6, num_samples=4
    )
    settings = Refinement(steps=20, rate=0.2)
    scale = latents.std(dim=0)
    found = refine_by_gradient(codec, start, judge, *data.split("train"), scale=scale, settings=settings)
    assert found.mean_score > start.mean_score + 0.1
    assert (found.networks.tensors["2.running_var"] != 1).all()
    torch.testing.assert_close(judge.measure(found.networks)[1], found.validation_score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps >= 1, a rate > 0 and a prior >= 0, got 0, 0.1 and 0.0"),
        ({"rate": 0.0}, "got 60, 0.0 and 0.0"),
        ({"prior": -1.0}, "got 60, 0.1 and -1.0"),
        ({"rate": float("nan")}, "got 60, nan and 0.0"),
        ({"batch_size": 0}, "expected batch_size >= 1 and num_candidates >= 2, got 0 and 20"),
        ({"num_candidates": 1}, "got 64 and 1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Refinement(**options)


def test_no_examples(codec, sampled, judge, data, scale):
    images, labels = data.split("train")
    with pytest.raises(ValueError, match="expected labelled examples to refine networks on, got none"):
        refine_by_gradient(codec, sampled, judge, images[:0], labels[:0], scale=scale)
